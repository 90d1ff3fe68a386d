"""An optimised BLAS for MLX on Linux CPUs, and a word about the compiler.

MLX's Linux CPU wheel carries the reference BLAS, some fifty times slower. A BLAS library loaded with RTLD_GLOBAL before
`import mlx.core` takes its place in the process; no environment variable has to be set.
"""

import ctypes
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ENVIRONMENT = "MTPD_BLAS"  # a library's path, or "off"
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.3", "libmkl_rt.so.2", "libblis.so.4")


@dataclass(frozen=True)
class BlasReport:
    """`library`: what was loaded (None: nothing). `needed`: False where MLX brings its own fast matrix product."""

    needed: bool
    library: str | None


def _needed() -> bool:
    """Only Linux builds of MLX without CUDA use the wheel's reference BLAS."""
    return sys.platform == "linux" and importlib.util.find_spec("mlx") is not None and not _has_cuda_backend()


def _has_cuda_backend() -> bool:
    from importlib.metadata import distributions

    return any((d.metadata["Name"] or "").startswith("mlx-cuda") for d in distributions())


def _candidates() -> list[str]:
    prefix = Path(sys.prefix)
    local = sorted(map(str, (prefix / "lib" / "mtpd-blas").rglob("libopenblas*.so.0")))
    mkl = sorted(map(str, (prefix / "lib").glob("libmkl_rt.so*")))
    return [*local, *SYSTEM_LIBRARIES, *mkl]


def _load(name: str) -> bool:
    try:
        for helper in sorted(Path(name).parent.glob("libquadmath*.so.0")) + sorted(Path(name).parent.glob("libgfortran*.so.5")):
            ctypes.CDLL(str(helper), mode=ctypes.RTLD_GLOBAL)
        return hasattr(ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL), "cblas_sgemm")
    except OSError:
        return False


@cache
def preload_blas() -> BlasReport:
    """Loads the first BLAS found; called once, before mlx.core. Warns in one line where none is there."""
    choice = os.environ.get(ENVIRONMENT, "")
    if choice == "off" or not _needed():
        return BlasReport(False, None)
    for name in [choice] if choice else _candidates():
        if _load(name):
            return BlasReport(True, name)
    problem = f"{ENVIRONMENT}={choice} cannot be loaded" if choice else "no optimised BLAS found"
    print(
        f"mtpd: {problem}: MLX will be ~50x slower on this CPU; install one (Debian/Ubuntu: apt install libopenblas0-pthread)",
        file=sys.stderr,
    )
    return BlasReport(True, None)


@cache
def compiler_warning() -> None:
    """MLX compiles fused CPU kernels with `g++` at run time and runs without them, slower and silently, where it is missing."""
    if sys.platform == "linux" and shutil.which("g++") is None:
        print("mtpd: no g++ found: MLX runs uncompiled on CPU, same results but slower (install g++)", file=sys.stderr)
