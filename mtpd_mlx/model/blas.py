"""`preload_blas`: an optimised BLAS for MLX on Linux CPUs, and a warning if the compiler is missing.
Called by model/runtime.py and `mtpd doctor`.

MLX's Linux CPU wheel carries the reference BLAS, some fifty times slower. A BLAS library loaded with RTLD_GLOBAL before
`import mlx.core` takes its place in the process; no environment variable has to be set.
"""

import ctypes
import importlib.util
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ENVIRONMENT = "MTPD_BLAS"  # a library's path, or "off"
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.3", "libmkl_rt.so.2", "libblis.so.4")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlasReport:
    """`library`: what was loaded (None: nothing). `needed`: False where MLX brings its own fast matrix product."""

    needed: bool
    library: str | None


def _needed() -> bool:
    """Only Linux builds of MLX without CUDA use the wheel's reference BLAS."""
    try:
        installed = importlib.util.find_spec("mlx") is not None
    except ImportError:
        installed = False
    return sys.platform == "linux" and installed and not _has_cuda_backend()


def _has_cuda_backend() -> bool:
    from importlib.metadata import distributions

    return any((d.metadata["Name"] or "").startswith("mlx-cuda") for d in distributions())


def _candidates() -> list[str]:
    prefix = Path(sys.prefix)
    local = sorted(map(str, (prefix / "lib" / "mtpd-blas").rglob("libopenblas*.so.0")))
    mkl = sorted(map(str, (prefix / "lib").glob("libmkl_rt.so*")))
    return [*local, *SYSTEM_LIBRARIES, *mkl]


def _load(name: str) -> bool:
    """Makes the library's symbols global; False where it cannot be loaded or is no CBLAS."""
    try:
        if "/" in name:  # an unpacked package: what it needs lies beside it, where the loader does not look
            folder = Path(name).absolute().parent
            for helper in [*sorted(folder.glob("libquadmath*.so.0")), *sorted(folder.glob("libgfortran*.so.5"))]:
                ctypes.CDLL(str(helper), mode=ctypes.RTLD_GLOBAL)
        return hasattr(ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL), "cblas_sgemm")
    except OSError:
        return False


@cache
def preload_blas() -> BlasReport:
    """Loads the first BLAS found; called once, before mlx.core. Warns in one line where that cannot help or none is there."""
    choice = os.environ.get(ENVIRONMENT, "")
    if choice == "off" or not _needed():
        return BlasReport(False, None)
    if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        return BlasReport(True, "already loaded")  # LD_PRELOAD, or the program loaded one itself
    if "mlx.core" in sys.modules:  # its symbols are bound: measured, a later load changes nothing
        logger.warning(
            "mlx was imported before mtpd_mlx: it stays ~50x slower on this CPU; import mtpd_mlx.model.runtime first"
        )
        return BlasReport(True, None)
    for name in [choice] if choice else _candidates():
        if _load(name):
            return BlasReport(True, name)
    problem = f"{ENVIRONMENT}={choice} cannot be loaded as a BLAS" if choice else "no optimised BLAS found"
    logger.warning(
        f"{problem}: MLX will be ~50x slower on this CPU; install one (Debian/Ubuntu: apt install libopenblas0-pthread)"
    )
    return BlasReport(True, None)


def library_for_others() -> str | None:
    """The library to preload (LD_PRELOAD) into another program that computes with MLX, so that it has the BLAS that we have;
    None where it needs none, or none is there."""
    if not _needed():
        return None
    choice = os.environ.get(ENVIRONMENT, "")
    names = [] if choice == "off" else [choice] if choice else _candidates()
    return next((name for name in names if _load(name)), None)


@cache
def compiler_warning() -> None:
    """MLX compiles fused CPU kernels with `g++` at run time and runs without them, slower and silently, where it is missing."""
    if sys.platform == "linux" and shutil.which("g++") is None:
        logger.warning("no g++ found: MLX runs uncompiled on CPU, same results but slower (install g++)")
