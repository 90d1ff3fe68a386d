"""`whole_pass`, `row_by_row`: the base's pass over a few tokens, at once or as plain decoding would run them.
Called by decoding/text_state.py.

Kernels for 1 row and for K+1 rows round differently, and in bf16, fp16 or 4-bit a near-tie may then fall the other way. Row by
row each block runs once per token with exactly the calls that plain decoding makes, so its bits are those of plain decoding;
block after block (not token after token), so that a block's weights are still in the cache for its later rows.
"""

from collections.abc import Callable
from typing import Any

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.runtime import mx

Pass = Callable[[mx.array, list[Any]], tuple[mx.array, mx.array, mx.array]]
"""(tokens [1, m], caches) -> (hidden_prenorm [1, m, d], hidden_postnorm [1, m, d], logits [m, V]); the caches advance by m."""


def whole_pass(base: Base) -> Pass:
    """All rows at once: (tokens [1, L], caches) -> (hidden_prenorm [1, L, d], hidden_postnorm [1, L, d], logits [L, V])."""

    def run(tokens: mx.array, caches: list[Any]) -> tuple[mx.array, mx.array, mx.array]:
        hidden = base.trunk(tokens, caches)
        normed = base.norm(hidden)
        return hidden, normed, base.logits(normed)[0]

    return run


def row_by_row(base: Base) -> Pass:
    """ValueError where this base's blocks cannot be run one by one with the bits of its own single-token pass."""

    def run(tokens: mx.array, caches: list[Any]) -> tuple[mx.array, mx.array, mx.array]:
        rows = [base.embed(tokens[:, j : j + 1]) for j in range(tokens.shape[1])]
        for i, cache in enumerate(caches):
            rows = [base.run_block(i, row, cache) for row in rows]
        normed = [base.norm(row) for row in rows]
        logits = [base.logits(row)[0] for row in normed]
        return mx.concatenate(rows, axis=1), mx.concatenate(normed, axis=1), mx.concatenate(logits)

    _check(base, run)
    return run


def _check(base: Base, run: Pass) -> None:
    tokens = mx.arange(1, 5)[None] % base.vocab_size
    caches, single = base.make_cache(), base.make_cache()
    logits = run(tokens, caches)[2]
    expected = [whole_pass(base)(tokens[:, j : j + 1], single)[2] for j in range(tokens.shape[1])]
    if not mx.array_equal(logits, mx.concatenate(expected), equal_nan=True).item():  # NaN: decoding says so
        raise ValueError(
            f"--exact: {base.config.get('model_type')} blocks do not reproduce a single-token pass when run one by one"
        )
