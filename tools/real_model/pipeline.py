"""`run_stages`: stages run one after the other, each once; OUT/done.json says which are done.
Called by real_model/__main__.py.

A stage is done when its process ended with status 0. The commands themselves resume: `state_of` says how one is to be called.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpd_mlx.files.atomic import write_json
from tools.paths import python_path

DONE = "done.json"
NO_BETTER = 3  # the status of mtpd train
PRODUCT = (sys.executable, "-m", "mtpd_mlx.cli")


class StageFailed(Exception):
    """`status`: of the process."""

    def __init__(self, name: str, status: int):
        no_better = ": training made nothing better than its start" if status == NO_BETTER else ""
        super().__init__(f"stage {name}: ended with status {status}{no_better}; the same command goes on there")
        self.status = status


@dataclass(frozen=True)
class Stage:
    """`identity`: what the result depends on besides the command; `work`: a function in place of a command; `how`: more of the
    command, which the result does not depend on; `to`: a file that gets the command's output; `out`: the folder that the
    command writes, where it can take up an interrupted run."""

    name: str
    command: tuple[str, ...] = ()
    how: tuple[str, ...] = ()
    identity: dict[str, Any] = field(default_factory=dict)
    work: Callable[[], Any] | None = None
    to: Path | None = None
    out: Path | None = None

    def record(self) -> dict[str, Any]:
        return {"command": list(self.command), "identity": self.identity}


def run_stages(stages: list[Stage], out: Path, say: Callable[[str], None]) -> None:
    """Runs what is not done yet. ValueError where a stage was done with other settings; StageFailed where one fails."""
    file = out / DONE
    done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for stage in stages:
        if (earlier := done.get(stage.name)) is not None:
            if {name: earlier.get(name) for name in stage.record()} != stage.record():
                raise ValueError(f"{out}: stage {stage.name} was done with other settings; give another --out, or remove it")
            say(f"{stage.name}: done, {earlier['seconds']:.0f} s")
            continue
        began = time.time()
        say(f"{stage.name} ...")
        if stage.work is not None:
            stage.work()
        elif not has_ended(stage.out):
            _run(stage)
        done[stage.name] = stage.record() | {"seconds": round(time.time() - began, 1)}
        write_json(file, done)


def state_of(out: Path | None) -> tuple[str, ...]:
    """The flag with which a command goes on in the folder that an interrupted one left."""
    if out is None or not out.is_dir():
        return ()
    if (out / "part.jsonl").is_file() or any(out.glob("resume-*")) or any(out.glob("stages/*/resume-*")):
        return ("--resume",)
    return ("--overwrite",)


def has_ended(out: Path | None) -> bool:
    """Whether the command that writes `out` has come to its end: we were killed before that was written down."""
    if out is None:
        return False
    run = out / "train_options.json"
    if run.is_file():
        finished = json.loads(run.read_text(encoding="utf-8")).get("finished") is True
        return finished and (out / "mtp_config.json").is_file()  # with heads that it kept
    return (out / "train.jsonl").is_file() and not (out / "part.jsonl").exists()


def _run(stage: Stage) -> None:
    command = [*stage.command, *stage.how, *state_of(stage.out)]
    if stage.to is not None:
        stage.to.parent.mkdir(parents=True, exist_ok=True)
        temporary = stage.to.with_name(f".{stage.to.name}.part")
        with temporary.open("w", encoding="utf-8") as f:
            status = _wait(command, f)
        if status == 0:
            temporary.replace(stage.to)
    else:
        status = _wait(command, None)
    if status:
        raise StageFailed(stage.name, status if status > 0 else 128 - status)


def _wait(command: list[str], stdout: Any) -> int:
    """The status of the command. Signals are the child's to answer: it saves what can be resumed, and ends."""
    child = subprocess.Popen(command, stdout=stdout, env=os.environ | python_path())
    handlers = {s: signal.signal(s, lambda number, frame: child.send_signal(number)) for s in (signal.SIGTERM,)}
    handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    try:
        return child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
