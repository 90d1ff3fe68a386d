"""`zeros_as_used`: large arrays of zeros whose memory is taken page by page, as it is written.
Called by runtime/batch_session.py for the caches on a CPU."""

import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np


def zeros_as_used(shape: Sequence[int], kind: type) -> np.ndarray:
    """As np.zeros, which asks Linux for huge pages: a text of a few positions would then take, and wait for the zeroing of, all
    the room that its layers may ever need."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if not size or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, kind)
    memory = mmap.mmap(-1, size)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, kind).reshape(shape)
