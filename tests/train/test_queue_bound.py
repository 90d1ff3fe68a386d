"""On CUDA, whatever trains bounds MLX's queue before it loads a base; importing the training code does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtpd_mlx.cli import main
from mtpd_mlx.demo import run as demo
from mtpd_mlx.model import runtime
from mtpd_mlx.train import extend, setup

NAME, VALUE = runtime.QUEUED_MB


class Loaded(SystemExit):  # no other kind leaves a program
    """Carries the variable's value when a base is loaded."""


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "")
    monkeypatch.delenv(NAME)  # and what the test leaves there
    monkeypatch.setattr(runtime, "on_cuda", lambda: True)

    def load(*_: object, **__: object) -> None:
        raise Loaded(os.environ.get(NAME))

    for module, name in ((setup, "load_base"), (extend, "load_checkpoint"), (demo, "load_base")):
        monkeypatch.setattr(module, name, load)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("command", ["train", "refit", "extend", "demo"])
def test_every_command_that_trains(
    command: str, tiny_base: Path, tiny_checkpoint: Path, text_data: Path, tmp_path: Path
) -> None:
    options = ["--data", str(text_data), "--out", str(tmp_path / "out")]
    arguments = {
        "train": ["--model", str(tiny_base), *options],
        "refit": [str(tiny_checkpoint), "--model", str(tiny_base), *options],
        "extend": [str(tiny_checkpoint), "--to", "4", *options],
        "demo": ["--bundled", "--out", str(tmp_path / "demo")],
    }
    with pytest.raises(Loaded, match=rf"^{VALUE}$"):
        main([command, *arguments[command]])


@pytest.mark.usefixtures("on_cuda")
def test_what_is_set_stays(tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "77")
    with pytest.raises(Loaded, match=r"^77$"):
        main(["train", "--model", str(tiny_base), "--data", str(text_data), "--out", str(tmp_path / "out")])


def test_ranks_bound_it_before_they_hear_of_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtpd_mlx.ranks import world as ranks

    called: list[str] = []
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setattr(ranks, "bound_queue", lambda: called.append("bound"))

    def init() -> None:
        called.append("init")
        raise Loaded

    monkeypatch.setattr(ranks.mx.distributed, "init", init)
    with pytest.raises(Loaded):
        ranks.World.launched()
    assert called == ["bound", "init"]


def test_importing_the_training_code_sets_nothing() -> None:
    program = (
        "import os\n"
        "import mtpd_mlx.model.runtime as runtime\n"
        "before = dict(os.environ)\n"
        "runtime.on_cuda = lambda: True\n"
        "import mtpd_mlx.train.run, mtpd_mlx.train.extend, mtpd_mlx.train.refit\n"
        "assert dict(os.environ) == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
