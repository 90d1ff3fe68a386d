"""`by_rows`: a round's few rows times a matrix, row by row inside one kernel (`+rows`).
Called by fixed_rounds.py and tuning/.

MLX CUDA hands products of several rows to cuBLAS: each asks for an algorithm and becomes a captured subgraph, which takes the
host longer than the kernel takes on a small model. One row has a light kernel of its own, and so has a batch of single rows. It
reads the matrix once per row (from the L2 cache where that holds it), and sums as plain decoding does.
"""

from types import TracebackType

from mtpd_mlx.model.runtime import mx, nn

PRODUCTS = ("matrix", "rows")
MOST_ROWS = 32  # a longer pass is a prefill


class RowLinear(nn.Linear):
    """A Linear without bias whose few rows are a batch of products with one vector each."""

    def __call__(self, x: mx.array) -> mx.array:
        return by_rows(x, _repeated(self, _rows(x))) if 1 < _rows(x) <= MOST_ROWS else super().__call__(x)


class RowEmbedding(nn.Embedding):
    """The same, of a tied output head."""

    def as_linear(self, x: mx.array) -> mx.array:
        return by_rows(x, _repeated(self, _rows(x))) if 1 < _rows(x) <= MOST_ROWS else super().as_linear(x)


def by_rows(x: mx.array, weights: mx.array) -> mx.array:
    """x [.., d] of m rows, weights [m, n, d] -> [.., n]. With the matrices on the left MLX does not fold the batch into one
    product."""
    return (weights @ x.reshape(-1, x.shape[-1], 1)).reshape(*x.shape[:-1], weights.shape[1])


def _rows(x: mx.array) -> int:
    return x.size // x.shape[-1]


def _repeated(module: nn.Module, count: int) -> mx.array:
    """The module's matrix [n, d] as a view [count, n, d]: made once, since a round has hundreds of products."""
    weight = module.weight
    held = getattr(module, "_repeated", None)
    if held is None or held[0] is not weight or held[1].shape[0] != count:
        held = module._repeated = (weight, mx.broadcast_to(weight, (count, *weight.shape)))
        mx.eval(held[1])
    return held[1]


class RowProducts:
    """A context in which graphs multiply few rows by these modules' unquantised matrices (without bias) row by row.

    Patches the modules' __class__ meanwhile. Broken by an nn.Linear or nn.Embedding that has other fields than today (weight,
    and bias), computes elsewhere than in __call__ and as_linear, or forbids another class (slots).
    """

    def __init__(self, *modules: nn.Module):
        self._leaves: list[tuple[nn.Module, type, type]] = []
        for leaf in {id(leaf): leaf for module in modules for leaf in module.modules()}.values():
            if type(leaf) is nn.Linear and "bias" not in leaf:
                self._leaves.append((leaf, nn.Linear, RowLinear))
            elif type(leaf) is nn.Embedding:
                self._leaves.append((leaf, nn.Embedding, RowEmbedding))

    def __enter__(self) -> None:
        for leaf, _, row in self._leaves:
            leaf.__class__ = row

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for leaf, whole, _ in self._leaves:
            leaf.__class__ = whole
