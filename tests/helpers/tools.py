"""The programs of tools/, in this process: starting Python and importing MLX takes longer than what they do here."""

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """As `python -m tools.NAME ARGUMENTS`."""
    command, code = [name, *map(str, arguments)], 0
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        try:
            runpy.run_module(f"tools.{name}", run_name="__main__")
        except SystemExit as ended:
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
