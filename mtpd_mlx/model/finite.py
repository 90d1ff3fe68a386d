"""`marked`: the mark of tokens chosen from logits that are not finite, in the graph that chooses them.
Called by every way of decoding; whoever reads tokens checks with speculative/finite.py."""

from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import NO_TOKEN


def finite_rows(logits: mx.array) -> mx.array:
    """logits [.., V] -> bool [..]: is the maximum finite? MLX's max is NaN where anything is."""
    return mx.abs(logits.max(axis=-1)) < mx.inf


def marked(tokens: mx.array, logits: mx.array) -> mx.array:
    """tokens [n], chosen from logits [n, V] -> int32 [n], NO_TOKEN where the row is not finite. What goes on in the graph are
    the tokens themselves, which an embedding can look up."""
    return mx.where(finite_rows(logits), tokens.astype(mx.int32), NO_TOKEN)


def type_name(dtype: mx.Dtype) -> str:
    """ "float16" of mlx.core.float16."""
    return str(dtype).rpartition(".")[2]
