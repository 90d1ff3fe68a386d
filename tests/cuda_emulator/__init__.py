"""`emulated(monkeypatch)`: from then on mx.fast.cuda_kernel makes kernels that a C++ compiler builds and this CPU runs.

Called by tests of losses/cuda_kernels.py where there is no GPU. `COMPILER` is None where no C++ compiler is found.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtpd_mlx.losses import cuda_kernels
from mtpd_mlx.model.runtime import mx

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
SHIM = Path(__file__).parent / "shim.h"
NAMES = {mx.float32: "float", mx.float16: "_Float16", mx.bfloat16: "bfloat16", mx.int32: "int32_t"}
NAMES |= {mx.uint32: "uint32_t", mx.uint16: "uint16_t"}
BITS = {2: (np.uint16, mx.uint16), 4: (np.uint32, mx.uint32)}
GUARD = 64  # elements around every array that a kernel must not touch
POISON = 0x7FC1  # NaN in every type: what was read beyond an array shows, and what was never written
Kernel = Any


def emulated(monkeypatch: pytest.MonkeyPatch, order: Sequence[int] | None = None) -> None:
    """`order`: in which the threads of a block take turns (None: by number)."""

    def cuda_kernel(name: str, input_names: list[str], output_names: list[str], source: str, header: str) -> Kernel:
        return EmulatedKernel(name, tuple(input_names), tuple(output_names), source, header, order)

    monkeypatch.setattr(mx.fast, "cuda_kernel", cuda_kernel)
    for make in kernels_made():
        monkeypatch.setattr(cuda_kernels, make.__name__, make.__wrapped__)


def kernels_made() -> list[Any]:
    """The functions of cuda_kernels that make a kernel once and keep it."""
    return [f for f in vars(cuda_kernels).values() if hasattr(f, "cache_clear") and f.__module__ == cuda_kernels.__name__]


@dataclass(frozen=True)
class EmulatedKernel:
    """Called as what mx.fast.cuda_kernel returns, but computes at once."""

    name: str
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    source: str
    header: str
    order: Sequence[int] | None = field(compare=False)

    def __call__(
        self,
        *,
        inputs: list[mx.array],
        template: list[tuple[str, Any]],
        output_shapes: list[tuple[int, ...]],
        output_dtypes: list[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
    ) -> list[mx.array]:
        threads = threadgroup[0]
        assert grid[1:] == threadgroup[1:] == (1, 1) and grid[0] % threads == 0
        given = [_guarded(x.dtype, x.shape, x) for x in inputs]
        made = [_guarded(dtype, shape) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]
        shapes = [np.array(x.shape, np.int32) for x in inputs]
        types = tuple(NAMES[d] for d in [*(x.dtype for x in inputs), *output_dtypes])
        values = tuple((n, NAMES[v] if isinstance(v, mx.Dtype) else int(v)) for n, v in template)
        arrays = [*given, *shapes, *made]
        pointers = (ctypes.c_void_p * len(arrays))()
        for i, array in enumerate(arrays):
            skipped = 0 if array.dtype == np.int32 else GUARD * array.itemsize
            pointers[i] = array.ctypes.data + skipped
        turns = np.array(range(threads) if self.order is None else self.order, np.int32)
        before = [x.copy() for x in given]
        fault = _built(self, types, values)(pointers, grid[0] // threads, threads, turns.ctypes.data)
        assert not fault, f"{self.name}: {fault.decode()}"
        for x, y in zip(given, before, strict=True):
            assert np.array_equal(x, y), f"{self.name}: wrote to an input"
        return [_taken(x, shape, dtype) for x, shape, dtype in zip(made, output_shapes, output_dtypes, strict=True)]


def _guarded(dtype: mx.Dtype, shape: Sequence[int], values: mx.array | None = None) -> np.ndarray:
    """The bits of `values` (None: poison) with poison around them."""
    own, bits = BITS[dtype.size]
    poison = POISON if dtype.size == 2 else POISON << 16
    whole = np.full(int(np.prod(shape)) + 2 * GUARD, poison, own)
    if values is not None:
        whole[GUARD:-GUARD] = np.array(mx.contiguous(values).view(bits)).ravel()
    return whole


def _taken(whole: np.ndarray, shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    poison = POISON if whole.itemsize == 2 else POISON << 16
    inside = whole[GUARD:-GUARD]
    assert (whole[:GUARD] == poison).all() and (whole[-GUARD:] == poison).all(), "wrote outside an output"
    assert not (inside == poison).any(), "left a part of an output unwritten"
    return mx.array(inside.reshape(shape)).view(dtype)


@cache
def _built(kernel: EmulatedKernel, types: tuple[str, ...], values: tuple[tuple[str, str | int], ...]) -> Any:
    """The function `launch` of shim.h for one kernel, the types of its arrays and the values of its template."""
    text = kernel_source(kernel, types, values)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text)
        options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fno-strict-aliasing", "-w"]
        subprocess.run([str(COMPILER), *options, str(source), "-o", str(library)], check=True)
        launch = ctypes.CDLL(str(library)).launch
    launch.restype = ctypes.c_char_p
    launch.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    return launch


def kernel_source(kernel: EmulatedKernel, types: tuple[str, ...], values: tuple[tuple[str, str | int], ...]) -> str:
    """As MLX writes it around our source: arrays by name, shapes of inputs as NAME_shape, template values as constants."""
    constants = [f"using {n} = {v};" if isinstance(v, str) else f"constexpr int {n} = {v};" for n, v in values]
    inputs, outputs = kernel.input_names, kernel.output_names
    declared = [f"const {t}* {n}" for t, n in zip(types, inputs, strict=False)]
    declared += [f"const int32_t* {n}_shape" for n in inputs]
    declared += [f"{t}* {n}" for t, n in zip(types[len(inputs) :], outputs, strict=True)]
    passed = [f"({d.rpartition(' ')[0]})arguments[{i}]" for i, d in enumerate(declared)]
    return f"""#include "{SHIM}"
{chr(10).join(constants)}
{kernel.header}
static void body({", ".join(declared)}) {{
#line 1 "{kernel.name}"
{kernel.source}
}}
static void kernel() {{ body({", ".join(passed)}); }}
"""
