"""--init-heads: the number of heads and their hidden source are the checkpoint's, unless a user says otherwise."""

from pathlib import Path

import pytest
from helpers.runs import flags, one_line
from tiny import write_checkpoint

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.cli import main

RUN = flags(iters=2, max_seq_length=32, warmup=1, learning_rate="1e-2", steps_per_eval=1, val_batches=1)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("begun"), tiny_base, num_heads=2, hidden_source="prenorm")


def train(begun: Path, tiny_base: Path, text_data: Path, out: Path, *extra: str) -> int:
    command = ["train", "--model", str(tiny_base), "--data", str(text_data), "--out", str(out), "--init-heads", str(begun)]
    return main([*command, *RUN, *extra])


def test_heads_go_on_as_many_as_they_are(begun: Path, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    assert train(begun, tiny_base, text_data, tmp_path / "out") == 0
    config = read_config(tmp_path / "out")
    assert (config.num_heads, config.hidden_source) == (2, "prenorm")


def test_another_number_is_refused(
    begun: Path, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(begun, tiny_base, text_data, tmp_path / "out", "--num-heads", "3") != 0
    one_line(capsys, "has 2 heads (prenorm), expected 3 (prenorm)")
