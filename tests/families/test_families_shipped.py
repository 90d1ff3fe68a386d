"""Every family's heads in the layouts of published checkpoints: ours go out and come back, its own come in."""

import json
from pathlib import Path

import numpy as np
import pytest
from family_models import REFERENCES, TOLERANCE, Reference, build, head_logits
from tiny import write_checkpoint

from mtpd_mlx.checkpoints.shipped.read import import_heads
from mtpd_mlx.checkpoints.shipped.vllm import FAMILIES as VLLM_FAMILIES
from mtpd_mlx.checkpoints.shipped.write import export_heads
from mtpd_mlx.files.safetensors import RawTensors


def same_tensors(one: Path, other: Path) -> bool:
    a, b = (RawTensors([folder / "heads.safetensors"]) for folder in (one, other))
    return set(a) == set(b) and all(np.array_equal(a[name].bits, b[name].bits) for name in a)


def test_heads_out_and_in(reference: Reference, checkpoint: Path, tmp_path: Path) -> None:
    """Of a checkpoint that is more than a language model: refused. Of blocks of one branch: one head, a layout of its own."""
    layout, count = "nextn", 2
    if one_branch := reference.config["model_type"] == "nemotron_h":
        layout, count = "nemotron", 1
        checkpoint = write_checkpoint(tmp_path / "mine", reference.folder, 1, noise=0.3)
    if one_branch or "text_config" in reference.config:
        with pytest.raises(ValueError, match="blocks are of one branch" if one_branch else "multimodal"):
            export_heads(checkpoint, reference.folder, tmp_path / "out")
    if "text_config" in reference.config:
        return
    export_heads(checkpoint, reference.folder, tmp_path / "out", layout)
    found = import_heads(tmp_path / "out", tmp_path / "in", str(reference.folder), base=reference.folder)
    assert (found["format"], found["heads"]) == (layout, count)
    assert same_tensors(checkpoint, tmp_path / "in")


def test_heads_for_vllm(reference: Reference, checkpoint: Path, tmp_path: Path) -> None:
    """Written for the families that the plug-in has blocks of, refused in one line for every other, nothing left behind."""
    config = reference.config
    fits = config["model_type"] in VLLM_FAMILIES and not config.get("sliding_window")
    if not fits:
        words = "multimodal|blocks are of one branch|got a base of the family|got a base with sliding windows"
        with pytest.raises(ValueError, match=words) as refused:
            export_heads(checkpoint, reference.folder, tmp_path / "out", "vllm")
        assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()
        return
    export_heads(checkpoint, reference.folder, tmp_path / "out", "vllm")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == ["MTPDHeads"] and told["mtpd_base"]["model_type"] == config["model_type"]
    import_heads(tmp_path / "out", tmp_path / "in", str(reference.folder), base=reference.folder)
    assert same_tensors(checkpoint, tmp_path / "in")


def test_own_heads_in(reference: Reference, tmp_path: Path) -> None:
    """Of families whose published models ship heads."""
    if reference.config["model_type"] == "mimo":  # transformers has no class of it
        mine = write_checkpoint(tmp_path / "mine", reference.folder, 1, noise=0.3)
        export_heads(mine, reference.folder, tmp_path / "model", "mimo", with_base=True)
        assert import_heads(tmp_path / "model", tmp_path / "heads", str(tmp_path / "model"))["format"] == "mimo"
        assert same_tensors(mine, tmp_path / "heads")
    if "shipped" in json.loads((REFERENCES / f"{reference.name}.json").read_text()):
        model = build(reference.name, tmp_path / "model", shipped=True).folder
        assert import_heads(model, tmp_path / "heads", str(model))["heads"] == 1
        expected = np.load(REFERENCES / f"{reference.name}.npz")["shipped"]
        np.testing.assert_allclose(head_logits(tmp_path / "heads", reference.tokens), expected, rtol=0, atol=TOLERANCE)
