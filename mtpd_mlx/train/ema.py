"""`moved`, `decay`: the teacher of `--teacher ema`, an exponential moving average of the base's trained weights.
Called by train/step.py.

After step i = 0, 1, ... with the new weights w:  average = d average + (1 - d) w,  d = min(ema_decay, (1 + i) / (10 + i)).
A step that is skipped leaves it as it was, and is not counted.
"""

from typing import Any

from mtpd_mlx.model.runtime import mx

Tree = dict[str, Any]


def copied(weights: Tree) -> Tree:
    """The average before the first step: arrays of its own, since a compiled step must not see one array twice."""
    from mlx.utils import tree_map

    return tree_map(lambda w: w + 0, weights)


def decay(step: mx.array, most: float) -> mx.array:
    """d [] of the step with this number, from 0."""
    i = step.astype(mx.float32)
    return mx.minimum(most, (1 + i) / (10 + i))


def moved(average: Tree, weights: Tree, kept: mx.array) -> Tree:
    """`kept` of the average and the rest of the weights, in float32 as they are held."""
    from mlx.utils import tree_map

    return tree_map(lambda a, w: kept * a + (1 - kept) * w, average, weights)
