"""README and docs: every command line in them is one, and (slow) those of README and docs/commands.md run, in their order, on a
tiny model. Links in files outside of docs lead somewhere (make docs checks those in docs)."""

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_base

from mtpd_mlx.options.command_line import add_arguments, file_options_of, options_of
from mtpd_mlx.options.schema import build

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "docs" / "internals")
PAGES = sorted(p for folder in FOLDERS for p in folder.glob("*.md") if p.name not in ("log.md", "results.md"))
PROGRAMS = {"mtpd": "mtpd_mlx", "mtpd-onnx": "mtpd_onnx"}
MODEL = "Qwen/Qwen3-0.6B"  # what the documents train heads for


def commands(page: Path) -> list[str]:
    """The indented lines of a page that begin with a program of ours, without comments."""
    lines = re.findall(r"^ {4,}((?:mtpd|mtpd-onnx) \S.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"\s{2,}#.*$", "", line).strip() for line in lines]


def examples() -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in commands(page) if "N ..." not in line and "train ..." not in line]


@pytest.mark.parametrize(("page", "line"), examples(), ids=lambda part: part[:60])
def test_command_lines_of_documents_are_command_lines(page: str, line: str) -> None:
    program, name, *arguments = shlex.split(line.split(" | ")[0])
    module = importlib.import_module(f"{PROGRAMS[program]}.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, options_of(module), file_options_of(module))
    flags = vars(parser.parse_args(arguments))
    build(options_of(module), {}, flags)
    build(file_options_of(module), {}, flags)


def test_documents_have_commands() -> None:
    assert len(commands(ROOT / "README.md")) > 15


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent == ROOT], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target


@pytest.mark.parametrize("page", [p for p in FOLDERS[1].rglob("*.md") if p.parent in FOLDERS], ids=lambda p: p.name)
def test_every_page_is_in_the_navigation(page: Path) -> None:
    assert f": {page.relative_to(FOLDERS[1])}\n" in (ROOT / ".mkdocs.yml").read_text(encoding="utf-8")


def test_the_log_lists_its_entries() -> None:
    listed = re.findall(r"\]\(log/(.+?)\)", (ROOT / "docs" / "log.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(entry.name for entry in (ROOT / "docs" / "log").iterdir())
    assert [name[:10] for name in listed] == sorted((name[:10] for name in listed), reverse=True)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


SMALL = {"--iters 1000": "--iters 4 --batch-size 2 --max-seq-length 24 --warmup 0 --val-batches 1"}
ADDED = {  # so that a command is over in seconds; the command stays what it is
    "distill-data": "-m 24 --ignore-chat-template",
    "extend": "--iters 4 --batch-size 2 --max-seq-length 24 --warmup 0 --val-batches 1",
    "refit": "--iters 4 --batch-size 2 --max-seq-length 24 --warmup 0 --val-batches 1",
    "train --train": "--iters 4 --batch-size 2 --max-seq-length 24 --warmup 0 --val-batches 1 --num-layers 1",
    "cache": "--max-seq-length 24",
    "generate": "-m 8",
    "bench": "-m 6 --limit 1 --repeats 1",
    "tune": "-m 6 --limit 1 --repeats 1",
    "verify": "-m 6 --limit 2",
    "parity": "-m 6 --limit 2",
    "probe": "--contexts 8",
}
ELSEWHERE = ("import-gguf", "chat", "serve", "smollm2", "export heads --out onnx-gpu", "doctor")  # tests of their own, or a GPU


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what the documents name."""
    folder = tmp_path_factory.mktemp("desk")
    write_base(folder / "model")
    write_base(folder / "my_finetune", seed=1)
    text = "the cat sat on the mat and then the dog sat there"
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "prompt": text[i : i + 9]}) + "\n" for i in range(8))
    )
    (folder / "my_data").mkdir()
    (folder / "my_data" / "train.jsonl").write_text(40 * (json.dumps({"text": text}) + "\n"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/commands.md"])
def test_commands_of_documents_run(page: str, desk: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(desk, place)
    ran, env = 0, os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}"}
    for line in commands(ROOT / page):
        if any(word in line for word in ELSEWHERE) or "train ..." in line:
            continue
        for known, small in SMALL.items():
            line = line.replace(known, small)
        for start, more in ADDED.items():
            if re.match(rf"mtpd(-onnx)? {start}\b", line):
                line += f" {more}"
        program, *arguments = shlex.split(line.replace(MODEL, "model"))
        module = {"mtpd": "mtpd_mlx.cli", "mtpd-onnx": "mtpd_onnx.cli"}[program]
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=place,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode in (0, 3), f"{line}\n{done.stdout}\n{done.stderr}"  # 3: no step was better than the start
        ran += 1
    assert ran > 3
