"""mlx-lm's quantised copies of mixtures, whose tensors have other names, in ONNX graphs: the logits of MLX."""

from pathlib import Path

import numpy as np
import pytest
from family_models import build
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import write_quantised

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.options.export import ExportOptions

NAMES = ["lfm2-moe", *(pytest.param(n, marks=pytest.mark.slow) for n in ("glm4-moe", "qwen3.5-moe", "granite4-moe"))]


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_copy(name: str, tmp_path: Path) -> None:
    model = build(name, tmp_path / "model")
    base = write_quantised(tmp_path / "base", model.folder, 4)
    export_checkpoint(base, tmp_path / "onnx", ExportOptions())
    plain = open_folder(tmp_path / "onnx", provider="cpu", plain=True, num_threads=1)
    assert isinstance(plain, PlainBackend)
    expected = MLXModel(load_base(str(base), dequantize=True), None).logits(model.tokens)
    np.testing.assert_allclose(plain.logits(model.tokens), expected, atol=1e-4)
