"""`convolve`: causal depthwise convolutions of a few positions, whose window a cache carries from pass to pass.
Called by delta_net.py, mamba.py and short_conv.py."""

from typing import Any

from mtpd_mlx.model.runtime import mx


def convolve(rows: mx.array, window: mx.array | None, layer: Any) -> tuple[mx.array, mx.array]:
    """rows [1, n, C] behind `window` [1, k-1, C] (None: zeros), an nn.Conv1d of C groups -> (outputs [1, n, C], what was seen
    [1, k-1+n, C], whose last k-1 rows are the next window).

    Sums in float32; a row's bits do not depend on how many rows are convolved at once.
    """
    weight = layer.weight.astype(mx.float32)  # [C, k, 1]
    k, n = weight.shape[1], rows.shape[1]
    if window is None:
        window = mx.zeros((rows.shape[0], k - 1, rows.shape[2]), rows.dtype)
    seen = mx.concatenate([window, rows], axis=1)
    total = seen[:, :n] * weight[:, 0, 0]
    for j in range(1, k):
        total = total + seen[:, j : j + n] * weight[:, j, 0]
    if "bias" in layer:
        total = total + layer.bias
    return total.astype(rows.dtype), seen


def next_window(seen: mx.array, n: int) -> mx.array:
    """The window behind n positions: a copy, so that the rest of what was seen can be freed."""
    return mx.contiguous(seen[:, n:])
