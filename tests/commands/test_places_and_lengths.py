"""Output places are checked before the work; prompts that are cut are counted; rows cut in half, near-ties, half a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtpd_mlx.checkpoints.shipped import write
from mtpd_mlx.cli import main
from mtpd_mlx.data import own_text
from mtpd_mlx.files.places import check_place
from mtpd_mlx.speculative.verify import compare
from mtpd_mlx.text.messages import messages_on_stderr
from mtpd_mlx.text.prompts import encode_prompts
from mtpd_mlx.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "mtpd_mlx" / "assets" / "demo"


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    check_place("--svg", tmp_path / "b.svg")
    assert list(tmp_path.iterdir()) == []
    for place, words in (
        (tmp_path, "expected a file"),
        (tmp_path / "no" / "b.svg", "expected a file in a folder that is there"),
        (Path("/dev/null"), "got a device"),
        (Path("/proc/b.svg"), "cannot write there"),
    ):
        with pytest.raises(ValueError, match=f"^--svg {place}: .*{words}"):
            check_place("--svg", place)


@pytest.mark.parametrize(
    "arguments", [["bench", "x", "--prompts", "p", "--svg", "/proc/b.svg"], ["chat", "x", "--prompt-cache-file", "/proc/c"]]
)
def test_commands_try_it_first(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 1
    assert "cannot write there" in capsys.readouterr().err


def test_prompts_that_are_cut_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": "word " * n}) + "\n" for n in (1, 40, 50)))
    tokenizer = Tokenizer.from_folder(DEMO / "base")
    with messages_on_stderr():
        encoded = encode_prompts(file, tokenizer, 10)
        assert capsys.readouterr().err == f"mtpd: {file}: 2 of 3 prompts cut to their last 10 tokens, which fit the context\n"
        assert [len(p.tokens) for p in encoded[1:]] == [10, 10]
        encode_prompts(file, tokenizer, 1000)
    assert capsys.readouterr().err == ""


class Reference:
    """The best token after n others is n, by a margin of n."""

    def rewind_to(self, length: int) -> None:
        self.length = length

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        rows = np.zeros((len(tokens), 50), np.float32)
        for row in rows:
            self.length += 1
            row[self.length] = self.length
        return rows


@pytest.mark.parametrize("texts", [([3, 4], [3, 4, 5]), ([3, 4, 5], [3, 4]), ([3, 4, 5], [3, 4, 9])])
def test_the_margin_is_that_of_the_token_where_texts_part(texts: tuple[list[int], list[int]]) -> None:
    """One a prefix of the other, either way: the row after the common beginning."""
    (found,) = compare(Reference(), [("p", [1, 2, 9])], [texts[0]], [texts[1]])
    assert (found.position, found.top2_margin) == (2, 5.0)


def test_a_row_cut_inside_a_character_is_made_again(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in ("abc", "bcd", "cde")))
    fixed = ["--model", str(tiny_base), "--prompts", str(prompts), "-m", "4", "--batch-size", "1", "--valid-share", "0"]
    assert main(["distill-data", *fixed, "--out", str(tmp_path / "whole")]) == 0
    row, out = own_text._row, tmp_path / "out"

    def stopped(number: int, *arguments: Any) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return row(number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(own_text, "_row", stopped)
        assert main(["distill-data", *fixed, "--out", str(out)]) == 130
    with (out / "part.jsonl").open("ab") as part:
        part.write('{"row": 1, "prompt": "é'.encode()[:-1])
    assert main(["distill-data", "--resume", "--out", str(out)]) == 0
    assert (out / "train.jsonl").read_bytes() == (tmp_path / "whole" / "train.jsonl").read_bytes()


def test_export_heads_stopped_in_the_middle_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_json", stop)
        assert main(["export-heads", str(tiny_checkpoint), "--out", str(out)]) == 130
    assert not out.exists()
    assert main(["export-heads", str(tiny_checkpoint), "--out", str(out)]) == 0
