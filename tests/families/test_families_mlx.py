"""Every family on MLX: transformers' logits, caches that rewind, heads that train."""

from pathlib import Path

import numpy as np
from family_models import TOLERANCE, Reference, losses_of

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.runtime import mx


def test_mlx_logits(reference: Reference) -> None:
    base = load_base(str(reference.folder))
    logits = base.logits(base.norm(base.trunk(mx.array([reference.tokens]))))[0]
    np.testing.assert_allclose(np.array(logits), reference.logits, rtol=0, atol=TOLERANCE)


def test_mlx_caches_rewind(reference: Reference) -> None:
    """Positions beyond the window, wrong tokens that are taken back, and batches with left padding."""
    base, tokens = load_base(str(reference.folder)), reference.tokens
    model = MLXModel(base, None)
    rows = [model.logits(tokens[:11]), model.logits(tokens[11:12])]
    model.logits([5, 6, 7, 8, 9, 10, 11, 12])
    model.rewind_to(12)
    rows += [model.logits(tokens[12:20]), model.logits(tokens[20:])]
    np.testing.assert_allclose(np.concatenate(rows), reference.logits, rtol=0, atol=TOLERANCE)
    cache = base.make_batch_cache([0, 3])
    padded = mx.array([tokens[:20], [0, 0, 0, *tokens[:17]]])
    states = [base.trunk(padded[:, :12], cache), base.trunk(padded[:, 12:], cache)]
    batched = np.array(base.logits(base.norm(mx.concatenate(states, axis=1))))
    np.testing.assert_allclose(batched[0], reference.logits[:20], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(batched[1, 3:], reference.logits[:17], rtol=0, atol=TOLERANCE)


def test_mlx_blocks_one_by_one(reference: Reference) -> None:
    """Token by token and layer by layer, as exact decoding runs them: the window holds there too."""
    base = load_base(str(reference.folder))
    cache, rows = base.make_cache(), []
    for token in reference.tokens:
        hidden = base.embed(mx.array([[token]]))
        for i, layer_cache in enumerate(cache):
            hidden = base.run_block(i, hidden, layer_cache)
        rows.append(np.array(base.logits(base.norm(hidden)))[0, 0])
    np.testing.assert_allclose(np.stack(rows), reference.logits, rtol=0, atol=TOLERANCE)


def test_heads_train(checkpoint: Path) -> None:
    first, last = losses_of(checkpoint)
    assert (last < 0.85 * first).all(), (first, last)
