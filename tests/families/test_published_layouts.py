"""Layouts of published checkpoints that transformers reads and does not write: the same logits as from those it writes."""

from pathlib import Path

import numpy as np
import pytest
from family_models import TOLERANCE, build

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import flatten
from mtpd_mlx.model.runtime import mx

WEIGHTS = "model.safetensors"


def test_qwen3_5_moe_with_fused_experts(tmp_path: Path) -> None:
    reference = build("qwen3.5-moe", tmp_path / "base")
    tensors = dict(mx.load(str(reference.folder / WEIGHTS)))
    experts, layers = reference.config["num_experts"], reference.config["num_hidden_layers"]
    for layer in range(layers):
        stem = f"model.layers.{layer}.mlp.experts."

        def stacked(part: str, stem: str = stem) -> mx.array:
            return mx.stack([tensors.pop(f"{stem}{e}.{part}.weight") for e in range(experts)])

        tensors[f"{stem}gate_up_proj"] = mx.concatenate([stacked("gate_proj"), stacked("up_proj")], axis=1)
        tensors[f"{stem}down_proj"] = stacked("down_proj")
    named = {name.replace("model.", "model.language_model.", 1): w for name, w in tensors.items()}
    mx.save_safetensors(str(reference.folder / WEIGHTS), named)
    assert describe(LocalView(reference.folder))["supported"]
    logits = MLXModel(load_base(str(reference.folder)), None).logits(reference.tokens)
    np.testing.assert_allclose(logits, reference.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3-next", "lfm2", "granite4", "granite4-moe", "nemotron3"])
def test_as_mlx_lm_stores_it(name: str, tmp_path: Path) -> None:
    """Norms that are stored less 1 are so in one layout alone; convolutions lie otherwise; experts are stacked."""
    reference = build(name, tmp_path / "base")
    identity = fingerprint_base(reference.folder)
    mx.save_safetensors(str(reference.folder / WEIGHTS), flatten(load_base(str(reference.folder)).model))
    assert fingerprint_base(reference.folder) != identity
    assert describe(LocalView(reference.folder))["supported"]
    logits = MLXModel(load_base(str(reference.folder)), None).logits(reference.tokens)
    np.testing.assert_allclose(logits, reference.logits, rtol=0, atol=TOLERANCE)
