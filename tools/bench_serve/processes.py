"""`cpu_seconds`, `blas_of`: processor time of a server's processes, and the library of its matrix products.
Called by bench_serve/servers.py."""

import os
from pathlib import Path

BLAS = ("openblas", "mkl_rt", "blis", "cublas", "Accelerate")  # parts of libraries' names


def cpu_seconds(group: int) -> float | None:
    """User and system seconds of all processes of this group, those that have ended and were waited for included; None where
    /proc does not say."""
    ticks = [_ticks(stat) for stat in Path("/proc").glob("[0-9]*/stat")]
    own = [used for found, used in filter(None, ticks) if found == group]
    return sum(own) / os.sysconf("SC_CLK_TCK") if own else None


def _ticks(stat: Path) -> tuple[int, int] | None:
    """A process's group, and the ticks that it and its ended children took; None where it is gone."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()  # its name may hold blanks
    except OSError:
        return None
    return int(fields[2]), sum(map(int, fields[11:15]))


def blas_of(pid: int) -> str | None:
    """File names of the BLAS libraries that a process has loaded, "its own" where it has none of those known; None where
    /proc does not say."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return None
    files = {Path(line.split(maxsplit=5)[5]).name for line in maps.splitlines() if len(line.split(maxsplit=5)) > 5}
    return ", ".join(sorted(name for name in files if any(part in name for part in BLAS))) or "its own"
