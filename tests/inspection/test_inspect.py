"""mtpd inspect: counts that MLX confirms, every kind of folder, one line where something is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cache import TOP_N, arguments
from mtpd_onnx.export.export import export_checkpoint
from tiny import FAMILIES, LLAMA, write_base, write_quantised

from mtpd_mlx.cli import main
from mtpd_mlx.families.config import read_dims
from mtpd_mlx.families.multimodal import text_config, text_name
from mtpd_mlx.families.shapes import contradiction, expected
from mtpd_mlx.files.safetensors import Raw, write_raw
from mtpd_mlx.inspection.counts import head_parameters
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.load_save import flatten
from mtpd_mlx.teacher_cache.format import read_index

GEMMA3 = LLAMA | {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "sliding_window": 8}
MORE = {"gemma3": GEMMA3, "olmo2": LLAMA | {"model_type": "olmo2"}, "phi3": LLAMA | {"model_type": "phi3"}}
MORE |= {"granite": LLAMA | {"model_type": "granite"}, "smollm3": LLAMA | {"model_type": "smollm3"}}
MORE |= {"mixtral": LLAMA | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}}


def found(name: str, capsys: pytest.CaptureFixture, *more: str) -> dict:
    capsys.readouterr()
    assert main(["inspect", name, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_counts_are_mlx_s(family: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = load_base(str(write_base(tmp_path, (FAMILIES | MORE)[family])))
    seen = found(str(tmp_path), capsys)
    assert seen["supported"] and seen["shipped_heads"] is None
    assert seen["parameters"] == sum(w.size for w in flatten(base.model).values())
    assert seen["weight_bytes"] == sum(w.nbytes for w in flatten(base.model).values())
    heads = init_heads(base, 1, "postnorm", 0)
    assert seen["needs"]["head_parameters"] == head_parameters(base.dims) == sum(w.size for w in flatten(heads).values())
    cache = base.make_cache()
    import mtpd_mlx.model.runtime as runtime

    base.trunk(runtime.mx.array([[1, 2, 3]]), cache)
    used = sum(2 * c.keys[..., :1, :].nbytes for c in cache)
    assert seen["caches"]["bytes_per_position"] == used


@pytest.mark.parametrize(
    ("quantization", "word"),
    [
        ({"bits": 4, "group_size": [32]}, "group_size: got '[32]'"),
        ({"bits": 4, "group_size": float("inf")}, "group_size: got 'inf'"),
        ({"bits": 4, "group_size": 32, "model.layers.0.mlp.up_proj": {"group_size": None}}, "group_size: got 'None'"),
        ({"bits": "4", "group_size": 32}, "bits: got '4'"),
        ({"bits": 4, "group_size": 32, "model.embed_tokens": {"bits": {}}}, "bits: got '{}'"),
    ],
)
def test_quantisation_that_says_nothing(quantization: dict, word: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_quantised(tmp_path / "q", write_base(tmp_path / "plain"), 4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization": quantization}))
    assert main(["inspect", str(folder)]) == 1
    assert f"error: quantization: {word}" in capsys.readouterr().err
    (folder / "config.json").write_text(json.dumps(config | {"quantization": "4 bits"}))
    assert main(["inspect", str(folder)]) == 0
    assert "not supported: config.json: quantization: got '4 bits', expected an object" in capsys.readouterr().out


def test_quantised_models_count_what_they_stand_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plain = write_base(tmp_path / "plain")
    whole = found(str(plain), capsys)["parameters"]
    for bits in (3, 4, 8):
        seen = found(str(write_quantised(tmp_path / str(bits), plain, bits)), capsys)
        assert seen["parameters"] == whole and seen["quantization"]["bits"] == [bits]


def test_every_kind_of_folder(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "onnx")
    for folder, kind, word in (
        (tiny_base, "model", "to train 4 heads"),
        (tiny_checkpoint, "heads", "3 heads (postnorm)"),
        (tmp_path / "onnx", "onnx", "layout fused"),
        (tmp_path, "unknown", "nothing that mtpd knows"),
    ):
        assert found(str(folder), capsys)["kind"] == kind
        assert main(["inspect", str(folder)]) == 0
        assert word in capsys.readouterr().out


def test_a_cache_says_what_is_in_it(tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(tiny_base, text_data, tmp_path / "cache")) == 0
    seen = found(str(tmp_path / "cache"), capsys)
    index = read_index(tmp_path / "cache")
    assert seen["kind"] == "cache" and seen["complete"] and seen["base"]["fingerprint"] == index.base.fingerprint
    shards = [file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors")]
    assert sum(split["bytes"] for split in seen["splits"].values()) == sum(shards)
    assert main(["inspect", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out
    for word in (f"the {TOP_N} best logits", "rows of 32 tokens", "train: ", "valid: ", "mtpd train --cache", "(llama, sha"):
        assert word in said, word
    unfinished = json.loads((tmp_path / "cache" / "cache.json").read_text())
    unfinished["splits"]["train"]["shards"].pop()
    (tmp_path / "cache" / "cache.json").write_text(json.dumps(unfinished))
    assert main(["inspect", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out
    assert "of them finished" in said and "--resume" in said


def test_an_adapter_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lora = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    values = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora, "model": "me/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    named = {f"model.layers.0.self_attn.q_proj.{n}": Raw.of_floats(np.ones((64, 4))) for n in ("lora_a", "lora_b")}
    write_raw(tmp_path / "adapters.safetensors", named)
    seen = found(str(tmp_path), capsys)
    assert seen["kind"] == "adapter" and seen["parameters"] == 512 and seen["rank"] == 4 and seen["weight_bytes"] == 2048
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for word in ("lora, rank 4, scale 2.0, last 2 layers (self_attn.q_proj)", "2.05 kB (float32)", "made for me/base"):
        assert word in said, word
    (tmp_path / "adapters.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert "adapter of peft" in found(str(tmp_path), capsys)["why_not"]


@pytest.mark.parametrize("file", ["cache.json", "adapter_config.json"])
def test_odd_values_are_no_traceback(file: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for values in ({}, {"base": 3, "splits": [1]}, {"splits": {"train": {"rows": "x", "shards": [4]}}}, {"model": 3}):
        (tmp_path / file).write_text(json.dumps(values))
        assert main(["inspect", str(tmp_path)]) == 0
        assert main(["inspect", str(tmp_path), "--json"]) == 0
    capsys.readouterr()


def test_why_not(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    seen = found(str(base), capsys)
    assert not seen["supported"] and "mamba" in seen["why_not"]
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "pickled" in found(str(base), capsys)["why_not"]


REFERENCES = sorted((Path(__file__).parent.parent / "families" / "references").glob("*.json"))


@pytest.mark.parametrize("file", REFERENCES, ids=lambda file: file.stem)
def test_shapes_are_those_of_transformers(file: Path) -> None:
    """Every tensor that a family's checkpoint holds is expected, and with its shape, and no other."""
    record = json.loads(file.read_text())
    table = {text_name(n): {"shape": s} for n, s in record["shapes"].items() if text_name(n) is not None}
    dims = read_dims(text_config(record["config"]), tied="lm_head.weight" not in table)
    assert contradiction(table, dims) is None
    assert {name for name, _ in expected(dims, table)} == set(table)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": 32}, "model.embed_tokens.weight: got shape [97, 64], config.json says [97, 32]"),
        ({"vocab_size": 96}, "config.json says [96, 64]"),
        ({"num_hidden_layers": 3}, "missing key 'model.layers.2.input_layernorm.weight'"),
        ({"num_key_value_heads": 4}, "k_proj.weight: got shape [32, 64], config.json says [64, 64]"),
        ({"intermediate_size": 130}, "config.json says [130, 64]"),
        ({"attention_bias": True}, "missing key 'model.layers.0.self_attn.q_proj.bias'"),
        ({"tie_word_embeddings": False}, "missing key 'lm_head.weight'"),
    ],
)
@pytest.mark.parametrize("quantised", [False, True])
def test_weights_that_contradict_the_config_are_not_called_supported(
    change: dict, word: str, quantised: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = write_base(tmp_path / "base")
    if quantised:
        base = write_quantised(tmp_path / "q", base, 4)
    assert found(str(base), capsys)["supported"]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    seen = found(str(base), capsys)
    assert not seen["supported"] and word in seen["why_not"]
    with pytest.raises(ValueError):
        load_base(str(base))


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, more in (("./nowhere", ()), (str(tmp_path), ("--num-heads", "0"))):
        assert main(["inspect", name, *more]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_damage_is_a_value_error(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_base, tmp_path / "cut"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-4])
    with pytest.raises(ValueError, match="truncated"):
        describe(LocalView(folder))
