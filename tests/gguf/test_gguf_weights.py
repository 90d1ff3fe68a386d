"""Imported weights: the published integers, and the logits that mlx-lm computes of the values they stand for."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from helpers.gguf_models import FAMILIES, Source, edit, llama_order, read_json, write_source

from mtpd_mlx.checkpoints.gguf.quants import affine, block_of, floats, packed
from mtpd_mlx.checkpoints.gguf.reader import Tensor, read_gguf
from mtpd_mlx.checkpoints.gguf.write import import_gguf
from mtpd_mlx.files.safetensors import RawTensors

MIXED = {"q_proj": "Q4_0", "k_proj": "Q4_1", "v_proj": "Q8_0", "down_proj": "Q8_0", "embed_tokens": "Q8_0", "lm_head": "Q4_0"}
TOKENS = [[5, 40, 2, 61, 7, 7, 90, 33, 12, 58, 3, 3, 3, 80, 21, 66]]


def mixed(name: str) -> str:
    """Exact types of all three kinds, and one that has no layout."""
    return next((kind for part, kind in MIXED.items() if part in name), "Q5_0" if "o_proj" in name else "Q4_1")


def always(kind: str) -> Callable[[str], str]:
    return lambda name: kind


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return write_source(request.param, tmp_path_factory.mktemp(request.param), mixed)


def by_mlx_lm(folder: Path) -> np.ndarray:
    """Logits in float32, as mlx-lm loads and computes them."""
    from mtpd_mlx.model.runtime import mx  # isort: skip
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(TOKENS)))


def by_us(folder: Path) -> np.ndarray:
    from mtpd_mlx.model.base import load_base
    from mtpd_mlx.model.runtime import mx

    base, tokens = load_base(str(folder), dtype=mx.float32), mx.array(TOKENS)
    return np.array(base.logits(base.norm(base.trunk(tokens))))


@pytest.mark.parametrize("dequantize", [False, True], ids=["exact", "dequantised"])
def test_logits_are_those_of_the_published_values(source: Source, dequantize: bool, tmp_path: Path) -> None:
    import_gguf(source.file, tmp_path / "out", dequantize)
    expected = by_us(source.folder)
    if "rope_scaling" not in source.config and source.config["model_type"] != "gemma3_text":  # there mlx-lm reads otherwise
        assert np.abs(by_mlx_lm(source.folder) - expected).max() < 1e-4
        assert np.abs(by_mlx_lm(tmp_path / "out") - expected).max() < 1e-3
    assert np.ptp(expected) > 1
    rounded = source.config["model_type"] == "gemma3_text" and dequantize  # to bfloat16
    assert np.abs(by_us(tmp_path / "out") - expected).max() < (0.02 * np.ptp(expected) if rounded else 1e-3)


def test_integers_are_the_published_ones(source: Source, tmp_path: Path) -> None:
    """Unpacked by MLX, against the file's blocks by the gguf package."""
    from mtpd_mlx.model.runtime import mx

    import_gguf(source.file, tmp_path / "out")
    arrays = mx.load(str(tmp_path / "out" / "model.safetensors"))
    values = mx.load(str(source.folder / "model.safetensors"))
    quantization = read_json(tmp_path / "out" / "config.json")["quantization"]
    kept = 0
    for name, kind in source.kinds.items():
        if kind not in ("Q4_0", "Q4_1", "Q8_0"):
            continue
        stem = name.removesuffix(".weight")
        bits = quantization.get(stem, quantization)["bits"]
        assert bits == (8 if kind == "Q8_0" else 4)
        scales, biases = (arrays[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        got = mx.dequantize(arrays[name], scales, biases, group_size=32, bits=bits)
        np.testing.assert_allclose(np.array(got), np.array(values[name]), rtol=1e-6, atol=1e-7)
        kept += 1
    assert kept == sum(kind in ("Q4_0", "Q4_1", "Q8_0") for kind in source.kinds.values()) > 8


def test_config_says_what_the_original_says(source: Source, tmp_path: Path) -> None:
    from mtpd_mlx.families.config import read_dims

    import_gguf(source.file, tmp_path / "out", dequantize=True)
    found, original = (read_dims(c) for c in (read_json(tmp_path / "out" / "config.json"), source.config))
    assert found == original


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_any_block_is_exact(kind: str) -> None:
    """Random bytes with a sane scale; the gguf package as oracle."""
    rng, (length, size) = np.random.default_rng(1), block_of(kind)
    raw = rng.integers(0, 256, (6, 5, size), dtype=np.uint8)
    raw[..., 0:2] = rng.normal(0, 1, (6, 5, 1)).astype("<f2").view(np.uint8).reshape(6, 5, 2)
    if kind == "Q4_1":
        raw[..., 2:4] = rng.normal(0, 1, (6, 5, 1)).astype("<f2").view(np.uint8).reshape(6, 5, 2)
    tensor = Tensor("x", kind, (6, 5 * length), raw.reshape(-1))
    expected = dequantize(raw.reshape(6, -1), gguf.GGMLQuantizationType[kind])
    found = affine(tensor)
    again = found.scales.astype(np.float32).repeat(32, 1) * found.q + found.biases.astype(np.float32).repeat(32, 1)
    np.testing.assert_array_equal(again, expected)
    np.testing.assert_array_equal(floats(tensor), expected)
    words, per = packed(found.q, found.bits), 32 // found.bits
    unpacked = words[..., None] >> (np.arange(per, dtype=np.uint32) * found.bits) & ((1 << found.bits) - 1)
    np.testing.assert_array_equal(unpacked.reshape(6, -1), found.q)


@pytest.mark.parametrize(
    "kind", ["F16", "BF16", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "TQ1_0"]
)
def test_other_types_are_dequantised_by_the_package(kind: str) -> None:
    rng, (length, size) = np.random.default_rng(2), block_of(kind)
    raw = rng.integers(0, 48, (4, 2, size), dtype=np.uint8)  # any small float16 stays finite
    tensor = Tensor("x", kind, (4, 2 * length), raw.reshape(-1))
    expected = dequantize(raw.reshape(4, -1), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(floats(tensor), expected)


def test_rows_of_q_and_k_are_put_back(tmp_path: Path) -> None:
    """Of llama alone; of qwen2, whose file has them as they are, nothing moves."""
    for family, moved in (("llama", True), ("qwen2", False)):
        source = write_source(family, tmp_path / family, always("F16"), seed=3)
        import_gguf(source.file, tmp_path / family / "out")
        found = RawTensors.of_model(tmp_path / family / "out")["model.layers.1.self_attn.q_proj.weight"].floats()
        stored = floats(read_gguf(source.file).tensors["blk.1.attn_q.weight"])
        np.testing.assert_array_equal(llama_order(found, 4) if moved else found, stored)
        assert np.array_equal(found, stored) != moved


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("Q5_1", "F16"), ("Q8_0", "F16")]
)
def test_type_of_what_is_dequantised(kind: str, dtype: str, tmp_path: Path) -> None:
    source = write_source("llama", tmp_path, always(kind))
    made = import_gguf(source.file, tmp_path / "out", dequantize=True)
    assert {entry["dtype"] for entry in RawTensors.of_model(tmp_path / "out").table.values()} == {dtype}
    assert not made.exact and kind in str(made) and "quantization" not in read_json(tmp_path / "out" / "config.json")


def test_gemma_is_bfloat16_and_its_scales_float32(tmp_path: Path) -> None:
    source = write_source("gemma3", tmp_path, mixed)
    for name, dense, expected in (("dense", True, {"BF16"}), ("exact", False, {"F32", "U32"})):
        import_gguf(source.file, tmp_path / name, dense)
        assert {entry["dtype"] for entry in RawTensors.of_model(tmp_path / name).table.values()} == expected


def test_gemma_keeps_no_integers_for_a_few_matrices(tmp_path: Path) -> None:
    """Its scales are float32, and all else would have to be: bfloat16 for everything is smaller."""
    source = write_source("gemma3", tmp_path, lambda name: "Q8_0" if "v_proj" in name else "Q5_0")
    made = import_gguf(source.file, tmp_path / "out")
    assert made.dtype == "bfloat16" and not made.exact and made.dense["Q8_0"] == 7


def test_published_llama3_factors(tmp_path: Path) -> None:
    """Llama 3.2: 32 times from 8,192 positions, heads of 64, theta 500,000."""
    from helpers.gguf_models import LLAMA3, llama3_factors

    scaling = LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}
    source = write_source("llama3", tmp_path, always("F16"))

    def change(metadata: dict, tensors: dict) -> None:
        metadata["llama.rope.freq_base"] = 500000.0
        tensors["rope_freqs.weight"] = (
            llama3_factors({"head_dim": 32, "rope_theta": 500000.0}, scaling),
            gguf.GGMLQuantizationType.F32,
        )

    import_gguf(edit(source.file, tmp_path / "edited.gguf", change), tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["rope_scaling"] == scaling | {"rope_type": "llama3"}
