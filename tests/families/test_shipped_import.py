"""Heads that published models ship (Qwen3.5's `mtp.*`, GLM-4.5's further layer): once imported they loop, train, decode exactly
and go back. (That they compute what transformers computes: test_families_shipped.py.)"""

import json
from pathlib import Path

import numpy as np
import pytest
from family_models import REFERENCES, TOLERANCE, build, head_logits
from helpers.decode import oracle, text

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.cli import main
from mtpd_mlx.families.stored import read_base
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.speculative.rounds import StepBackend

SHIPPED = {"qwen3.5": "mtp", "qwen3.5-moe": "mtp", "qwen3-next": "mtp", "glm4-moe": "nextn"}
SHIPPED |= {"nemotron3": "nemotron", "nemotron3-latent": "nemotron"}
SLOW = ("qwen3.5-moe", "qwen3-next", "nemotron3")  # what test_families_shipped.py and their sisters leave over
ALL = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SHIPPED]
STEPS = ["--max-seq-length", "24", "--batch-size", "2", "--warmup", "1", "--steps-per-eval", "3", "--val-batches", "1"]


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) in (0, 3), arguments


def test_beside_vision_too(tmp_path: Path) -> None:
    """As Qwen3.5 is published: the language model inside, its head outside."""
    reference = build("qwen3.5", tmp_path / "text", shipped=True)
    nested = build("qwen3.5", tmp_path / "model", shipped=True).folder
    source = RawTensors([reference.folder / "model.safetensors"])
    renamed = {n.replace("model.", "model.language_model.", 1) if n.startswith("model.") else n: source[n] for n in source}
    write_raw(nested / "model.safetensors", renamed)
    (nested / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": reference.config}))
    run("import-heads", nested, "--out", tmp_path / "heads")
    expected = np.load(REFERENCES / "qwen3.5.npz")["shipped"]
    np.testing.assert_allclose(head_logits(tmp_path / "heads", reference.tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("prefix", ["mtp.layers.0.", "model.layers.3."])
def test_fused_experts_of_one_and_single_ones_of_the_other(prefix: str, tmp_path: Path) -> None:
    """Of Qwen3.5 MoE: experts in one tensor, as published, in the head alone or in the base alone."""
    reference = build("qwen3.5-moe", tmp_path / "model", shipped=True)
    file = reference.folder / "model.safetensors"
    source, stem = RawTensors([file]), f"{prefix}mlp.experts."
    held = {name: source[name] for name in source}
    alone = {name: held.pop(name).bits for name in source if name.startswith(stem)}
    parts = {
        n: np.stack([alone[f"{stem}{e}.{n}.weight"] for e in range(len(alone) // 3)])
        for n in ("gate_proj", "up_proj", "down_proj")
    }
    held[f"{stem}gate_up_proj"] = Raw("F32", np.concatenate([parts["gate_proj"], parts["up_proj"]], axis=1))
    held[f"{stem}down_proj"] = Raw("F32", parts["down_proj"])
    write_raw(file, held)
    run("import-heads", reference.folder, "--out", tmp_path / "heads")
    expected = np.load(REFERENCES / "qwen3.5-moe.npz")["shipped"]
    np.testing.assert_allclose(head_logits(tmp_path / "heads", reference.tokens), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ALL)
def test_it_loops_trains_and_decodes_exactly(name: str, tmp_path: Path, text_data: Path) -> None:
    """1 -> 4 -> 8 by copying, then MTP-D."""
    reference = build(name, tmp_path / "model", shipped=True)
    one, four, eight, tuned = (tmp_path / word for word in ("one", "four", "eight", "tuned"))
    run("import-heads", reference.folder, "--out", one)
    run("extend", one, "--to", 4, "--train-free", "--out", four)
    run("extend", four, "--to", 8, "--train-free", "--out", eight)
    run("refit", one, "--model", reference.folder, "--data", text_data, "--iters", 3, *STEPS, "--out", tuned)
    for checkpoint, count in ((one, 1), (eight, 8), (tuned, 1)):
        base, heads, _ = load_checkpoint(checkpoint)
        assert heads.num_heads == count
        for prompt in (reference.tokens[:9], [5, 6, 7]):
            assert text(StepBackend(MLXModel(base, heads)), prompt, 24) == oracle(base, prompt, 24)


@pytest.mark.parametrize("name", ALL)
def test_it_goes_back_as_it_came(name: str, tmp_path: Path) -> None:
    reference = build(name, tmp_path / "model", shipped=True)
    run("import-heads", reference.folder, "--out", tmp_path / "heads")
    run("export-heads", tmp_path / "heads", "--format", SHIPPED[name], "--out", tmp_path / "served")
    before, after = (RawTensors([tmp_path / place / "model.safetensors"]) for place in ("model", "served"))
    assert set(after) == json.loads((REFERENCES / f"{name}.json").read_text())["shipped"].keys()
    for tensor in after:
        np.testing.assert_allclose(after[tensor].floats(), before[tensor].floats(), rtol=0, atol=1e-6, err_msg=tensor)


@pytest.mark.parametrize("added", [0.0, 1.0])
def test_what_a_conversion_added_to_the_norms_is_seen(added: float, tmp_path: Path) -> None:
    """The base as mlx-lm converts it (norms with 1, other convolutions); the head's norms with and without."""
    from mlx_lm.utils import save_model

    reference = build("qwen3.5", tmp_path / "model", shipped=True)
    run("import-heads", reference.folder, "--out", tmp_path / "heads")
    base, _, _ = load_checkpoint(tmp_path / "heads")
    converted = tmp_path / "converted"
    save_model(converted, base.model)
    (converted / "config.json").write_text(json.dumps(reference.config))
    (converted / "model.safetensors.index.json").unlink(missing_ok=True)
    heads = RawTensors([reference.folder / "model.safetensors"])
    norm = lambda raw: Raw.of_floats(raw.floats() + np.float32(added))  # noqa: E731
    own = {n: norm(heads[n]) if len(heads[n].bits.shape) == 1 else heads[n] for n in heads if n.startswith("mtp.")}
    stored = RawTensors([converted / "model.safetensors"])
    write_raw(converted / "model.safetensors", {n: stored[n] for n in stored} | own)
    read_base(converted)
    run("import-heads", converted, "--out", tmp_path / "again")
    assert read_config(tmp_path / "again").record["imported"].get("norms_left_out", [0.0]) == [1.0 - added]
    expected = np.load(REFERENCES / "qwen3.5.npz")["shipped"]
    np.testing.assert_allclose(head_logits(tmp_path / "again", reference.tokens), expected, rtol=0, atol=TOLERANCE)
