"""config.json from metadata that files of these architectures may have in several forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gguf_models import write_source

from mtpd_mlx.checkpoints.gguf.config import model_config
from mtpd_mlx.checkpoints.gguf.reader import Gguf, Tensor, read_gguf
from mtpd_mlx.families.layers import FULL, SLIDING


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gguf]:
    folder = tmp_path_factory.mktemp("config")
    for family in ("llama", "gemma3"):
        (folder / family).mkdir()
    return {name: read_gguf(write_source(name, folder / name, lambda _: "F16").file) for name in ("llama", "gemma3")}


def changed(source: Gguf, change: dict[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in (source.metadata | change).items() if value is not None}
    return model_config(Gguf(source.file, metadata, source.tensors))


def test_gemmas_windows(sources: dict[str, Gguf]) -> None:
    key, source = "gemma3.attention.sliding_window_pattern", sources["gemma3"]
    assert changed(source, {})["layer_types"] == [SLIDING] * 5 + [FULL, SLIDING]
    assert changed(source, {key: 3})["layer_types"] == [SLIDING, SLIDING, FULL] * 2 + [SLIDING]
    flags = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    assert changed(source, {key: flags})["layer_types"] == [SLIDING if flag else FULL for flag in flags]
    with pytest.raises(ValueError, match="sliding_window_pattern: got 6 flags, expected 7"):
        changed(source, {key: flags[:6]})
    with pytest.raises(ValueError, match=r"missing key 'gemma3.attention.sliding_window'"):
        changed(source, {"gemma3.attention.sliding_window": None})


def test_gemmas_scales(sources: dict[str, Gguf]) -> None:
    """The 27B, known by its 62 layers, scales queries by its width over its heads; local layers may have a theta."""
    source = sources["gemma3"]
    assert changed(source, {})["query_pre_attn_scalar"] == 32
    assert changed(source, {"gemma3.block_count": 62})["query_pre_attn_scalar"] == 16
    assert changed(source, {})["rope_local_base_freq"] == 10000
    assert changed(source, {"gemma3.rope.freq_base_swa": 5e3})["rope_local_base_freq"] == 5000


def test_a_value_per_layer_is_one_where_they_are_equal(sources: dict[str, Gguf]) -> None:
    key = "llama.attention.head_count_kv"
    assert changed(sources["llama"], {key: np.array([2, 2], "<i4")})["num_key_value_heads"] == 2
    assert changed(sources["llama"], {key: None})["num_key_value_heads"] == 4
    with pytest.raises(ValueError, match="head_count_kv: got 2 values, expected a whole number"):
        changed(sources["llama"], {key: np.array([2, 4], "<i4")})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"type": "linear", "factor": 1.0}, None),
        (
            {"type": "yarn", "factor": 2.5, "original_context_length": 64, "yarn_beta_fast": 16.0},
            {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 64, "beta_fast": 16.0},
        ),
    ],
)
def test_rope_scaling(change: dict[str, Any], expected: dict[str, Any] | None, sources: dict[str, Gguf]) -> None:
    found = changed(sources["llama"], {f"llama.rope.scaling.{name}": value for name, value in change.items()})
    assert found["rope_scaling"] == expected


@pytest.mark.parametrize("name", ["attn_factor", "yarn_ext_factor", "yarn_log_multiplier"])
def test_yarn_of_other_kinds_is_refused(name: str, sources: dict[str, Gguf]) -> None:
    yarn = {"type": "yarn", "factor": 2.0, "original_context_length": 64, name: 0.5}
    with pytest.raises(ValueError, match=name):
        changed(sources["llama"], {f"llama.rope.scaling.{key}": value for key, value in yarn.items()})


def test_factors_of_one_are_no_scaling(sources: dict[str, Gguf]) -> None:
    source = sources["llama"]
    ones = Tensor("rope_freqs.weight", "F32", (8,), np.ones(8, np.float32).view(np.uint8))
    assert model_config(Gguf(Path("x"), source.metadata, source.tensors | {ones.name: ones}))["rope_scaling"] is None


def test_numbers_are_the_shortest_that_are_meant(sources: dict[str, Gguf]) -> None:
    found = changed(sources["llama"], {"llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5))})
    assert found["rms_norm_eps"] == 1e-5
