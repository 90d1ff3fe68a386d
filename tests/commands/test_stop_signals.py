"""SIGINT, SIGTERM and SIGHUP sent to real processes: one meaning, and the exit status of each; what is left can be taken up."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import assert_same_run, train_args
from mtpd_onnx.cli import main as exported

from mtpd_mlx.cli import main

ROOT = Path(__file__).parents[2]
ENV = dict(os.environ) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}", "PYTHONUNBUFFERED": "1"}
LONG = ("--iters", "4000", "--steps-per-report", "1", "--steps-per-eval", "0", "--save-every", "0")
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def as_from_a_shell() -> None:
    for number in STATUS:  # what runs the tests may ignore some
        signal.signal(number, signal.SIG_DFL)


def start(*command: str, module: str = "mtpd_mlx.cli", **more: Any) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    return subprocess.Popen([sys.executable, "-m", module, *command], env=ENV, preexec_fn=as_from_a_shell, **streams)


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    while line := process.stderr.readline():
        if words in line:
            return
    raise AssertionError(f"never said {words!r}")


def no_leftovers(folder: Path) -> None:
    """Nothing half-written: no temporary file, no lock."""
    names = [p.name for p in folder.rglob(".*")]
    assert not [n for n in names if n.endswith((".tmp", ".old")) or "lock" in n], names


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGINT))]
)
def test_training_leaves_a_resume_point(number: signal.Signals, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "an out"
    process = start(*train_args(tiny_base, text_data, out, *LONG))
    wait_for(process, "tok/s")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == STATUS[number], stderr
    assert "stopping after this step" in stderr and "Traceback" not in stderr
    assert f"interrupted; continue with: mtpd train --resume --out '{out}'" in stdout
    assert len(list(out.glob("resume-*"))) == 1
    no_leftovers(out)


@pytest.mark.slow
def test_what_sigterm_stopped_goes_on_as_if_never_stopped(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    whole, out, more = tmp_path / "whole", tmp_path / "out", ("--iters", "40", "--save-every", "0", "--steps-per-eval", "5")
    assert main(train_args(tiny_base, text_data, whole, *more)) in (0, 3)
    process = start(*train_args(tiny_base, text_data, out, *more))
    wait_for(process, "tok/s")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert main(["train", "--resume", "--out", str(out)]) in (0, 3)
    assert_same_run(whole, out, atol=1e-5)


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    process = start(*train_args(tiny_base, text_data, tmp_path / "out", *LONG))
    wait_for(process, "tok/s")
    process.terminate()
    wait_for(process, "stopping after this step")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.slow
def test_a_terminal_that_closes_is_sighup(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    """Its output has nowhere to go then: the resume point comes about all the same."""
    out = tmp_path / "out"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    process = start(
        *train_args(tiny_base, text_data, out, *LONG), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    while b"tok/s" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)  # as the system sends it to who has the terminal
    assert process.wait(60) == 129
    assert len(list(out.glob("resume-*"))) == 1
    no_leftovers(out)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"abcdefgh {i}"}) + "\n" for i in range(2000)))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS)
def test_generate_ends_with_what_it_has(number: signal.Signals, tiny_checkpoint: Path, prompts: Path) -> None:
    process = start("generate", str(tiny_checkpoint), "--prompts", str(prompts), "--json", "-m", "20")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(number)
    rest, stderr = process.communicate(timeout=60)
    assert process.returncode == STATUS[number] and "Traceback" not in stderr
    rows = [json.loads(line) for line in (first + rest).splitlines()]
    assert rows[-1]["finish_reason"] == "interrupted" or len(rows) < 2000


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_chat_saves_its_cache(number: signal.Signals, tiny_checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.safetensors"
    process = start("chat", str(tiny_checkpoint), "-m", "4", "--prompt-cache-file", str(cache), stdin=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("abcd\n")
    process.stdin.flush()
    while "tokens/s" not in process.stdout.readline():
        pass
    time.sleep(0.2)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == STATUS[number], stderr
    assert cache.is_file() and "Traceback" not in stderr
    no_leftovers(tmp_path)


def making(kind: str, base: Path, prompts: Path, data: Path, out: Path) -> list[str]:
    if kind == "distill-data":
        return [kind, "--model", str(base), "--prompts", str(prompts), "--out", str(out), "--batch-size", "2", "-m", "30"]
    rows = ["--max-seq-length", "16", "--batch-size", "1", "--shard-mb", "0.01"]
    return [kind, "--model", str(base), "--data", str(data), "--out", str(out), *rows]


@pytest.fixture
def much_text(tmp_path: Path) -> Path:
    folder = tmp_path / "much"
    folder.mkdir()
    for name, count in (("train", 4000), ("valid", 10)):
        rows = [{"text": "abcdefgh ijklm nopq " * 3 + str(i % 7)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cache", "distill-data"])
def test_what_is_made_in_parts_goes_on(kind: str, tiny_base: Path, prompts: Path, much_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(*making(kind, tiny_base, prompts, much_text, out))
    deadline = time.time() + 60
    while time.time() < deadline and not any(p.stat().st_size for p in [*out.glob("*.safetensors"), *out.glob("part.jsonl")]):
        time.sleep(0.02)
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert f"continue with: mtpd {kind} --resume --out {out}" in stdout and "Traceback" not in stderr
    no_leftovers(out)


@pytest.mark.slow
def test_every_moment_of_an_export_leaves_all_or_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """SIGTERM after more and more of the work: the folder is there, whole, or not at all."""
    for tenths in range(4, 30, 5):
        out = tmp_path / f"out{tenths}"
        process = start("export", str(tiny_checkpoint), "--out", str(out))
        time.sleep(tenths / 10)
        process.terminate()
        _, stderr = process.communicate(timeout=60)
        assert process.returncode in (0, 143, -15) and "Traceback" not in stderr
        assert out.is_dir() or process.returncode
        assert not out.exists() or exported(["info", str(out), "--verify"]) == 0  # stopped on its way out
        no_leftovers(tmp_path)


@pytest.fixture
def two_ranks(ring: None) -> Iterator[None]:
    yield


@pytest.mark.slow
def test_rank_0_leaves_a_resume_point(two_ranks: None, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    """SIGTERM to both ranks, as a batch system sends it."""
    import socket
    from contextlib import ExitStack

    out = tmp_path / "out"
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        hosts = [[f"127.0.0.1:{s.getsockname()[1]}"] for s in held]
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    env = ENV | {"MLX_HOSTFILE": str(tmp_path / "hosts.json")}
    command = [sys.executable, "-m", "mtpd_mlx.cli", *train_args(tiny_base, text_data, out, *LONG)]
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": as_from_a_shell}
    ranks = [subprocess.Popen(command, env=env | {"MLX_RANK": str(r)}, **streams) for r in range(2)]
    for _ in range(3):
        wait_for(ranks[0], "tok/s")
    for rank in ranks:
        rank.terminate()
    said = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [143, 143], said
    assert "interrupted; continue with: mtpd train --resume" in said[0][0] or "continue with the same command" in said[0][1]
    (point,) = out.glob("resume-*")
    assert int(point.name.removeprefix("resume-")) >= 3, said
