"""`Stream`, `Landing`: a CUDA stream for a session, and results copied to the host behind its work without waiting.
Called by the backends that run on CUDA."""

import ctypes
from typing import Any

import numpy as np

from mtpd_onnx.runtime.cuda_runtime import library, reason

DEVICE_TO_HOST = 2
NON_BLOCKING, WITHOUT_TIME = 1, 2  # flags of a stream and of an event


def checked(status: int, what: str) -> None:
    if status:
        raise ValueError(f"CUDA: {what} failed: {reason(status)}")


class Stream:
    """ValueError where CUDA refuses. It lives as long as the process: sessions and captured graphs know its address."""

    def __init__(self, cuda: ctypes.CDLL):
        self.cuda, self.handle = cuda, ctypes.c_void_p()
        checked(cuda.cudaStreamCreateWithFlags(ctypes.byref(self.handle), NON_BLOCKING), "making a stream")

    @property
    def address(self) -> str:
        """As the provider option user_compute_stream takes it."""
        return str(self.handle.value)

    @classmethod
    def new(cls) -> "Stream | None":
        """None where the runtime library is not found."""
        cuda = library()
        return None if cuda is None else cls(cuda)


class Landing:
    """Pinned host memory for copies of device values (OrtValues)."""

    def __init__(self, values: list[Any], stream: Stream):
        self._stream, self._event = stream, ctypes.c_void_p()
        checked(stream.cuda.cudaEventCreateWithFlags(ctypes.byref(self._event), WITHOUT_TIME), "making an event")
        self._copies = [(value, self._pinned(value.numpy())) for value in values]

    def _pinned(self, like: np.ndarray) -> np.ndarray:
        address = ctypes.c_void_p()
        checked(self._stream.cuda.cudaMallocHost(ctypes.byref(address), ctypes.c_size_t(like.nbytes)), "pinning host memory")
        assert address.value is not None
        block = (ctypes.c_uint8 * like.nbytes).from_address(address.value)
        return np.ctypeslib.as_array(block).view(like.dtype).reshape(like.shape)

    def copy(self) -> None:
        """Queued behind what the stream was given before."""
        cuda = self._stream.cuda
        for value, array in self._copies:
            target, source = ctypes.c_void_p(array.ctypes.data), ctypes.c_void_p(value.data_ptr())
            size = ctypes.c_size_t(array.nbytes)
            checked(cuda.cudaMemcpyAsync(target, source, size, DEVICE_TO_HOST, self._stream.handle), "a copy to the host")
        checked(cuda.cudaEventRecord(self._event, self._stream.handle), "recording an event")

    def arrays(self) -> list[np.ndarray]:
        """Waits for the copies."""
        checked(self._stream.cuda.cudaEventSynchronize(self._event), "waiting for the device")
        return [array.copy() for _, array in self._copies]
