"""`bandwidth`: the speed at which memory is read, the floor under every pass over the weights.
Called by `mtpd-onnx bench`."""

import time

import numpy as np

from mtpd_onnx.runtime.cuda_runtime import copy_bandwidth


def bandwidth(provider: str) -> float | None:
    """Bytes per second, measured now; None where it cannot be measured."""
    if provider == "cuda":
        return copy_bandwidth()
    block = np.ones(1 << 26, np.float32)  # 256 MB, beyond every cache
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        block.max()
        best = max(best, block.nbytes / (time.perf_counter() - began))
    return best
