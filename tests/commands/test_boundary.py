"""The one boundary of both programs: whatever a library raises is one line; --traceback or MTPD_TRACEBACK=1 say the rest."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mtpd_mlx.options.streams import takes_colour

PROGRAMS = {"mtpd": "mtpd_mlx", "mtpd-onnx": "mtpd_onnx"}


class Panic(BaseException):
    """As Rust libraries raise."""


def program(name: str) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = importlib.import_module(f"{PROGRAMS[name]}.cli").main
    return main


def command(name: str) -> ModuleType:
    """One that takes a folder and nothing else that must be given."""
    return importlib.import_module({"mtpd": "mtpd_mlx.commands.inspect", "mtpd-onnx": "mtpd_onnx.commands.info"}[name])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NameError("name 'x' is not defined"), "NameError: name 'x' is not defined (--traceback shows where)"),
        (KeyError("model.norm"), "KeyError: 'model.norm' (--traceback shows where)"),
        (Exception("first\nsecond"), "Exception: first (--traceback shows where)"),
        (AssertionError(), "AssertionError (--traceback shows where)"),
        (Panic("called unwrap on None"), "Panic: called unwrap on None (--traceback shows where)"),
        (RuntimeError("out of memory\nat 0x1"), "out of memory (--traceback shows where)"),
        (ValueError("first\nsecond"), "first (--traceback shows where)"),
        (ValueError("x: got 1, expected 2"), "x: got 1, expected 2"),
        (FileNotFoundError(2, "No such file", "f"), "[Errno 2] No such file: 'f'"),
        (ValueError(), "ValueError"),
    ],
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_library_raises_is_one_line(
    name: str, error: BaseException, line: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = command(name)

    def fail(*_: Any) -> int:
        raise error

    monkeypatch.setattr(module, "run", fail)
    monkeypatch.delenv("MTPD_TRACEBACK", raising=False)
    typed = module.__name__.rpartition(".")[2]
    assert program(name)([typed, "folder"]) == 1
    assert capsys.readouterr().err == f"{name} {typed}: error: {line}\n"
    for arguments in (["--traceback", typed, "folder"], [typed, "folder", "--traceback"]):
        assert program(name)(arguments) == 1
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith("Traceback") and "in fail" in "\n".join(said) and said[-1].endswith(f"error: {line}")
    monkeypatch.setenv("MTPD_TRACEBACK", "1")
    assert program(name)([typed, "folder"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_flag_is_in_help(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        program(name)(["--help"])
    assert "--traceback" in capsys.readouterr().out


class Terminal:
    def __init__(self, is_one: bool):
        self.isatty = lambda: is_one


def test_colours_are_for_terminals_that_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    terminal: Any = Terminal(True)
    assert takes_colour(terminal) and not takes_colour(Terminal(False))  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "")
    assert takes_colour(terminal)  # no-color.org: where it is not empty
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not takes_colour(terminal)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert takes_colour(Terminal(False))  # type: ignore[arg-type]
    monkeypatch.delenv("FORCE_COLOR")
    assert not takes_colour(terminal)
