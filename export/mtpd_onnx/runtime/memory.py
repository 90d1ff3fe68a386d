"""`check_memory`: the memory of a folder, computed and compared with what is free before anything is loaded.
Called by runtime/open.py, open_rows.py and bound.py."""

import os
from pathlib import Path

from mtpd_onnx.manifest import WEIGHTS_NAME, Manifest
from mtpd_onnx.precision import ACTIVATION_BYTES
from mtpd_onnx.runtime.cuda_runtime import free_bytes
from mtpd_onnx.runtime.limits import PREFILL_CHUNK

WORKSPACE = {"cuda": 1100e6, "cpu": 50e6}  # CUDA's context, cuBLAS, timing of products; onnxruntime's own


def needed_bytes(folder: Path, manifest: Manifest, provider: str, *, plain: bool, sampled: bool, batch_size: int = 1) -> int:
    """Weights, caches, sampling state and the activations of a prefill chunk: an estimate from above."""
    dims, item = manifest.dims, ACTIVATION_BYTES[manifest.activations]
    heads = 0 if plain else manifest.num_heads
    kept = [each for block in range(dims["num_layers"] + heads) for each in manifest.kept(block).values()]
    caches = sum(heads * (positions or manifest.capacity) * size for heads, positions, size in kept) * item
    rows = heads + 1
    logits = rows * dims["vocab_size"] * (item + 4)
    sampling = 8 * rows * dims["vocab_size"] * 4 if sampled else 0
    activations = 16 * PREFILL_CHUNK * dims["hidden_size"] * item
    weights, read = (folder / WEIGHTS_NAME).stat().st_size, max(manifest.weights_read.values())
    weights += read if read > weights else 0  # unpacked when the session opens
    return int(weights + batch_size * (caches + logits + sampling + activations) + WORKSPACE[provider])


def available_bytes(provider: str) -> int | None:
    """None where the system does not say."""
    if provider == "cuda":
        return free_bytes()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def check_memory(folder: Path, manifest: Manifest, provider: str, *, plain: bool, sampled: bool, batch_size: int = 1) -> None:
    """ValueError in one line where it cannot fit."""
    needed, free = (
        needed_bytes(folder, manifest, provider, plain=plain, sampled=sampled, batch_size=batch_size),
        available_bytes(provider),
    )
    if free is not None and needed > free:
        raise ValueError(
            f"{folder}: about {needed / 1e9:.1f} GB of memory are needed, {free / 1e9:.1f} GB are free on {provider}; export "
            "with a smaller --capacity or --precision"
        )


def rows_that_fit(folder: Path, manifest: Manifest, provider: str, wanted: int) -> int:
    """How many texts' caches there are, 1..wanted: all of them may take half of the memory that the model leaves free."""
    free = available_bytes(provider)
    if free is None:
        return wanted
    one, two = (needed_bytes(folder, manifest, provider, plain=False, sampled=True, batch_size=n) for n in (1, 2))
    return max(1, min(wanted, 1 + int(max(0, free - one) / 2) // (two - one)))
