"""A draft vocabulary in exported graphs: the same drafts as MLX, the same text as plain decoding."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.decode import decoded
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.open import open_folder
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.rounds import StepBackend

PROMPTS = [[9, 4, 7], list(range(30)), [5]]


@pytest.mark.parametrize(("family", "size"), [("llama-tied", 10), ("qwen3", 60), ("llama-tied", VOCAB)])
def test_both_layouts(family: str, size: int, tmp_path: Path) -> None:
    drafts = sorted(np.random.default_rng(1).choice(VOCAB, size, replace=False).tolist())
    base = write_base(tmp_path / "base", FAMILIES[family], scale=2.0)
    checkpoint = write_checkpoint(tmp_path / "heads", base, 3, noise=0.02, draft_tokens=drafts)
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, tmp_path / layout, ExportOptions(layout=layout))
        assert read_manifest(tmp_path / layout).draft_vocab == size
    fused, split = (
        open_folder(tmp_path / name, provider="cpu", num_threads=1, fixed_rounds=True) for name in ("fused", "split")
    )
    plain = open_folder(tmp_path / "fused", provider="cpu", plain=True, num_threads=1)
    model, heads, _ = load_checkpoint(checkpoint)
    for prompt in PROMPTS:
        ours = decoded(StepBackend(MLXModel(model, heads)), prompt, 50)
        assert decoded(split, prompt, 50) == ours
        tokens, accepted = decoded(fused, prompt, 50)
        assert tokens == ours[0] == decoded(plain, prompt, 50)[0]
        if len(prompt) >= 3:
            assert accepted == ours[1]


def test_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    export_checkpoint(write_checkpoint(tmp_path / "heads", base), tmp_path / "onnx")
    file = tmp_path / "onnx" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 1}))
    with pytest.raises(ValueError, match=r"format_version: got 1, expected 4\.\.9; export the checkpoint again"):
        open_folder(tmp_path / "onnx", provider="cpu")
