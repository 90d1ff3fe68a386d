"""Every command that reads logits, on both runtimes, with a base whose logits are not finite: one line, and nothing kept.

The bases: NaN in the embedding of one token, in one layer, in one row of the output head; an infinity there; and one whose
activations do not fit float16.
"""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mtpd_onnx.cli
import numpy as np
import pytest
from helpers.runs import flags
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.weights import parameters, tensors
from tiny import LLAMA, write_base, write_checkpoint

import mtpd_mlx.cli
from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.export import ExportOptions

UNTIED = LLAMA | {"tie_word_embeddings": False}
NAN, INF = float("nan"), float("inf")
E = ord("e") - 32 + 2  # the id of a letter that every prompt and text has
FAULTS: dict[str, tuple[str, tuple[int, int] | int, float]] = {
    "embedding": ("model.embed_tokens.weight", (E, 5), NAN),
    "layer": ("model.layers.1.mlp.down_proj.weight", (3, 7), NAN),
    "head": ("lm_head.weight", (90, 2), NAN),  # of a token that no text has: argmax alone would not meet it
    "inf": ("model.norm.weight", 4, INF),
}
LOGITS, STATES = "the base's logits are not finite", "the base's hidden states are not finite"


def write_broken(folder: Path, fault: str) -> Path:
    base = write_base(folder, UNTIED)
    name, place, value = FAULTS[fault]
    weights = {n: np.array(w) for n, w in mx.load(str(base / "model.safetensors")).items()}
    weights[name][place] = value
    mx.save_safetensors(str(base / "model.safetensors"), {n: mx.array(w) for n, w in weights.items()})
    return base


class Place:
    """Base, heads, exported folders, texts and prompts of one fault."""

    def __init__(self, folder: Path, fault: str):
        self.folder, self.fault = folder, fault
        self.base = write_broken(folder / "base", fault)
        self.heads = write_checkpoint(folder / "heads", self.base, 2)
        self.sound = write_checkpoint(folder / "sound-heads", write_base(folder / "sound", UNTIED), 2)
        self.prompts, self.data = folder / "prompts.jsonl", folder / "data"
        self.prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": "abcdefgh"[: 5 + i]}) + "\n" for i in range(2)))
        self.data.mkdir()
        (folder / "schema.json").write_text('{"type": "string"}')
        for name in ("train", "valid"):
            (self.data / f"{name}.jsonl").write_text((json.dumps({"text": "abcdefgh ijklm nopq " * 3}) + "\n") * 8)
        self.onnx = {layout: self.export(layout) for layout in ("fused", "split")}

    def export(self, layout: str) -> Path:
        """A folder of weights that export itself refuses."""
        out = self.folder / layout
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensors, "check_finite", lambda name, array: None)
            patch.setattr(parameters, "check_fits", lambda name, array, dtype: None)
            export_checkpoint(self.heads, out, ExportOptions(layout=layout))
        return out


@pytest.fixture(scope="module", params=FAULTS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("broken"), request.param)


@pytest.fixture
def chatting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("abcde\nabcdef\nq\n"))


Arguments = Callable[[Place, Path], list[Any]]
SAMPLED = ["--temp", "0.8", "--seed", "1"]
SHORT = ["-m", "8"]


def training(*extra: str) -> Arguments:
    return lambda p, out: ["--model", p.base, "--data", p.data, "--out", out, *flags(iters=2, num_heads=2), *extra]


def decoding(*extra: str) -> Arguments:
    return lambda p, out: [p.heads, *extra]


def of_prompts(*extra: str) -> Arguments:
    return lambda p, out: [p.heads, "--prompts", p.prompts, *SHORT, *extra]


MLX: list[tuple[str, Arguments]] = [
    ("generate", of_prompts()),
    ("generate", of_prompts("--plan", "fixed")),
    ("generate", of_prompts("--exact")),
    ("generate", of_prompts("--plain")),
    ("generate", of_prompts("--json", *SAMPLED)),
    ("generate", of_prompts("--plan", "fixed", *SAMPLED, "--top-p", "0.9")),
    ("generate", of_prompts("--plain", "--repetition-penalty", "1.3")),
    ("generate", lambda p, out: [p.heads, "--prompts", p.prompts, *SHORT, "--json-schema", p.folder / "schema.json"]),
    ("chat", decoding(*SHORT)),
    ("chat", decoding(*SHORT, "--plain")),
    ("eval", of_prompts("--json")),
    ("distill-data", lambda p, out: ["--model", p.base, "--prompts", p.prompts, "--out", out, "--max-tokens", "8"]),
    (
        "distill-data",
        lambda p, out: ["--model", p.base, "--prompts", p.prompts, "--out", out, "--max-tokens", "8", "--temp", "1"],
    ),
    ("probe", decoding("--contexts", "64")),
    ("tune", of_prompts("--repeats", "1", "--dry-run")),
    ("verify", of_prompts()),
    ("bench", of_prompts("--repeats", "1")),
    ("parity", lambda p, out: [p.heads, p.onnx["fused"], "--prompts", p.prompts, *SHORT]),
    ("parity", lambda p, out: [p.heads, p.onnx["fused"], "--prompts", p.prompts, *SHORT, "--step-by-step"]),
    ("parity", lambda p, out: [p.heads, p.onnx["split"], "--prompts", p.prompts, *SHORT]),
    ("cache", lambda p, out: ["--model", p.base, "--data", p.data, "--out", out, "--max-seq-length", "24"]),
    ("train", training()),
    ("train", training("--loss", "tv")),
    ("train", training("--train", "joint")),
    ("train", training("--train", "lora", "--num-layers", "1")),
    ("extend", lambda p, out: [p.heads, "--to", "3", "--data", p.data, "--out", out, *flags(iters=2, num_heads=None)]),
    ("refit", lambda p, out: [p.sound, "--model", p.base, "--data", p.data, "--out", out, *flags(iters=2, num_heads=None)]),
]
ONNX: list[tuple[str, Arguments]] = [
    ("generate", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT]),
    ("generate", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT, "--plain"]),
    ("generate", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT, *SAMPLED]),
    ("generate", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT, *SAMPLED, "--plain"]),
    ("generate", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT, "--batch-size", "2"]),
    ("generate", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT, "--json-schema", p.folder / "schema.json"]),
    ("generate", lambda p, out: [p.onnx["split"], "--prompts", p.prompts, *SHORT]),
    ("generate", lambda p, out: [p.onnx["split"], "--prompts", p.prompts, *SHORT, "--plain"]),
    ("chat", lambda p, out: [p.onnx["fused"], *SHORT]),
    ("bench", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT, "--repeats", "1"]),
    ("verify", lambda p, out: [p.onnx["fused"], "--prompts", p.prompts, *SHORT]),
]
NO_LOGITS = {"import-gguf", "import-heads", "export-heads", "inspect", "info", "pull", "push", "doctor"}
NO_LOGITS |= {"export"}  # see below
OTHERWISE = {"demo", "serve"}  # a server answers with status 500 and goes on: tests/serving


