"""The BLAS that is loaded before MLX, and the one-line warnings. Each case in its own process: a library stays loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
{before}
from mtpd_mlx.model.blas import compiler_warning, preload_blas
from mtpd_mlx.text.messages import messages_on_stderr
with messages_on_stderr():
    reports = [preload_blas(), preload_blas()]
    compiler_warning(), compiler_warning()
print(json.dumps([reports[0].needed, reports[0].library, reports[0] is reports[1], "numpy" in sys.modules]))
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS builds of MLX bring their own matrix product")


def report(before: str = "", **environment: str) -> tuple[list, list[str]]:
    """What preload_blas says in a new process, and the lines it wrote to stderr."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MTPD_BLAS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout), done.stderr.splitlines()


def as_if_none_loaded(*modules: str) -> str:
    """MLX's CPU build, with these modules imported already; no CUDA build, whatever is installed."""
    lines = [
        "import types, mtpd_mlx.model.blas as blas",
        "blas._has_cuda_backend = lambda: False",
        "blas._needed = lambda: True",
    ]
    return "\n".join([*lines, *(f"sys.modules[{m!r}] = types.ModuleType({m!r})" for m in modules)])


def test_off_loads_nothing_and_says_nothing() -> None:
    (needed, library, same, numpy), lines = report(MTPD_BLAS="off")
    assert (needed, library, same, numpy) == (False, None, True, False)
    assert not [line for line in lines if "BLAS" in line]


@pytest.mark.parametrize("library", ["/nowhere/libopenblas.so.0", "libm.so.6"])  # missing; no BLAS
def test_a_wrong_choice_is_named_once(library: str) -> None:
    (needed, loaded, *_), lines = report(as_if_none_loaded(), MTPD_BLAS=library)
    assert needed and loaded is None
    (line,) = [line for line in lines if "BLAS" in line]
    assert f"MTPD_BLAS={library}" in line and "install" in line


def test_mlx_imported_first_is_told() -> None:
    (_, loaded, *_), lines = report(as_if_none_loaded("mlx.core"))
    assert loaded is None
    assert [line for line in lines if "imported before mtpd_mlx" in line]


def test_no_compiler_is_told_once(tmp_path: Path) -> None:
    _, lines = report(MTPD_BLAS="off", PATH=str(tmp_path))
    assert [line for line in lines if "g++" in line] == lines and len(lines) == 1
