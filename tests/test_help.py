"""`--help` of every command against its golden file (tests/golden/help): flags, defaults and wording change only on purpose.

UPDATE_GOLDEN=1 pytest tests/test_help.py      # writes the files anew; read the difference before it is committed
"""

import importlib
import os
import re
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden" / "help"
PROGRAMS = {"mtpd": "mtpd_mlx.cli", "mtpd-onnx": "mtpd_onnx.cli"}
PAGES = [
    (program, command)
    for program, module in PROGRAMS.items()
    for command in ["", *importlib.import_module(module).COMMANDS]
]  # fmt: skip


def help_of(program: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(PROGRAMS[program]).main([*([command] if command else []), "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def normal(text: str) -> str:
    """What no version of argparse sets otherwise: line breaks are, and a metavar is said once or twice (3.13)."""
    return re.sub(r"(-\w) [A-Z_]+, (--[\w-]+) ", r"\1, \2 ", re.sub(r"\s+", " ", text))


@pytest.mark.parametrize(("program", "command"), PAGES, ids=lambda part: part or "overview")
def test_help_is_the_golden_one(
    program: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(program, command, capsys, monkeypatch)
    file = GOLDEN / f"{program}{'-' if command else ''}{command}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert normal(text) == normal(file.read_text(encoding="utf-8"))


def test_every_golden_file_is_of_a_command() -> None:
    names = {f"{program}{'-' if command else ''}{command}.txt" for program, command in PAGES}
    assert {file.name for file in GOLDEN.iterdir()} == names
