"""mtpd inspect of a config.json without weights: the same answer as with them, and the figures of published models."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import LLAMA, write_base, write_quantised

from mtpd_mlx.cli import main
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView

REFERENCES = Path(__file__).parent.parent / "families" / "references"
NAMES = sorted(file.stem for file in REFERENCES.glob("*.json"))
PUBLISHED = Path(__file__).parent / "published"
SAME = ("supported", "parameters", "weight_bytes", "dtypes", "quantization", "dims", "caches", "needs", "float16")


def alone(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return describe(LocalView(folder))


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_that_of_the_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REFERENCES.parent))
    from family_models import build

    reference = build(name, tmp_path / "whole")
    with_weights, without = describe(LocalView(reference.folder)), alone(reference.config, tmp_path / "alone")
    assert [with_weights[key] for key in SAME] == [without[key] for key in SAME]
    assert len(without["objections"]) == len(with_weights["objections"]) + 1


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 4, "mode": "mxfp4"}], ids=lambda o: o.get("mode", "affine"))
def test_of_quantised_models_too(options: dict[str, Any], tmp_path: Path) -> None:
    packed = write_quantised(tmp_path / "packed", write_base(tmp_path / "plain", LLAMA), **options)
    config = json.loads((packed / "config.json").read_text()) | {"dtype": "float32"}
    with_weights, without = describe(LocalView(packed)), alone(config, tmp_path / "alone")
    assert [with_weights[key] for key in SAME] == [without[key] for key in SAME]


# name in published/: (parameters, bytes of weights, cache bytes a position, parameters of one head), from the models' cards and
# from their dimensions by hand.
FIGURES = {
    # gated attention (16 heads of 256, 4 key heads) in 8 of 32 layers, delta nets in the others, tied: 4.21B in bfloat16
    "qwen3.5-4b": (4_205_751_296, 8_411_502_592, 32_768, 120_596_992),
    # 32 heads of 64, 8 key heads in 6 of 16 layers, feed-forward of 8192, tied: 1.17B in bfloat16
    "lfm2.5-1.2b": (1_170_340_608, 2_340_681_216, 12_288, 69_214_336),
    # 64 heads of 64, 8 key heads, 24 layers, 32 experts of 2880: 20.9B; MXFP4 experts in 4.25 bits, the rest in bfloat16
    "gpt-oss-20b": (20_914_757_184, 13_761_264_768, 49_152, 839_781_536),
    # 46 layers of 96 heads of 128 with biases, 8 key heads, 128 experts of 1408 and a shared one in 45 of them, untied: 106B
    "glm-4.5-air": (106_852_251_264, 213_704_502_528, 188_416, 2_375_055_488),
    # 50 layers of 16 key heads of 256 with values, 10 of 4 of 512 without, feed-forward of 21504, tied: text alone, 30.7B
    "gemma-4-31b": (30_697_345_340, 61_394_690_680, 901_120, 591_823_361),
    # 40 layers of 8 key heads of 256 with values, 8 of one of 512 without, feed-forward of 15360
    "gemma-4-12b": (11_907_350_320, 23_814_700_640, 344_064, 271_343_105),
    # 25 layers of 8 key heads of 256 with values, 5 of 2 of 512 without, 128 experts of 704 beside a feed-forward of 2112
    "gemma-4-26b-a4b": (25_233_141_790, 50_466_283_580, 225_280, 844_378_753),
    # 2 key heads of 128 in 6 of 52 blocks, Mamba-2 of 64 heads in 23, 128 experts of 1856 and a shared one of 3712 in 23: 31.6B
    "nemotron-3-nano-30b-a3b": (31_577_940_288, 63_155_880_576, 6_144, 1_335_323_264),
    # 4 key heads of 128 in 4 of 40 layers, Mamba-2 of 48 heads in 36, 64 experts of 512 beside a dense MLP of 1024 in all, tied
    "granite-4.0-h-tiny": (6_939_037_248, 13_878_074_496, 8_192, 166_828_032),
}


@pytest.mark.parametrize("name", FIGURES)
def test_published_dimensions(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    seen = alone(json.loads((PUBLISHED / f"{name}.json").read_text()), tmp_path / "model")
    assert seen["supported"]
    found = (seen["parameters"], seen["weight_bytes"], seen["caches"]["bytes_per_position"], seen["needs"]["head_parameters"])
    assert found == FIGURES[name]
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert "objection: no model*.safetensors in it" in capsys.readouterr().out


def test_a_family_that_is_not_supported(tmp_path: Path) -> None:
    seen = alone({"model_type": "mamba", "hidden_size": 8}, tmp_path / "model")
    assert not seen["supported"] and "mamba" in seen["why_not"]
    seen = alone(LLAMA | {"quantization_config": {"quant_method": "awq", "bits": 4}}, tmp_path / "awq")
    assert not seen["supported"] and "quantization_config awq of 4 bits" in seen["why_not"]
