"""What the tests of this folder share: `mtpd` in this process, `mtpd_process` as a shell starts it."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from stub_hub import Hub

from mtpd_mlx.cli import main
from mtpd_mlx.hub.pull import pull

ROOT = Path(__file__).parent.parent.parent
NOWHERE = "http://127.0.0.1:9"  # nobody listens there
TIMEOUT = 5  # seconds for the hub's answer about a file

Done = subprocess.CompletedProcess  # of mtpd, too: what the tests ask for is the same


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def mtpd(hub: Hub, home: Path, *arguments: str, **more: str) -> Done:
    """The command in `home`, with `more` in its environment. What huggingface_hub reads of it only once, is set."""
    from huggingface_hub import constants

    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": more.get("HF_HUB_OFFLINE") == "1",
        "HF_HUB_ETAG_TIMEOUT": TIMEOUT,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    home.mkdir(parents=True, exist_ok=True)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(home)
        patch.delenv("HF_TOKEN", raising=False)
        for name, value in more.items():
            patch.setenv(name, value)
        for name, setting in settings.items():
            patch.setattr(constants, name, setting)
        pull.cache_clear()  # which lasts for one run
        code = main(list(arguments))
    return Done(list(arguments), code, out.getvalue(), err.getvalue())


def mtpd_process(hub: Hub, home: Path, *arguments: str, **more: str) -> Done:
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_ETAG_TIMEOUT": str(TIMEOUT), "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'export'}"} | more
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mtpd_mlx.cli", *arguments]
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def refused(done: Done, word: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("mtpd ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert len(errors) == 1 and word in errors[0], done.stderr
