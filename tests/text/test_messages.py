"""What library code says: lines on stderr inside a program, nothing for who uses it from Python without logging."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from mtpd_onnx.cli import main as main_onnx

from mtpd_mlx.cli import main
from mtpd_mlx.text.messages import messages_on_stderr

HERE, THERE = logging.getLogger("mtpd_mlx.x.y"), logging.getLogger("mtpd_onnx.z")


def test_lines_name_the_package_and_end_with_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with messages_on_stderr():
            HERE.info("%d tokens", 3)
            THERE.warning("no CUDA")
            HERE.debug("not shown")
        HERE.error("after it")
        out, err = capsys.readouterr()
        assert (out, err) == ("", "mtpd: 3 tokens\nmtpd-onnx: no CUDA\n")


def test_the_environment_sets_the_level(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for level, shown in (("DEBUG", "abc"), ("WARNING", "c"), ("ERROR", ""), ("", "bc")):
        monkeypatch.setenv("MTPD_LOG", level)
        with messages_on_stderr():
            HERE.debug("a"), HERE.info("b"), HERE.warning("c")
        assert capsys.readouterr().err == "".join(f"mtpd: {text}\n" for text in shown)


@pytest.mark.parametrize(("program", "name"), [(main, "mtpd"), (main_onnx, "mtpd-onnx")])
def test_a_level_that_is_none_is_one_line(  # type: ignore[no-untyped-def]
    program, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MTPD_LOG", "loud")
    assert program(["info", str(tmp_path)]) == 1
    expected = "MTPD_LOG: got 'loud', expected one of DEBUG, INFO, WARNING, ERROR"
    assert capsys.readouterr().err == f"{name} info: error: {expected}\n"


def test_python_users_see_nothing_until_they_configure_logging() -> None:
    program = (
        "import logging, mtpd_mlx, mtpd_onnx\n{}\nfor n in ('mtpd_mlx.a', 'mtpd_onnx.b'): logging.getLogger(n).error('said')"
    )
    shown = []
    for configure in ("", "logging.basicConfig(format='%(message)s')"):
        command = [sys.executable, "-c", program.format(configure)]
        shown.append(subprocess.run(command, capture_output=True, text=True, check=True).stderr)
    assert shown == ["", "said\nsaid\n"]
