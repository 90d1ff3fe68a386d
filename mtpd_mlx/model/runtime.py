"""`mx`, `nn`: MLX, imported here and nowhere else, behind an optimised BLAS.
Called by every module that uses MLX.

Importing this loads an optimised BLAS first (model/blas.py), logs where MLX will be slow, and gives every rank of a CUDA run a
kernel cache of its own. None of these can be had later.
"""

import os
import tempfile
from importlib.metadata import version
from typing import Any

from mtpd_mlx.model.blas import compiler_warning, preload_blas

preload_blas()

QUEUED_MB = "MLX_MAX_MB_PER_BUFFER", "200"

try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
except ImportError as error:
    raise ImportError(f'MLX is not installed ({error}); install it with: pip install -e ".[mlx]"') from error


def on_cpu() -> bool:
    """True when MLX computes on the CPU."""
    return mx.default_device().type == mx.DeviceType.cpu


def on_cuda() -> bool:
    """True when MLX computes on an NVIDIA GPU."""
    cuda = getattr(mx, "cuda", None)
    return not on_cpu() and cuda is not None and cuda.is_available()


def memory_bytes() -> int | None:
    """Memory that MLX can use: the GPU's own, or the machine's."""
    if on_cuda() or not on_cpu():
        info: dict[str, Any] = dict(mx.device_info())
        size = info.get("max_recommended_working_set_size") or info.get("total_memory") or info.get("memory_size")
        return None if size is None else int(size)
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bound_queue() -> None:
    """Whatever trains calls this before it loads or makes a base: MLX reads the variable at the process's first operation.

    On CUDA up to ten batches of queued work hold their buffers, and MLX makes batches of 1 GB. Smaller ones take half of the
    memory and about the same time (docs/log.md). What is set stays."""
    if on_cuda():
        os.environ.setdefault(*QUEUED_MB)


def kernel_cache(rank: int) -> str:
    """Where a rank keeps the CUDA kernels compiled while it runs. MLX writes them in place, so each rank has a folder of its
    own: half a file, written by another rank at that moment, would end the run."""
    shared = os.environ.get("MLX_PTX_CACHE_DIR") or f"{tempfile.gettempdir()}/mlx/{version('mlx')}/ptx"
    return f"{shared}-rank-{rank}" if rank else shared


if on_cpu():
    compiler_warning()
elif on_cuda() and (rank := int(os.environ.get("MLX_RANK", 0))):
    os.environ["MLX_PTX_CACHE_DIR"] = kernel_cache(rank)  # read by MLX at its first kernel

__all__ = ["bound_queue", "kernel_cache", "memory_bytes", "mx", "nn", "on_cpu", "on_cuda", "optim"]
