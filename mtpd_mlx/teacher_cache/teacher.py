"""`teacher_rows`: the stored rows of the frozen base at every position, computed with MLX.
Called by teacher_cache/writer.py."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.finite import type_name
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import NotFiniteError
from mtpd_mlx.teacher_cache.arrays import to_numpy
from mtpd_mlx.teacher_cache.format import Layout

WHY = ": its weights hold NaN or infinity, or its numbers do not fit {} (--compute-dtype float32)"
CHUNK_BYTES = 64_000_000  # of float32 logits held at a time


def top_logits(logits: mx.array, top_n: int) -> tuple[mx.array, mx.array]:
    """logits [P, V] -> (ids int32 [P, N], logits [P, N]) of the N largest: largest first, the lower id first among equals.

    bfloat16 logits tie often, also across the edge of the selection. So that ids do not depend on the device's partition,
    what is partitioned is one int64 per token whose ascending order is (logit descending, id ascending).
    """
    values = logits.astype(mx.float32)
    bits = mx.where(values == 0, mx.zeros_like(values), values).view(mx.int32)  # -0.0 equals 0.0
    ascending = mx.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(mx.int64)  # int32 order == float order
    keys = mx.left_shift(-ascending, 32) + mx.arange(logits.shape[-1]).astype(mx.int64)
    if top_n < logits.shape[-1]:
        keys = mx.partition(keys, top_n - 1, axis=-1)[..., :top_n]
    ids = (mx.sort(keys, axis=-1) & 0xFFFFFFFF).astype(mx.int32)
    return ids, mx.take_along_axis(logits, ids, axis=-1)


def _chunks(positions: int, vocab_size: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))


def _logits_dtype(layout: Layout) -> mx.Dtype:
    return getattr(mx, layout.logits_dtype)


def _chunk(base: Base, layout: Layout, hidden: mx.array, targets: mx.array) -> dict[str, np.ndarray]:
    """hidden [P, d], targets int [P] -> the tensors of the cache that need logits, [P, ...]."""
    logits = base.logits(base.norm(hidden))  # [P, V]
    ids, top = top_logits(logits, layout.top_n)
    logsumexp = mx.logsumexp(logits.astype(mx.float32), axis=-1)
    target_logits = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0].astype(mx.float32)
    parts = {
        "top_tokens": ids,
        "top_logits": top.astype(_logits_dtype(layout)),
        "logsumexp": logsumexp,
        "main_loss": logsumexp - target_logits,
    }
    mx.eval(parts)  # here, so that the logits of one chunk are gone before the next are made
    return {name: np.array(part) for name, part in parts.items()}


def teacher_rows(base: Base, layout: Layout, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """tokens int32 [B, T] -> hidden and, unless top_n is 0, top_tokens, top_logits, logsumexp, main_loss, as Layout.tensors()
    shapes them.

    ValueError where a stored number is not finite, as float16 makes of large activations.
    """
    rows, length = tokens.shape
    hidden = base.trunk(mx.array(tokens))  # [B, T, d]
    stored = hidden.astype(getattr(mx, layout.dtype))
    if not mx.isfinite(stored).all().item():
        if not mx.isfinite(hidden).all().item():
            raise NotFiniteError(f"the base's hidden states are not finite{WHY.format(type_name(base.dtype))}")
        raise _does_not_fit("hidden", base, layout)
    if layout.top_n == 0:
        return {"hidden": to_numpy(stored)}
    targets = mx.array(np.pad(tokens[:, 1:], ((0, 0), (0, 1)))).reshape(-1)  # [B * T]: x_{i+1} at i
    flat = hidden.reshape(rows * length, -1)
    parts: list[dict[str, Any]] = [_chunk(base, layout, flat[s], targets[s]) for s in _chunks(rows * length, layout.vocab_size)]
    arrays = {
        name: np.concatenate([p[name] for p in parts]).reshape(rows, length, *parts[0][name].shape[1:]) for name in parts[0]
    }
    arrays["main_loss"][:, -1] = 0.0
    if layout.vocab_size <= 1 << 16:
        arrays["top_tokens"] = arrays["top_tokens"].astype(np.uint16)
    if not np.isfinite(arrays["logsumexp"]).all():
        raise NotFiniteError(f"the base's logits are not finite{WHY.format(type_name(base.dtype))}")
    if not np.isfinite(arrays["top_logits"]).all():
        raise _does_not_fit("top_logits", base, layout)
    return arrays | {"hidden": to_numpy(stored)}


def _does_not_fit(name: str, base: Base, layout: Layout) -> ValueError:
    return ValueError(
        f"{name}: got inf or nan (computed in {base.dtype}, stored as {layout.tensors()[name].dtype}), expected finite "
        "numbers; try --cache-dtype bfloat16 or --compute-dtype float32"
    )