def named(cases: list[tuple[str, Arguments]]) -> list[Any]:
    return [pytest.param(command, make, id=f"{command}-{i}") for i, (command, make) in enumerate(cases)]


def fails(main: Callable[[list[str]], int], arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with status 1."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.usefixtures("chatting")
@pytest.mark.parametrize(("command", "make"), named(MLX))
def test_mlx_commands_end_with_one_line(
    command: str, make: Arguments, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = fails(mtpd_mlx.cli.main, [command, *make(place, out)], capsys)
    states = command == "cache" and place.fault in ("embedding", "layer")  # it looks at them first
    assert (STATES if states else LOGITS) in line
    kept = [f for f in out.rglob("*") if f.suffix in (".safetensors", ".npz") or f.name in ("train.jsonl", "valid.jsonl")]
    assert not kept
    if command == "distill-data":
        assert (out / "part.jsonl").read_text() == ""


@pytest.mark.usefixtures("chatting")
@pytest.mark.parametrize(("command", "make"), named(ONNX))
def test_onnx_commands_end_with_one_line(
    command: str, make: Arguments, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(mtpd_onnx.cli.main, [command, *make(place, tmp_path / "out")], capsys)
    assert LOGITS in line
    assert command in ("chat", "bench") or "prompt p0: " in line


def test_no_command_is_left_out() -> None:
    assert {c for c, _ in MLX} | NO_LOGITS | OTHERWISE == set(mtpd_mlx.cli.COMMANDS)
    assert {c for c, _ in ONNX} | {"info", "export", "serve"} == set(mtpd_onnx.cli.COMMANDS)


def test_the_demo_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtpd_mlx.demo import models, run

    shutil.copytree(models.ASSETS, tmp_path / "assets")
    base = tmp_path / "assets" / "base"
    weights = next(base.glob("*.safetensors"))
    broken = dict(mx.load(str(weights)))
    broken["model.norm.weight"] = broken["model.norm.weight"] * NAN
    mx.save_safetensors(str(weights), broken)
    config = base.parent / "heads" / "mtp_config.json"
    values = json.loads(config.read_text())
    values["base"]["fingerprint"] = fingerprint_base(base)
    config.write_text(json.dumps(values))
    broken_model = replace(models.BUNDLED, get=lambda folder: base, heads=config.parent)
    monkeypatch.setattr(run, "run_demo", partial(run.run_demo, bundled=broken_model))
    assert LOGITS in fails(mtpd_mlx.cli.main, ["demo", "--bundled", "--out", tmp_path / "demo"], capsys)


@pytest.mark.parametrize("main", [mtpd_mlx.cli.main, mtpd_onnx.cli.main])
def test_export_names_the_tensor(
    main: Callable[[list[str]], int], place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in ("fp32", "int4"):
        line = fails(main, ["export", place.heads, "--out", tmp_path / "out", "--precision", precision], capsys)
        assert f"weights: {FAULTS[place.fault][0]}: 1 of " in line and "NaN or infinite" in line
    assert not (tmp_path / "out").exists()


def test_numbers_that_float16_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that fit, activations that do not; and weights that do not."""
    base = write_base(tmp_path / "base", UNTIED)
    weights = dict(mx.load(str(base / "model.safetensors")))
    weights["model.norm.weight"] *= 3e4
    mx.save_safetensors(str(base / "model.safetensors"), weights)
    heads = write_checkpoint(tmp_path / "heads", base, 2)
    for plain in ([], ["--plain"]):
        generate = ["generate", heads, "--prompt", "abc", "-m", "4", *plain]
        assert mtpd_mlx.cli.main([str(a) for a in generate]) == 0
        line = fails(mtpd_mlx.cli.main, [*generate, "--dtype", "float16"], capsys)
        assert f"{LOGITS} after 3 tokens" in line and "do not fit float16 (largest number 65,504): use bfloat16 or" in line
    weights["model.norm.weight"] *= 10
    mx.save_safetensors(str(base / "model.safetensors"), weights)
    export = ["export", write_checkpoint(tmp_path / "heads", base, 2), "--out", tmp_path / "out", "--precision"]
    assert "weights: model.norm.weight: got a number of size" in fails(mtpd_mlx.cli.main, [*export, "fp16"], capsys)
    assert mtpd_mlx.cli.main([str(a) for a in [*export, "bf16"]]) == 0
