"""`demo_folder`: the folder of a demo, new or taken up after an interruption, held while the demo runs.
Called by `mtpd demo`."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from mtpd_mlx.files.atomic import write_text
from mtpd_mlx.files.lock import is_empty, locked

MARK = ".mtpd-demo"  # in a folder that a demo may replace; holds `code_digest()`
REPORT = "report.json"  # the last that a demo writes
logger = logging.getLogger(__name__)


@contextmanager
def demo_folder(out: Path, overwrite: bool) -> Iterator[None]:
    """An empty folder, or that of a demo which the same code began and did not finish. No other demo may write to it meanwhile.
    ValueError in one line where it exists and may not go."""
    with locked(out, beside=True):
        if out.exists() and is_unfinished(out):
            logger.info("%s: an interrupted demo, which goes on where it was", out)
        else:
            if out.exists():
                if not overwrite:
                    raise ValueError(f"--out {out}: exists already; use --overwrite or another folder")
                if not is_empty(out) and not (out / MARK).exists():
                    raise ValueError(f"--out {out}: not a folder of an earlier demo, so it is not replaced")
                shutil.rmtree(out)
            out.mkdir(parents=True)
            write_text(out / MARK, code_digest())
        yield


def is_unfinished(out: Path) -> bool:
    """Whether a demo of this very code was interrupted in `out`. What other code made is not taken over."""
    mark = out / MARK
    return (
        mark.is_file() and not (out / REPORT).exists() and mark.read_text(encoding="utf-8", errors="replace") == code_digest()
    )


@cache
def code_digest() -> str:
    """sha256 of all that decides a demo's results: our sources and assets, versions of what they run on."""
    digest = hashlib.sha256()
    for package in ("mtpd_mlx", "mtpd_onnx"):
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for file in sorted(f for f in root.rglob("*") if f.is_file() and "__pycache__" not in f.parts):
            digest.update(f"{package}/{file.relative_to(root)}\n".encode())
            digest.update(file.read_bytes())
    for name in ("mlx", "mlx-lm", "onnxruntime", "numpy"):
        digest.update(f"{name} {_version(name)}\n".encode())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # onnxruntime has several packages
        return "-"
