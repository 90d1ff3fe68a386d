"""The paths of this repository and its bundled model, and the environment in which its programs start from anywhere.
Called by the other tools. It imports nothing of the project."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "mtpd_mlx" / "assets" / "demo"


def python_path() -> dict[str, str]:
    """PYTHONPATH for child processes, the caller's own entries last."""
    own = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "export"), own]))}
