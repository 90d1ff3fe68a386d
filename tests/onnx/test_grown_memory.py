"""Memory of caches is taken as it is written: a text of a few positions takes a few pages."""

import sys
from pathlib import Path

import numpy as np
import pytest
from mtpd_onnx.runtime.grown_memory import zeros_as_used


def held(array: np.ndarray) -> int:
    """Bytes of the array that lie in memory (smaps: the mapping that begins where it does)."""
    start = f"{array.__array_interface__['data'][0]:x}-"
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(line.lstrip("0").startswith(start) for line in lines)
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def test_zeros_that_can_be_written() -> None:
    array = zeros_as_used((3, 4, 5), np.float16)
    assert array.shape == (3, 4, 5) and array.dtype == np.float16 and not array.any()
    array[1, 2] = 7
    assert array.sum() == 35 and array.flags.c_contiguous
    assert zeros_as_used((0, 4), np.float32).shape == (0, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_what_is_written_is_held() -> None:
    array = zeros_as_used((64, 1 << 20), np.float32)  # 256 MB
    before = held(array)
    array[:, :16] = 1  # some positions of every head
    assert before < 1 << 20 and held(array) < 4 << 20
