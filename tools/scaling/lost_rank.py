"""`lose_ranks`: kill -9 of one rank of `mtpd train`: how soon the others stop, what they say, whether the run resumes.
Called by tools/bench_scaling.py."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.train.loop import LOG_NAME
from tools.experiments.settings import BASES
from tools.paths import DEMO, ROOT, python_path
from tools.scaling.ranks import mlx_launch, run_ranks, share_kernels, started

ITERS, SAVE_EVERY = 200, 50
ALLOWED = 60.0  # seconds from the kill until every rank has stopped


@dataclass(frozen=True)
class Kill:
    """launcher: who started the ranks; `nobody`: nothing watches over them. stopped_s: from the kill to the last rank's end."""

    launcher: str
    ranks: int
    stopped_s: float
    messages: list[str]
    resumed_from: int
    resumed_on: int
    resumed_s: float
    iterations: int


def train_command(dims: str, rows: int, out: Path, folder: Path) -> list[str]:
    """Base and heads from scratch on the bundled text."""
    config = folder / "config.json"
    vocab = json.loads((DEMO / "base" / "config.json").read_text())["vocab_size"]
    config.write_text(json.dumps(BASES[dims] | {"vocab_size": vocab}))
    options = {
        "train": "joint", "model-config": config, "tokenizer": DEMO / "base", "data": DEMO / "text", "out": out,
        "batch-size": rows, "max-seq-length": 64, "num-heads": 2, "iters": ITERS, "save-every": SAVE_EVERY,
        "steps-per-report": 10, "steps-per-eval": ITERS, "val-batches": 2,
    }  # fmt: skip
    return [sys.executable, "-m", "mtpd_mlx.cli", "train", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]


def ranks_of(out: Path) -> dict[int, int]:
    """{rank: process id} of the running ranks that write to `out`, from /proc."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            rank = re.search(rb"\0MLX_RANK=(\d+)\0", b"\0" + (process / "environ").read_bytes())
            if rank and str(out).encode() in (process / "cmdline").read_bytes():
                found[int(rank[1])] = int(process.name)
    return found


@contextlib.contextmanager
def launched(launcher: str, count: int, command: list[str], folder: Path, log: Path) -> Iterator[None]:
    if launcher == "nobody":
        with started(count, command, folder, log):
            yield
        return
    share_kernels(count)
    with log.open("wb") as output:  # a pipe as stdin: mlx.launch reads it without a pause where it is at its end
        process = subprocess.Popen(
            mlx_launch(count, command), stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=ROOT,
            env=dict(os.environ) | python_path(),
        )  # fmt: skip
        try:
            yield
            process.wait(ALLOWED)
        finally:
            for rank in ranks_of(Path(command[command.index("--out") + 1])).values():
                with contextlib.suppress(OSError):
                    os.kill(rank, signal.SIGKILL)
            process.kill()
            process.wait()


def seconds_until_all_stop(out: Path, victim: int) -> float:
    """Kills one rank and waits for the others. RuntimeError when they outlive ALLOWED."""
    pids = ranks_of(out)
    killed = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    while left := {rank for rank, pid in pids.items() if rank != victim and alive(pid)}:
        if time.monotonic() - killed > ALLOWED:
            raise RuntimeError(f"rank {victim} was killed; {ALLOWED:.0f} s later these still run: {sorted(left)}")
        time.sleep(0.02)
    return time.monotonic() - killed


def alive(pid: int) -> bool:
    """Neither gone nor a zombie, which waits only for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_resume_point(out: Path, log: Path, limit: float) -> None:
    """RuntimeError when all ranks end before, or after `limit` seconds."""
    deadline, seen = time.monotonic() + limit, False
    while not (out / f"resume-{SAVE_EVERY}").is_dir():
        running = bool(ranks_of(out))
        if time.monotonic() > deadline or (seen and not running):
            raise RuntimeError(f"no resume point: {log.read_text()[-2000:]}")
        seen = seen or running
        time.sleep(0.05)


def kill_one(launcher: str, dims: str, count: int, rows: int, resume_on: int, folder: Path, limit: float) -> Kill:
    """One run: kill its last rank after the first resume point, then resume it to its end."""
    out, log = folder / f"by-{launcher}", folder / f"{launcher}.log"
    command = train_command(dims, rows, out, folder)
    with launched(launcher, count, command, folder, log):
        wait_for_resume_point(out, log, limit)
        stopped = seconds_until_all_stop(out, count - 1)
    messages = sorted(set(re.findall(r"mtpd[^\r\n]*lost[^\r\n]*", log.read_text())))
    points = [int(p.name.removeprefix("resume-")) for p in out.glob("resume-*")]
    if not messages or len(points) != 1 or points[0] >= ITERS:
        raise RuntimeError(f"expected a message and one resume point, got {messages} and {points}: {log.read_text()[-2000:]}")
    begun = time.monotonic()
    run_ranks(resume_on, [*command[:4], "--resume", "--out", str(out)], folder, limit, folder / "resumed.log", (0, 3))
    last = json.loads((out / LOG_NAME).read_text().splitlines()[-1])["iter"]
    if last != ITERS:
        raise RuntimeError(f"resumed on {resume_on}: ended at step {last}, expected {ITERS}")
    return Kill(launcher, count, stopped, messages, points[0], resume_on, time.monotonic() - begun, last)


def lose_ranks(dims: str, ranks: list[int], folder: Path, limit: float, quiet: bool = False) -> list[Kill]:
    """Under mlx.launch, resumed on fewer ranks; and with nobody watching over the ranks, resumed on as many."""
    if not Path("/proc/self/environ").exists():
        raise ValueError("--kill: needs /proc (Linux) to find the ranks")
    if max(ranks) < 2:
        raise ValueError(f"--kill: got --ranks {max(ranks)}, expected 2 or more")
    kills = []
    rows = math.lcm(*ranks)
    rows *= -(-8 // rows)
    for launcher, resume_on in (("mlx.launch", max([1, *ranks[:-1]])), ("nobody", ranks[-1])):
        print(f"  {ranks[-1]} ranks started by {launcher}", file=sys.stderr, flush=True)
        kill = kill_one(launcher, dims, ranks[-1], rows, resume_on, folder, limit)
        kills.append(kill)
        if not quiet:
            print(f"{kill.ranks} ranks started by {launcher}: all stopped {kill.stopped_s:.1f} s after one was killed, saying")
            print("\n".join(f"    {message}" for message in kill.messages))
            print(
                f"  resumed at step {kill.resumed_from} on {kill.resumed_on} ranks, finished {kill.iterations} steps in "
                f"{kill.resumed_s:.0f} s"
            )
    return kills
