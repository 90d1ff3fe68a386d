"""What the tests of this folder share."""

import os
import subprocess
import sys
from pathlib import Path

from stub_hub import Hub

ROOT = Path(__file__).parent.parent.parent
NOWHERE = "http://127.0.0.1:9"  # nobody listens there


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def mtpd(hub: Hub, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5"}
    env |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'export'}", "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"} | more
    command = [sys.executable, "-m", "mtpd_mlx.cli", *arguments]
    home.mkdir(parents=True, exist_ok=True)
    return subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def refused(done: subprocess.CompletedProcess, word: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("mtpd ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert len(errors) == 1 and word in errors[0], done.stderr
