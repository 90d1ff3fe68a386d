"""What a user does with a model of a new family, by the commands: inspect, distil, cache, train and resume, extend, refit for a
quantised copy, ship the heads, decode."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import build
from helpers.decode import oracle, text
from tiny import write_quantised

from mtpd_mlx.cli import main
from mtpd_mlx.files.safetensors import RawTensors
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.load_save import flatten, load_checkpoint
from mtpd_mlx.speculative.rounds import StepBackend

MXFP4 = {"mode": "mxfp4"}
# How mlx-lm's copy of each is quantised.
LIVES: dict[str, dict[str, Any]] = {
    "gpt-oss": MXFP4,
    "gpt-oss-mxfp4": MXFP4,
    "lfm2": {},
    "gemma4": {},
    "gemma4-moe": {},
    "glm4-moe": {},
    "qwen3.5": {},
    "granite4-moe": {},
    "nemotron3": {},
}
# Their sisters go the same ways.
SLOW = ("gpt-oss", "gpt-oss-mxfp4", "gemma4", "gemma4-moe", "lfm2", "glm4-moe", "granite4-moe", "nemotron3")
STEPS = ["--max-seq-length", "24", "--batch-size", "2", "--warmup", "1", "--steps-per-eval", "3", "--val-batches", "1"]


def run(*arguments: object) -> None:
    """Status 3: no step was better than the start, which extend keeps."""
    assert main([str(argument) for argument in arguments]) in ((0, 3) if arguments[0] == "extend" else (0,)), arguments


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LIVES])
def test_from_inspect_to_refit(
    name: str, tmp_path: Path, text_data: Path, stop_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(name, tmp_path / "base").folder
    seen = describe(LocalView(base))
    loaded = load_base(str(base), dequantize=True)
    assert seen["supported"] and seen["parameters"] == sum(w.size for w in flatten(loaded.model).values())
    heads = init_heads(loaded, 1, "postnorm", 0)
    assert seen["needs"]["head_parameters"] == sum(w.size for w in flatten(heads).values())
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(6)))
    made = ["--max-tokens", 20, "--batch-size", 4, "--valid-share", 0.3]
    run("distill-data", "--model", base, "--prompts", rows, "--out", tmp_path / "own", *made)
    first = ["train", "--model", base, "--data", text_data, "--num-heads", 1, "--learning-rate", "3e-3", "--iters", 9]
    first += [*STEPS, "--save-every", 3, "--out", tmp_path / "one"]
    with monkeypatch.context():
        stop_at(5)
        assert main([str(word) for word in first]) == 130
    monkeypatch.undo()
    run("train", "--resume", "--out", tmp_path / "one")
    run("cache", "--model", base, "--data", text_data, "--max-seq-length", 24, "--batch-size", 2, "--out", tmp_path / "cache")
    run(
        "train",
        "--cache",
        tmp_path / "cache",
        "--num-heads",
        1,
        "--iters",
        6,
        "--learning-rate",
        "3e-3",
        *STEPS[2:],
        "--out",
        tmp_path / "cached",
    )
    run(
        "extend",
        tmp_path / "one",
        "--to",
        2,
        "--data",
        tmp_path / "own",
        "--iters",
        3,
        *STEPS,
        "--out",
        tmp_path / "two",
        "--learning-rate",
        "3e-3",
    )
    exact(tmp_path / "two", 2)
    packed = write_quantised(tmp_path / "packed", base, 4, **LIVES[name]) if name != "gpt-oss-mxfp4" else base
    run("refit", tmp_path / "one", "--model", packed, "--data", text_data, "--iters", 3, *STEPS, "--out", tmp_path / "refitted")
    exact(tmp_path / "refitted", 1)
    layout, heads_of = ("nemotron", tmp_path / "one") if name == "nemotron3" else ("nextn", tmp_path / "two")
    for shipped in dict.fromkeys((base, packed)):
        model, again = tmp_path / f"model-{shipped.name}", tmp_path / f"again-{shipped.name}"
        options = ["--format", layout, "--out", model, "--allow-base-mismatch"]
        run("export-heads", "--with-base", heads_of, "--model", shipped, *options)
        run("import-heads", model, "--out", again)
        ours, theirs = (RawTensors([folder / "heads.safetensors"]) for folder in (heads_of, again))
        assert ours.table.keys() == theirs.table.keys()
        assert all(np.array_equal(ours[n].bits, theirs[n].bits) for n in ours.table)


def exact(checkpoint: Path, count: int) -> None:
    """The commands' heads decode the base's own text."""
    base, heads, _ = load_checkpoint(checkpoint)
    assert heads.num_heads == count
    prompt = [5, 9, 14, 3, 60]
    assert text(StepBackend(MLXModel(base, heads)), prompt, 20) == oracle(base, prompt, 20)
