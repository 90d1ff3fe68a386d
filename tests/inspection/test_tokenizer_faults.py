"""`mtpd inspect` objects to a tokenizer that training and export refuse, and to none that they take."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import VOCAB, write_tokenizer

from mtpd_mlx.cli import main


@pytest.mark.parametrize(
    ("tokens", "config", "fault"),
    [
        (VOCAB, {"eos_token": "<end>"}, None),
        (VOCAB, {"eos_token": "<end>", "pad_token": "[PAD]"}, None),  # a token more than the model has
        (VOCAB, {"eos_token": "</s>"}, "eos_token: got '</s>', which is no token of this model"),
        (120, {"eos_token": "<end>"}, f"the tokenizer has 120 tokens, the model's vocabulary only {VOCAB}"),
    ],
)
def test_inspect_train_and_export_agree(
    tokens: int,
    config: dict[str, Any],
    fault: str | None,
    tiny_base: Path,
    tiny_checkpoint: Path,
    text_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    write_tokenizer(base, tokens)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    assert main(["inspect", str(base), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["supported"] == (fault is None) and (fault or "") in found.get("why_not", "")
    train = [
        "train",
        "--model",
        str(base),
        "--data",
        str(text_data),
        "--iters",
        "1",
        "--num-heads",
        "2",
        "--max-seq-length",
        "32",
    ]
    commands = (
        [*train, "--out", str(tmp_path / "out")],
        ["export", str(tiny_checkpoint), "--model", str(base), "--out", str(tmp_path / "onnx")],
        ["cache", "--model", str(base), "--data", str(text_data), "--max-seq-length", "32", "--out", str(tmp_path / "cache")],
        ["generate", str(tiny_checkpoint), "--model", str(base), "-p", "ab", "-m", "2"],
    )
    for command in commands:
        assert (main(command) in (0, 3)) == (fault is None), command
        err = capsys.readouterr().err
        assert fault is None or fault in err
