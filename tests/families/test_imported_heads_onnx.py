"""Heads that published models ship, imported and exported: both runtimes draft the same, the text is that of plain decoding."""

from pathlib import Path

import pytest
from family_models import build, prompts
from helpers.decode import decoded
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder

from mtpd_mlx.checkpoints.shipped.read import import_heads
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.rounds import StepBackend


@pytest.mark.parametrize("name", ["qwen3.5", "glm4-moe", pytest.param("qwen3-next", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", ["fused", "split"])
def test_shipped_heads_draft_alike(name: str, layout: str, tmp_path: Path) -> None:
    model = build(name, tmp_path / "model", shipped=True)
    import_heads(model.folder, tmp_path / "heads", str(model.folder))
    base, heads, _ = load_checkpoint(tmp_path / "heads")
    export_checkpoint(tmp_path / "heads", tmp_path / "onnx", ExportOptions(layout=layout))
    ours = open_folder(tmp_path / "onnx", provider="cpu", num_threads=1)
    plain = StepBackend(MLXModel(base, None))
    for prompt in prompts(model):
        found = decoded(ours, prompt)
        assert found == decoded(StepBackend(MLXModel(base, heads)), prompt)
        assert found[0] == decoded(plain, prompt, plain=True)[0]
