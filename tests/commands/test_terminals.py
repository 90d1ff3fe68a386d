"""Both programs as processes with odd standard streams: other encodings, closed, full, read by nobody, no terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "mtpd_mlx" / "assets" / "demo"
MTPD, ONNX = f"{sys.executable} -m mtpd_mlx.cli", f"{sys.executable} -m mtpd_onnx.cli"


def shell(line: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, whose status is that of the first of a pipe that fails."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    inherited["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'export'}"
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(command, env=inherited | env, capture_output=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts that are echoed as "reference": no model writes what cp1252 lacks on demand."""
    file = tmp_path_factory.mktemp("rows") / "p.jsonl"
    references = ["ō é 日本", "\u2028 🙂", "plain"]
    rows = ({"prompt": "The", "reference": r, "id": r} for r in references)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_output_is_utf_8_whatever_is_said(rows: Path) -> None:
    generate = f"{MTPD} generate {DEMO / 'heads'} --prompts {rows} -m 2"
    done = shell(f"{generate} --json && {generate}", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("utf-8")
    references = [json.loads(line)["reference"] for line in text.split("\n")[:3]]
    assert references == ["ō é 日本", "\u2028 🙂", "plain"] and "[ō é 日本]" in text and "[\u2028 🙂]" in text


INSPECT = f"{MTPD} inspect {DEMO / 'heads'}"


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        (f"{INSPECT} > /dev/full", 1, "mtpd inspect: error: [Errno 28] standard output: No space left on device"),
        pytest.param(f"{MTPD} --help > /dev/full", 1, "standard output: No space left", marks=pytest.mark.slow),
        pytest.param(f"{MTPD} doctor --json > /dev/full", 1, "standard output: No space left", marks=pytest.mark.slow),
        pytest.param(f"{INSPECT} | true; exit ${{PIPESTATUS[0]}}", (0, 141), "", marks=pytest.mark.slow),
        pytest.param(f"{INSPECT} <&- >&- 2>&-", 0, "", marks=pytest.mark.slow),
        pytest.param(f"{INSPECT} >&-", 0, "", marks=pytest.mark.slow),
        pytest.param(f"{MTPD} inspect nowhere 2>&-", 1, "", marks=pytest.mark.slow),
        pytest.param(f"{MTPD} inspect nowhere 2>/dev/full", 1, "", marks=pytest.mark.slow),
        (f"{MTPD} generate {DEMO / 'heads'} -m 2 -p - <&-", 1, "--prompt -: standard input is closed"),
        pytest.param(f"{MTPD} generate {DEMO / 'heads'} -m 2 -p The --quiet <&- >&-", 0, "", marks=pytest.mark.slow),
        pytest.param(f"{MTPD} chat {DEMO / 'heads'} <&-", 0, "", marks=pytest.mark.slow),
        pytest.param(
            f"{MTPD} generate {DEMO / 'heads'} -m 40 -p The > /dev/full", 1, "No space left on device", marks=pytest.mark.slow
        ),
    ],
)
def test_streams_that_are_not_there(line: str, status: int | tuple[int, ...], words: str) -> None:
    done = shell(line)
    said = done.stderr.decode()
    assert done.returncode in (status if isinstance(status, tuple) else (status,)), said
    assert words in said and "Traceback" not in said and "Exception ignored" not in said


@pytest.mark.slow
def test_nobody_reads(rows: Path) -> None:
    many = rows.with_name("many.jsonl")
    many.write_text(rows.read_text(encoding="utf-8") * 60, encoding="utf-8")
    for line in (f"{MTPD} generate {DEMO / 'heads'} --prompts {many} --json -m 8", f"{MTPD} generate --help"):
        done = shell(f"{line} | head -1 > /dev/null")
        assert (done.returncode, done.stderr) == (0 if "help" in line else 141, b"")


@pytest.mark.slow
def test_a_narrow_terminal_and_none(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    """No control characters where there is no terminal, and one line per report."""
    rows = "--num-heads 2 --max-seq-length 24 --batch-size 2 --warmup 0 --val-batches 1"
    train = f"{MTPD} train --model {tiny_base} --data {text_data} --iters 4 --steps-per-report 2 {rows}"
    done = shell(f"{train} --out {tmp_path / 'out'} && {MTPD} train --help", COLUMNS="20", TERM="dumb")
    assert done.returncode in (0, 3), done.stderr
    said = done.stderr.decode()
    assert [line.split(":")[0] for line in said.splitlines() if not line.startswith("mtpd: ")] == ["step 2/4", "step 4/4"]
    assert not set(said + done.stdout.decode()) & {"\r", "\033"}
    words = f"{MTPD} distill-data --model {tiny_base} --prompts {text_data / 'valid.jsonl'} -m 3 --out {tmp_path / 'own'}"
    made = shell(f"{words} && {MTPD} cache --model {tiny_base} --data {text_data} --max-seq-length 24 --out {tmp_path / 'c'}")
    assert made.returncode == 0 and not set(made.stderr.decode() + made.stdout.decode()) & {"\r", "\033"}, made.stderr


@pytest.mark.slow
def test_the_home_folder_is_meant_by_a_tilde(tiny_base: Path, tiny_checkpoint: Path, text_data: Path, tmp_path: Path) -> None:
    """In flags and files alike."""
    home = tmp_path / "home"
    home.mkdir()
    for name, place in (("base", tiny_base), ("data", text_data), ("mine", tiny_checkpoint)):
        (home / name).symlink_to(place)
    rows = "iters: 1\nnum_heads: 2\nmax_seq_length: 24\nbatch_size: 2\nwarmup: 0\nval_batches: 1\nsave_every: 0\n"
    (home / "c.yaml").write_text(f"model: ~/base\ndata: [~/data]\nout: ~/heads\n{rows}")
    lines = [
        f"{MTPD} train --config=~/c.yaml",
        f"{MTPD} export '~/mine' --out='~/exported' --model='~/base'",
        f"{ONNX} info '~/exported'",
        f"{MTPD} inspect '~/exported'",
        f"{MTPD} extend '~/mine' --to 4 --train-free --out='~/longer'",
    ]
    for line in lines:
        done = shell(f"cd {tmp_path}; {line}", HOME=str(home))
        assert done.returncode in (0, 3), (line, done.stderr)
    assert (home / "heads" / "train_log.jsonl").is_file()
    assert {"exported", "longer"} <= {p.name for p in home.iterdir()} and not (tmp_path / "~").exists()
