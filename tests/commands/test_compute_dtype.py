"""What MLX commands compute in: float32 on a CPU whatever a folder stores, its own type on a GPU, or what is asked for."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mtpd_onnx.cli
import pytest
from test_finite_logits import MLX, Arguments, named
from tiny import LLAMA, write_base, write_checkpoint, write_quantised

import mtpd_mlx.cli
from mtpd_mlx.model import compute
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.finite import type_name
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.teacher_cache.format import read_index

TRAINS = ("train", "extend", "refit")
OWN_ON_GPU = {"cache": "bfloat16"} | dict.fromkeys(TRAINS, "bfloat16")


def in_half(base: Path) -> Path:
    """The same folder with float16 weights."""
    file = base / "model.safetensors"
    mx.save_safetensors(str(file), {name: w.astype(mx.float16) for name, w in dict(mx.load(str(file))).items()})
    return base


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("half")
    p = SimpleNamespace(folder=folder, base=in_half(write_base(folder / "base", LLAMA)))
    p.heads = write_checkpoint(folder / "heads", p.base, 2, noise=0.1)
    p.sound = write_checkpoint(folder / "other-heads", in_half(write_base(folder / "other", LLAMA, seed=1)), 2)
    p.prompts, p.data = folder / "prompts.jsonl", folder / "data"
    p.prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": "abcdefgh"[: 5 + i]}) + "\n" for i in range(2)))
    (folder / "schema.json").write_text('{"type": "string"}')
    p.data.mkdir()
    for name in ("train", "valid"):
        (p.data / f"{name}.jsonl").write_text((json.dumps({"text": "abcdefgh ijklm nopq " * 3}) + "\n") * 8)
    p.onnx = {}
    for layout in ("fused", "split"):
        p.onnx[layout] = folder / layout
        assert mtpd_onnx.cli.main(["export", str(p.heads), "--out", str(p.onnx[layout]), "--layout", layout]) == 0
    return p


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the types of hidden states that pass the final norm."""
    types: set[str] = set()
    norm = Base.norm

    def spy(base: Base, hidden: mx.array) -> mx.array:
        types.add(type_name(hidden.dtype))
        return norm(base, hidden)

    monkeypatch.setattr(Base, "norm", spy)
    monkeypatch.setattr("sys.stdin", io.StringIO("abcde\nq\n"))
    compute._say.cache_clear()
    return types


def run(command: str, *arguments: Any) -> None:
    mtpd_mlx.cli.main([command, *map(str, arguments)])  # its status may be 1: parity, verify in half precision


@pytest.mark.parametrize(("command", "make"), named(MLX))
def test_float32_on_a_cpu(
    command: str, make: Arguments, place: Any, tmp_path: Path, seen: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(command, *make(place, tmp_path / "out"))
    assert seen == {"float32"}
    said = re.findall(r"computing in float32, not in float16 as stored", capsys.readouterr().err)
    assert len(said) == (0 if command in TRAINS else 1)


@pytest.mark.parametrize(("command", "make"), named(MLX))
def test_their_own_type_elsewhere(
    command: str,
    make: Arguments,
    place: Any,
    tmp_path: Path,
    seen: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compute, "on_cpu", lambda: False)
    run(command, *make(place, tmp_path / "out"))
    assert seen == {OWN_ON_GPU.get(command, "float16")}
    assert "computing in" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "eval", "distill-data", "cache"])
