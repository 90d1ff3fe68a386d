"""The folder of `mtpd demo`: `demo_folder` makes it anew and holds it while the demo runs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtpd_mlx.files.lock import is_empty, locked

MARK = ".mtpd-demo"  # in a folder that a demo may replace


@contextmanager
def demo_folder(out: Path, overwrite: bool) -> Iterator[None]:
    """An empty folder, which no other demo may write to meanwhile. ValueError in one line where it exists and may not go."""
    with locked(out, beside=True):
        if out.exists():
            if not overwrite:
                raise ValueError(f"--out {out}: exists already; use --overwrite or another folder")
            if not is_empty(out) and not (out / MARK).exists():
                raise ValueError(f"--out {out}: not a folder of an earlier demo, so it is not replaced")
            shutil.rmtree(out)
        out.mkdir(parents=True)
        (out / MARK).touch()
        yield
