"""Rotary tables against mlx_lm's own rope, and scaled models end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtpd_onnx.dims import read_dims
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.graphs.rope import rope_tables
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import LLAMA, VOCAB, write_base, write_checkpoint

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base

SCALINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-mscale": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 16}
    | {"beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 0.3},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_rotate_as_mlx_lm_does(name: str, tmp_path: Path) -> None:
    from mlx_lm.models.rope_utils import initialize_rope

    from mtpd_mlx.model.runtime import mx

    dims = read_dims(write_base(tmp_path, LLAMA | {"rope_scaling": SCALINGS[name]}))
    positions, half = 200, dims.head_dim // 2
    x = np.random.default_rng(0).normal(size=(1, 1, positions, dims.head_dim)).astype(np.float32)
    rope = initialize_rope(dims.head_dim, dims.rope_theta, False, SCALINGS[name], dims.context_length)
    cos, sin = rope_tables(dims, positions)
    a, b = x[..., :half], x[..., half:]
    ours = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    np.testing.assert_allclose(ours, np.array(rope(mx.array(x))), atol=2e-4)


@pytest.mark.parametrize("name", ["linear", "yarn-mscale"])
def test_scaled_models_have_the_logits_of_mlx(name: str, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", LLAMA | {"rope_scaling": SCALINGS[name]}, scale=2.0)
    export_checkpoint(write_checkpoint(tmp_path / "heads", folder, 1), tmp_path / "out")
    plain = open_folder(tmp_path / "out", provider="cpu", plain=True, num_threads=1)
    assert isinstance(plain, PlainBackend)
    text = np.random.default_rng(1).integers(0, VOCAB, 120).tolist()
    expected = MLXModel(load_base(str(folder)), None).logits(text)
    np.testing.assert_allclose(plain.logits(text), expected, atol=2e-4)


def test_other_scalings_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_base(tmp_path)
    config = (folder / "config.json").read_text()
    for bad, word in (
        ('"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}', "dynamic"),
        ('"rope_traditional": true', "rope_traditional"),
        ('"sliding_window": 64', "sliding_window"),
    ):
        (folder / "config.json").write_text(config.rstrip()[:-1] + ", " + bad + "}")
        with pytest.raises(ValueError, match=word) as error:
            read_dims(folder)
        assert "\n" not in str(error.value)