def test_what_is_asked_for(
    command: str, place: Any, tmp_path: Path, seen: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make = next(make for name, make in MLX if name == command)
    run(command, *make(place, tmp_path / "out"), "--compute-dtype" if command == "cache" else "--dtype", "bfloat16")
    assert seen == {"bfloat16"}
    assert "computing in" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpu", "asked", "expected"), [(False, "auto", "float32"), (True, "auto", "float16"), (True, "bfloat16", "bfloat16")]
)
def test_scales_of_a_quantised_base(
    gpu: bool, asked: str, expected: str, place: Any, tmp_path: Path, seen: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decide what MLX computes in; the integers stay."""
    packed = write_quantised(tmp_path / "packed", place.base, 4, dtype="float16")
    monkeypatch.setattr(compute, "on_cpu", lambda: not gpu)
    run("generate", packed, "--plain", "--no-dequantize", "--prompt", "abc", "-m", 4, "--dtype", asked)
    run("distill-data", "--model", packed, "--prompts", place.prompts, "--out", tmp_path / "own", "-m", 4, "--dtype", asked)
    cached = ["--model", packed, "--data", place.data, "--out", tmp_path / "cache", "--max-seq-length", 24]
    run("cache", *cached, "--compute-dtype", asked)
    assert seen == {expected}
    assert read_index(tmp_path / "cache").compute_dtype == expected
    base = load_base(str(packed))
    compute.compute_in(base, asked)
    assert compute.float_types(base) == {expected}
    layer = base.layers[0].self_attn.q_proj
    assert layer.weight.dtype == mx.uint32 and type_name(layer.scales.dtype) == expected


def test_a_cache_of_another_type_is_not_taken_up(place: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached = ["--model", place.base, "--data", place.data, "--out", tmp_path / "cache", "--max-seq-length", 24]
    run("cache", *cached)
    index = tmp_path / "cache" / "cache.json"
    values = json.loads(index.read_text())
    assert values["compute_dtype"] == values["dtype"] == "float32"
    index.write_text(json.dumps(values | {"compute_dtype": "bfloat16"}))
    capsys.readouterr()
    assert mtpd_mlx.cli.main(["cache", "--resume", "--out", str(tmp_path / "cache")]) == 1
    assert "compute_dtype: got 'float32', the interrupted cache has 'bfloat16'" in capsys.readouterr().err
    del values["compute_dtype"]  # as earlier versions wrote it
    index.write_text(json.dumps(values))
    assert mtpd_mlx.cli.main(["cache", "--resume", "--out", str(tmp_path / "cache")]) == 0


def test_one_line_for_all_bases_of_a_run(place: Any, seen: set[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        for _ in range(2):
            compute.compute_in(load_base(str(place.base)))
        compute.compute_in(load_base(str(place.base)), "float16")
    assert caplog.messages == ["computing in float32, not in float16 as stored, which a CPU computes slowly"]


def test_float16_where_a_family_exceeds_it(
    tmp_path: Path, seen: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    refusals: list[str] = []
    monkeypatch.setattr(compute, "check_float16", lambda kind, asked, instead: refusals.append(asked))
    run("generate", place.heads, "--prompt", "abc", "-m", 2, "--dtype", "float16")
    run("cache", "--model", place.base, "--data", place.data, "--out", tmp_path / "c", "--compute-dtype", "float16")
    assert refusals == ["--dtype float16", "--compute-dtype float16"]


@pytest.mark.parametrize(("gpu", "worst"), [(False, 1e-7), (True, 0.01)])
def test_unpacked_matrices_are_what_the_integers_stand_for(
    gpu: bool, worst: float, place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 not rounded to the type of the scales once more."""
    monkeypatch.setattr(compute, "on_cpu", lambda: not gpu)
    packed = write_quantised(tmp_path / "packed", place.base, 8, dtype="bfloat16")
    base, stored = load_base(str(packed), dequantize=True), load_base(str(packed))
    compute.compute_in(base)
    for ours, theirs in zip(base.layers, stored.layers, strict=True):
        q, w = theirs.mlp.down_proj, ours.mlp.down_proj.weight
        assert type_name(w.dtype) == ("bfloat16" if gpu else "float32")
        exact = mx.dequantize(q.weight, *(a.astype(mx.float32) for a in (q.scales, q.biases)), q.group_size, q.bits)
        apart = mx.abs(exact - w.astype(mx.float32)).max().item()
        assert apart <= worst and (not gpu or apart > 1e-7)
