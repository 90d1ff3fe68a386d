"""`check_device`, `device_name`, `free_bytes`: the CUDA runtime library, for what onnxruntime does not tell.
Called by runtime/sessions.py, memory.py, bandwidth.py and cuda_stream.py."""

import ctypes
import time
from functools import lru_cache

NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
DEVICE_TO_DEVICE = 3


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """None where it is not found; onnxruntime loads it into the process where CUDA runs."""
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def reason(status: int) -> str:
    """A status of the library in words."""
    cuda = library()
    assert cuda is not None
    cuda.cudaGetErrorString.restype = ctypes.c_char_p
    return f"{cuda.cudaGetErrorString(status).decode()} (CUDA error {status})"


def check_device() -> None:
    """ValueError where there is no driver, or no device; nothing where the runtime library is not found."""
    cuda, count = library(), ctypes.c_int()
    if cuda is None:
        return
    if status := cuda.cudaGetDeviceCount(ctypes.byref(count)):
        raise ValueError(f"CUDA cannot start: {reason(status)}; is an NVIDIA driver for CUDA 13 installed (nvidia-smi)?")
    if not count.value:
        raise ValueError("CUDA cannot start: no GPU is visible (CUDA_VISIBLE_DEVICES?)")


def device_name() -> str:
    """As its maker calls it; "cuda" where that cannot be known."""
    cuda, properties = library(), ctypes.create_string_buffer(1 << 16)  # the struct begins with the name
    if cuda is None or not hasattr(cuda, "cudaGetDeviceProperties") or cuda.cudaGetDeviceProperties(properties, 0):
        return "cuda"
    return properties.value.decode(errors="replace") or "cuda"


def free_bytes() -> int | None:
    """Free memory of the current device in bytes; None without CUDA."""
    cuda = library()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if cuda is None or cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)):
        return None
    return free.value


def copy_bandwidth(size: int = 1 << 29, repeats: int = 10) -> float | None:
    """Bytes read and written per second by copies on the device."""
    cuda = library()
    if cuda is None:
        return None
    source, target = ctypes.c_void_p(), ctypes.c_void_p()
    try:
        for pointer in (source, target):
            if cuda.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)):
                return None
        best = 0.0
        for _ in range(repeats):
            cuda.cudaDeviceSynchronize()
            began = time.perf_counter()
            cuda.cudaMemcpy(target, source, ctypes.c_size_t(size), DEVICE_TO_DEVICE)
            cuda.cudaDeviceSynchronize()
            best = max(best, 2 * size / (time.perf_counter() - began))
        return best
    finally:
        for pointer in (source, target):
            if pointer.value:
                cuda.cudaFree(pointer)
