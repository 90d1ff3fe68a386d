"""Options that make no sense are one clear line, before anything is loaded; options files say what is wrong with them."""

import sys
from pathlib import Path
from typing import Any

import pytest

from mtpd_mlx.cli import main
from mtpd_mlx.options.cache import CacheConfig
from mtpd_mlx.options.distill import DistillConfig
from mtpd_mlx.options.schema import Range, build, read_yaml
from mtpd_mlx.options.train import DataConfig, TrainOptions


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --seed -1", "--seed: got -1, expected 0.."),
        ("train --grad-accumulation-steps 0", "--grad-accumulation-steps: got 0, expected at least 1"),
        ("train --learning-rate nan", "--learning-rate: got nan, expected at least 0"),
        ("train --learning-rate -1", "--learning-rate: got -1.0"),
        ("train --learning-rate inf", "--learning-rate: got inf"),
        ("train --data a b --data-weights nan 1", "--data-weights: got nan"),
        ("train --top-n 0", "--top-n: got 0, expected at least 1"),
        ("train --alpha 1 -1", "--alpha: got -1.0"),
        ("train --adam-betas 0.9", "--adam-betas: got 1 values, expected 2"),
        ("train --adam-betas 0.9 1", "--adam-betas: got 1.0, expected at least 0 and less than 1"),
        ("train --kl-start 1", "--kl-start: got 1.0, expected at least 0 and less than 1"),
        ("train --model m --no-detach-teacher", "--no-detach-teacher: expected --train joint"),
        ("train --num-heads 0", "--num-heads: got 0, expected 1..64"),
        ("train --draft-vocab 0", "--draft-vocab: got 0"),
        ("train --batch-size 0", "--batch-size: got 0"),
        ("train --max-seq-length 2", "--max-seq-length: got 2, expected at least 3"),
        ("train --valid-share 1", "--valid-share: got 1.0"),
        ("train --model m --model-config c.json", "--model-config: expected --train joint and no --model"),
        ("refit x --seed -1", "--seed: got -1"),
        ("cache --top-n -1", "--top-n: got -1"),
        ("cache --shard-mb 0", "--shard-mb: got 0.0, expected more than 0"),
        ("distill-data --temp -1", "--temp: got -1.0, expected at least 0"),
        ("distill-data --top-p 3", "--top-p: got 3.0, expected 0..1"),
        ("distill-data --seed -1", "--seed: got -1"),
        ("distill-data --limit -2", "--limit: got -2"),
        ("distill-data --model m --prompts p --top-k 5", "--top-k: expected a --temp above 0"),
    ],
)
def test_values_are_checked_before_anything_is_loaded(arguments: str, words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments.split()) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0], lines


@pytest.mark.parametrize(
    "arguments", [["train", "--out", ""], ["train", "--data", "a", ""], ["cache", "--model", ""], ["distill-data", "--out", ""]]
)
def test_an_empty_text_is_no_name(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    """It would be the folder one is in: what a shell makes of a variable that is not set."""
    assert main(arguments) == 1
    assert f"{arguments[1]}: got an empty text" in capsys.readouterr().err


def test_defaults_are_values_that_options_take() -> None:
    """Refused, they would be a ValueError; taken, they are as they were."""
    classes = (*TrainOptions.classes(), CacheConfig, DistillConfig)
    assert build(classes, {}, {}) == [cls() for cls in classes]


def test_ranges_say_what_they_hold() -> None:
    assert str(Range()) == "a finite number" and not Range().holds(float("inf")) and Range().holds(10**400)
    assert str(Range(0, 1, above=True, below=True)) == "more than 0 and less than 1"
    assert [Range(0, 1, above=True).holds(x) for x in (0, 0.5, 1)] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: null", "seed: got None, expected int"),
        ("iters: true", "iters: got True, expected int"),
        ("iters: .inf", "iters: got inf, expected int"),
        ("data: [[a], b]", "data: got [['a'], 'b'], expected str"),
        ("data_weights: [x]", "expected float"),
        ("pack: 1", "expected bool"),
        ("5: 3", "unknown config key 5"),
        ("- a", "expected a mapping"),
        ("b: 1\na: [", "expected the node content, but found '<stream end>' (line 2)"),
    ],
)
def test_odd_files_are_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        build(TrainOptions.classes(), read_yaml(file), {})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("\ufeffmax_seq_length: 9\n", encoding="utf-8")
    assert build((DataConfig,), read_yaml(tmp_path / "c.yaml"), {})[0].max_seq_length == 9


def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match="pip install pyyaml"):
        read_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "--itres", "3"], "unrecognized arguments: --itres 3; did you mean --iters?"),
        (["inspect", "a", "b"], "unrecognized arguments: b; mtpd inspect --help lists the options"),
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
    ],
)
def test_a_misspelt_word_is_told_the_next_step(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err.rstrip().endswith(f"mtpd: error: {hint}")
