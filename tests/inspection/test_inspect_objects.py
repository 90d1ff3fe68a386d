"""What loading and export refuse of a folder, inspect objects to: one table of refusals."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from tiny import LLAMA, write_base, write_checkpoint

from mtpd_mlx.cli import main
from mtpd_mlx.files.model_files import INDEX
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw

GEMMA3 = LLAMA | {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "sliding_window": 8}
WEIGHTS, UP = "model.safetensors", "model.layers.0.mlp.up_proj.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


def config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def tensors(change: Callable[[dict[str, Raw]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        source = RawTensors([folder / WEIGHTS])
        held = {name: source[name] for name in source}
        change(held)
        write_raw(folder / WEIGHTS, held)

    return apply


def raw(*shape: int) -> Raw:
    return Raw.of_floats(np.zeros(shape))


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


def huge_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


BOTH, LOADING, EXPORT = ("load", "export"), ("load",), ("export",)
REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), BOTH, "no model*.safetensors in it"),
    "pickled": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), BOTH, ""),
    "cut": (cut, BOTH, "truncated or damaged"),
    "header": (huge_header, BOTH, "header cut short"),
    "weights by LFS": (text(WEIGHTS, LFS), BOTH, "a Git LFS pointer"),
    "config by LFS": (text("config.json", LFS), BOTH, "a Git LFS pointer"),
    "index by LFS": (text(INDEX, LFS), BOTH, "a Git LFS pointer"),
    "config is a list": (text("config.json", "[]"), BOTH, "expected an object"),
    "config is no JSON": (text("config.json", "{"), BOTH, "not valid JSON"),
    "family": (config(model_type="mamba"), BOTH, "'mamba' is not supported"),
    "own code": (config(model_file="x.py"), BOTH, "brings code of its own"),
    "key missing": (config(hidden_size=None), BOTH, "hidden_size"),
    "kind": (config(num_attention_heads="4"), BOTH, "num_attention_heads"),
    "activation": (config(hidden_act="relu"), BOTH, "hidden_act"),
    "rotation": (config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), EXPORT, "dynamic"),
    "traditional": (config(rope_traditional=True), BOTH, "rope_traditional"),
    "more layers": (config(num_hidden_layers=3), BOTH, "model.layers.2"),
    "width": (config(hidden_size=32), BOTH, "model."),
    "no head": (config(tie_word_embeddings=False), BOTH, "lm_head.weight"),
    "a tensor short": (tensors(lambda t: t.pop(UP)), BOTH, UP),
    "a tensor of another shape": (tensors(lambda t: t.update({UP: raw(3, 64)})), BOTH, UP),
    "a tensor too many": (tensors(lambda t: t.update({UP.replace("weight", "bias"): raw(128)})), BOTH, "up_proj.bias"),
    "integers": (tensors(lambda t: t.update({UP: Raw("I8", np.zeros((128, 64), np.uint8))})), BOTH, UP),
    "awq": (tensors(lambda t: t.update({UP.replace("weight", "qweight"): raw(1)})), BOTH, "qweight"),
    "index": (text(INDEX, '{"weight_map": {"a": "model-2.safetensors"}, "x": 1}'), (), ""),
    "index of nothing": (text(INDEX, "{}"), BOTH, "weight_map"),
    "tokenizer": (text("tokenizer.json", "{}"), BOTH, "tokenizer"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_refused_is_objected_to(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    break_it, refused_by, word = REFUSED[fault]
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1)
    break_it(base)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "abcdefgh ijklm nopq"}\n' * 8)
    commands = {
        "load": ["generate", str(base), "--plain", "--prompt", "a", "--max-tokens", "2"],
        "train": [
            *("train", "--model", str(base), "--data", str(rows), "--out", str(tmp_path / "out")),
            *("--iters", "0", "--max-seq-length", "64"),
        ],
        "export": ["export", str(checkpoint), "--allow-base-mismatch", "--out", str(tmp_path / "onnx")],
    }
    for name, arguments in commands.items():
        capsys.readouterr()
        status = main(arguments)
        lines = capsys.readouterr().err.strip().splitlines()
        if name in refused_by or (name == "train" and "load" in refused_by):
            assert status == 1 and len(lines) == 1 and word in lines[0], (name, lines)
        else:
            assert status in ((0, 3) if name == "train" else (0,)), (name, lines)  # 3: no step was better than the start
    status = main(["inspect", str(base)])
    seen = capsys.readouterr()
    objects = status == 1 or "not supported:" in seen.out or "objection:" in seen.out
    assert objects == bool(refused_by), seen
    assert not refused_by or word in seen.out + seen.err


def test_a_byte_order_mark_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1)
    (base / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(RawTensors([base / WEIGHTS]), WEIGHTS)}))
    for file in (base / "config.json", base / INDEX, checkpoint / "mtp_config.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    for arguments in (
        ["inspect", str(base)],
        ["generate", str(base), "--plain", "--prompt", "a", "--max-tokens", "2"],
        ["generate", str(checkpoint), "--prompt", "a", "--max-tokens", "2"],
        ["export", str(checkpoint), "--out", str(tmp_path / "onnx")],
        ["export-heads", "--with-base", str(checkpoint), "--out", str(tmp_path / "served")],
    ):
        assert main(arguments) == 0, capsys.readouterr().err
        assert not capsys.readouterr().err.count("error")


def test_a_folder_of_another_kind_gets_a_hint_that_helps(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from mtpd_onnx.cli import main as onnx_main

    export_checkpoint(tiny_checkpoint, tmp_path / "onnx")
    for arguments in (["generate", str(tmp_path / "onnx")], ["generate", str(tmp_path / "onnx"), "--plain"]):
        capsys.readouterr()
        assert main([*arguments, "--prompt", "a"]) == 1
        assert "is an exported folder, which mtpd-onnx decodes" in capsys.readouterr().err
    assert onnx_main(["generate", str(tiny_checkpoint), "--prompt", "a"]) == 1
    assert "it holds heads: mtpd export makes one of them" in capsys.readouterr().err


def test_float16_is_refused_where_hidden_states_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Gemma 3's reach 1e5: transformers in float16 gives no finite logits, mlx-lm clips."""
    base = write_base(tmp_path / "base", GEMMA3)
    checkpoint, out = write_checkpoint(tmp_path / "heads", base, 1), tmp_path / "onnx"
    for arguments, instead in (
        (["export", str(checkpoint), "--out", str(out), "--precision", "fp16"], "--precision bf16"),
        (["export", str(checkpoint), "--out", str(out), "--precision", "int4", "--activations", "fp16"], "--activations bf16"),
        (["generate", str(checkpoint), "--prompt", "a", "--dtype", "float16"], "bfloat16"),
    ):
        capsys.readouterr()
        assert main(arguments) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "exceed 65,504, where float16 ends" in lines[0] and lines[0].endswith(f"use {instead}")
    assert main(["export", str(checkpoint), "--out", str(out), "--precision", "bf16"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(base)]) == 0
    assert "hidden states exceed float16" in capsys.readouterr().out
