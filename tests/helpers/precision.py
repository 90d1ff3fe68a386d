"""What the tests of exported precisions share: tiny models, what lies in a folder, what it computes."""

from pathlib import Path

import numpy as np
import onnx
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import LLAMA, VOCAB

SMALL = LLAMA | {"num_hidden_layers": 1}
TEXT = np.random.default_rng(0).integers(0, VOCAB, 40).tolist()


def initializers(file: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t, str(file.parent)) for t in onnx.load(str(file)).graph.initializer}


def unpacked(stored: dict[str, np.ndarray], stem: str) -> np.ndarray:
    """The matrix that the integers of `stem` stand for, float64 [N, K]; written out independently of the exporter."""
    data, scales, zeros = (stored[f"{stem}.{part}"] for part in ("weight", "scales", "zero_points"))
    rows, groups = scales.shape
    if data.shape[2] * groups < stored_width(stored, stem):  # 4 bits, two to a byte
        data, zeros = (np.stack([a & 15, a >> 4], -1).reshape(rows, -1) for a in (data.reshape(rows, -1), zeros))
    assert data.dtype == zeros.dtype == np.uint8
    steps = data.reshape(rows, groups, -1).astype(np.float64) - zeros[:, :groups, None]
    residual = stored.get(f"{stem}.residual", np.zeros((rows, groups)))
    return (steps * scales[..., None].astype(np.float64) + residual[..., None].astype(np.float64)).reshape(rows, -1)


def stored_width(stored: dict[str, np.ndarray], stem: str) -> int:
    """Inputs of the matrix: the width of what feeds it."""
    width = stored["model.norm.weight"].shape[0]
    return {"down_proj": 2 * width, "eh_proj": 2 * width}.get(stem.rpartition(".")[2], width)


def plain_logits(folder: Path, tokens: list[int] = TEXT) -> np.ndarray:
    plain = open_folder(folder, provider="cpu", plain=True, num_threads=1)
    assert isinstance(plain, PlainBackend)
    return plain.logits(tokens)
