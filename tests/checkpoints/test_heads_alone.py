"""Heads exported without their base: a folder of their own that names it, read back bit for bit; the base stays as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import LLAMA, write_base, write_checkpoint, write_quantised

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.checkpoints.shipped.write import export_heads
from mtpd_mlx.cli import main
from mtpd_mlx.files.safetensors import RawTensors, read_header

QWEN3 = LLAMA | {"model_type": "qwen3", "layer_types": ["full_attention"] * LLAMA["num_hidden_layers"]}
LAYOUTS = [("nextn", LLAMA, 2), ("mimo", LLAMA, 1), ("mtp", QWEN3, 1), ("vllm", LLAMA, 3), ("vllm", QWEN3, 2)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize(("layout", "config", "count"), LAYOUTS)
def test_they_come_back_bit_for_bit(layout: str, config: dict[str, Any], count: int, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", config)
    before = snapshot(base)
    checkpoint = write_checkpoint(tmp_path / "heads", base, count, noise=0.3)
    out, back = tmp_path / "out", tmp_path / "deeper" / "back"
    assert main(["export-heads", str(checkpoint), "--format", layout, "--out", str(out)]) == 0
    assert snapshot(base) == before and {*snapshot(out)} == {"config.json", "model.safetensors"}
    assert main(["import-heads", str(out), "--out", str(back)]) == 0
    ours, theirs = (RawTensors([folder / "heads.safetensors"]) for folder in (checkpoint, back))
    assert {*ours} == {*theirs} and all(np.array_equal(ours[n].bits, theirs[n].bits) for n in ours)
    reference = read_config(back).base
    assert reference.fingerprint == read_config(checkpoint).base.fingerprint
    assert Path(reference.locate(back)) == base.resolve()


@pytest.mark.parametrize("link", [False, True])
def test_for_vllm_in_the_folder_of_their_base(link: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One folder: the base byte for byte, which every engine loads, and the heads in a folder inside."""
    base = write_base(tmp_path / "base", QWEN3)
    (base / "left-over.safetensors").write_bytes(b"read by nobody")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 2, noise=0.3)
    out, alone = tmp_path / "out", tmp_path / "alone"
    how = ["--format", "vllm", "--with-base", *(["--link"] if link else [])]
    assert main(["export-heads", str(checkpoint), *how, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"vllm serve {out} " in said and f'"model": "{out / "heads"}"' in said
    assert main(["export-heads", str(checkpoint), "--format", "vllm", "--out", str(alone)]) == 0
    whole, inside = snapshot(out), snapshot(out / "heads")
    assert {n: b for n, b in whole.items() if not n.startswith("heads/")} == {
        n: b for n, b in snapshot(base).items() if n != "left-over.safetensors"
    }
    assert inside["model.safetensors"] == snapshot(alone)["model.safetensors"]
    assert (out / "model.safetensors").samefile(base / "model.safetensors") == link
    out.rename(tmp_path / "moved")  # base and heads move together
    assert main(["import-heads", str(tmp_path / "moved" / "heads"), "--out", str(tmp_path / "back")]) == 0
    assert Path(read_config(tmp_path / "back").base.locate(tmp_path / "back")) == (tmp_path / "moved").resolve()
    assert read_config(tmp_path / "back").base.fingerprint == read_config(checkpoint).base.fingerprint


def test_config_json_has_what_engines_ask_for(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", QWEN3), 2)
    for layout in ("nextn", "vllm"):
        assert main(["export-heads", str(checkpoint), "--format", layout, "--out", str(tmp_path / layout)]) == 0
    plain, vllm = (json.loads((tmp_path / layout / "config.json").read_text()) for layout in ("nextn", "vllm"))
    told = {"num_nextn_predict_layers": 2, "num_mtp_layers": 2, "mtp_layer_types": ["full_attention"] * 2}
    assert plain.items() >= told.items() and plain["model_type"] == "qwen3"
    assert vllm.items() >= (told | {"model_type": "mtp", "architectures": ["MTPDHeads"], "n_predict": 2}).items()
    assert vllm["mtpd_base"]["model_type"] == "qwen3" and vllm["mtpd_base"]["id"] == "../base"
    names = [set(read_header(tmp_path / layout / "model.safetensors")[0]) for layout in ("nextn", "vllm")]
    assert names[0] == names[1]


def test_of_a_quantised_base(tmp_path: Path) -> None:
    """config.json says nothing of quantisation: the heads are in floating point."""
    base = write_quantised(tmp_path / "base", write_base(tmp_path / "plain"), bits=4)
    assert "quantization" in json.loads((base / "config.json").read_text())
    checkpoint = write_checkpoint(tmp_path / "heads", base, 2, noise=0.3)
    assert main(["export-heads", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    assert not {"quantization", "quantization_config"} & {*json.loads((tmp_path / "out" / "config.json").read_text())}
    assert main(["import-heads", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    assert read_config(tmp_path / "back").base.fingerprint == read_config(checkpoint).base.fingerprint


def test_their_base_is_found_or_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    export_heads(write_checkpoint(tmp_path / "heads", base, 2), base, tmp_path / "out")
    base.rename(tmp_path / "elsewhere")
    assert main(["import-heads", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 1
    line = capsys.readouterr().err.strip()
    assert str(base) in line and "\n" not in line and not (tmp_path / "back").exists()
    named = ["--base", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "back")]
    assert main(["import-heads", str(tmp_path / "out"), *named]) == 0
    assert main(["import-heads", str(tmp_path / "out"), "--base", str(tmp_path / "heads"), "--out", str(tmp_path / "no")]) == 1
    assert main(["import-heads", str(tmp_path / "elsewhere"), *named, "--overwrite"]) == 1
    assert "ships no MTP heads" in capsys.readouterr().err


def test_inspect_says_what_the_folder_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base"), 2)
    for layout, word in (("nextn", "in the names that shipped heads have"), ("vllm", "for the vLLM plug-in")):
        assert main(["export-heads", str(checkpoint), "--format", layout, "--out", str(tmp_path / layout)]) == 0
        assert main(["inspect", str(tmp_path / layout)]) == 0
        said = capsys.readouterr().out
        assert f"2 heads {word}" in said and "of base" in said and "import-heads" in said


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 2)
    gemma = write_base(tmp_path / "gemma", LLAMA | {"model_type": "gemma2", "query_pre_attn_scalar": 16})
    of_gemma = write_checkpoint(tmp_path / "of_gemma", gemma, 1)

    def refused(word: str, *arguments: str) -> None:
        assert main(["export-heads", *arguments, "--out", str(tmp_path / "never")]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and word in lines[0], lines

    refused("got 2 heads, expected at most 1: of more, vLLM stops", str(checkpoint), "--format", "mimo")
    refused("got a base of the family gemma2, expected one of llama", str(of_gemma), "--format", "vllm")
    refused("--link: expected --with-base", str(checkpoint), "--link")
    refused("--copy-ends", str(checkpoint), "--format", "vllm", "--copy-ends")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(("layout", "bits"), [("nextn", 8), ("vllm", 4), ("nextn", 6)])
def test_quantised_heads_are_written_in_floating_point(layout: str, bits: int, tmp_path: Path, capsys: Any) -> None:
    """As MLX unpacks them, rounded to float16 once; norms bit for bit."""
    from mtpd_mlx.model.load_save import load_checkpoint, save_heads
    from mtpd_mlx.model.runtime import mx

    base = write_base(tmp_path / "base", LLAMA | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    _, heads, config = load_checkpoint(write_checkpoint(tmp_path / "plain", base, 2, noise=0.3))
    save_heads(tmp_path / "heads", heads, config, bits=bits)
    assert main(["export-heads", str(tmp_path / "heads"), "--format", layout, "--out", str(tmp_path / "out")]) == 0
    assert f"{bits}-bit integers are written in floating point" in capsys.readouterr().out
    assert main(["import-heads", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    packed, back = (RawTensors([tmp_path / name / "heads.safetensors"]) for name in ("heads", "back"))
    assert not any(name.endswith((".scales", ".biases")) for name in back)
    for name in back:
        if (stem := name.removesuffix(".weight")) + ".scales" not in packed:
            assert np.array_equal(back[name].bits, packed[name].bits)
            continue
        scales, biases = (mx.array(packed[f"{stem}.{part}"].floats()) for part in ("scales", "biases"))
        expected = np.array(mx.dequantize(mx.array(packed[name].bits), scales, biases, 64, bits))
        assert back[name].dtype == "F16"
        np.testing.assert_allclose(back[name].floats(), expected, rtol=2**-11, atol=2**-24)


def test_integers_that_do_not_fit_their_groups_are_refused() -> None:
    from mtpd_mlx.checkpoints.quantised import dequantise
    from mtpd_mlx.files.safetensors import Raw

    scales = Raw.of_floats(np.full((3, 2), 1e5, np.float32))
    packed = {"a.scales": scales, "a.biases": scales}
    with pytest.raises(ValueError, match=r"a.weight: got \(3, 64\) for \(3, 2\) scales, expected groups of 64"):
        dequantise(packed | {"a.weight": Raw("U32", np.zeros((3, 16), np.uint32))}, 64, 8)
    wide = dequantise(packed | {"a.weight": Raw("U32", np.zeros((3, 32), np.uint32))}, 64, 8)
    assert wide.keys() == {"a.weight"} and wide["a.weight"].dtype == "F32" and (wide["a.weight"].floats() == 1e5).all()
