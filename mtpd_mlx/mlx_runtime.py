"""The one place from which the project imports MLX, so that an optimised BLAS is loaded before it (blas.py)."""

from mtpd_mlx.blas import compiler_warning, preload_blas

preload_blas()

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
except ImportError as error:
    raise ImportError(f'MLX is not installed ({error}); install it with: pip install "mtpd-mlx[mlx]"') from error


def on_cpu() -> bool:
    """True when MLX computes on the CPU."""
    return mx.default_device().type == mx.DeviceType.cpu


def on_cuda() -> bool:
    """True when MLX computes on an NVIDIA GPU."""
    cuda = getattr(mx, "cuda", None)
    return not on_cpu() and cuda is not None and cuda.is_available()


if on_cpu():
    compiler_warning()

__all__ = ["mx", "nn", "on_cpu", "on_cuda", "optim"]
