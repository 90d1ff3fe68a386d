"""`dtype_of`, `compute_in`: the one place that decides in which floating-point type a base computes.
Called by every MLX command for the base that it loads.

MLX computes in the type that weights have; of a quantised base, in that of its scales and biases. On a CPU half precision takes
6 to 20 times as long as float32 (docs/log.md, 2026-11-28), so there `auto` is float32. Elsewhere `auto` is the stored type to
decode and to measure in, and bfloat16 to train in.
"""

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from mtpd_mlx.families.table import check_float16
from mtpd_mlx.model.finite import type_name
from mtpd_mlx.model.runtime import mx, nn, on_cpu
from mtpd_mlx.options.base import AUTO

if TYPE_CHECKING:
    from mtpd_mlx.model.base import Base

logger = logging.getLogger(__name__)


FLOAT32 = ("A_log", "e_score_correction_bias")  # decays of recurrent layers, and what chooses experts: sensitive to rounding


def dtype_of(asked: str, elsewhere: mx.Dtype = mx.bfloat16) -> mx.Dtype:
    """The type named `asked`; for `auto` float32 on a CPU, `elsewhere` on other devices."""
    if asked == AUTO:
        return mx.float32 if on_cpu() else elsewhere
    return getattr(mx, asked)


def compute_in(base: "Base", asked: str = AUTO, elsewhere: mx.Dtype | None = None, option: str = "--dtype") -> None:
    """Casts the base's floating-point weights to what it is to compute in, and reads them. `elsewhere`: what `auto` means on
    other devices than CPUs (None: as stored). `option`: what `asked` came from, for messages.

    ValueError in one line for float16 where the family's hidden states exceed it.
    """
    if asked == "float16":
        check_float16(base.dims.model_type, f"{option} float16", "bfloat16")
    if asked != AUTO or on_cpu() or elsewhere is not None:
        kind = dtype_of(asked, elsewhere or base.dtype)
        if asked == AUTO and on_cpu() and (stored := float_types(base) - {type_name(kind)}):
            _say(
                f"computing in {type_name(kind)}, not in {' and '.join(sorted(stored))} as stored, which a CPU computes slowly"
            )
        cast(base.model, kind)
    mx.eval(base.model.parameters())


def cast(network: nn.Module, kind: mx.Dtype) -> None:
    """Floating-point weights in `kind`, but for those that stay as they are (FLOAT32)."""
    from mlx.utils import tree_flatten, tree_unflatten

    flat: Any = tree_flatten(network.parameters())
    decays = [(name, w) for name, w in flat if name.endswith(FLOAT32)]
    network.set_dtype(kind)
    if decays:
        network.update(tree_unflatten(decays), strict=False)


def float_types(base: "Base") -> set[str]:
    """Names of the types of the base's floating-point arrays."""
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(base.model.parameters())
    return {type_name(w.dtype) for n, w in flat if mx.issubdtype(w.dtype, mx.floating) and not n.endswith(FLOAT32)}


@cache  # once a run, however many bases it loads
def _say(line: str) -> None:
    logger.info("%s", line)
