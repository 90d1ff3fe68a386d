"""mtpd-onnx verify, bench, chat and what they refuse, used as from a shell."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mtpd_onnx import manifest
from mtpd_onnx.cli import main
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime import memory
from mtpd_onnx.runtime.batch_session import BatchSession
from mtpd_onnx.runtime.choosing import ChoosingBackend
from mtpd_onnx.runtime.decoder_session import Verified
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.open import open_folder
from tiny import write_base, write_checkpoint

from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.text.chat import run_chat
from mtpd_mlx.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("commands")
    base = write_base(place / "base", scale=2.0)
    (base / "chat_template.jinja").write_text(TEMPLATE)
    export_checkpoint(write_checkpoint(place / "heads", base, 3, noise=0.02), place / "onnx")
    return place / "onnx"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "p.txt"
    file.write_text("hello there\nabcdefgh ijklm\nthe quick brown fox\n")
    return file


def test_verify_passes_and_says_what_it_saw(folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--provider", "cpu", "--prompts", str(prompts), "-m", "40", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["prompts"] == report["identical"] == 3 and report["first_divergences"] == [] and report["passed"]
    assert report["tokens"] == report["sampled_tokens"] == 120 and 1e-3 < report["sampling_p_value"] <= 1
    assert report["tau"]["greedy"] > 1


def test_verify_fails_where_a_text_differs(
    folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ChoosingBackend.round

    def wrong(self: ChoosingBackend, token: int) -> Round:
        result = right(self, token)
        return Round([*result.emitted[:-1], (result.emitted[-1] + 1) % 90], result.accepted, result.proposed)

    monkeypatch.setattr(ChoosingBackend, "round", wrong)
    assert main(["verify", str(folder), "--provider", "cpu", "--prompts", str(prompts), "--greedy-only", "-m", "20"]) == 1
    out = capsys.readouterr().out
    assert "0 of 3 prompts identical" in out and "first difference at token" in out and "FAILED" in out


def test_bench_has_every_figure(folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(folder), "--provider", "cpu", "--prompts", str(prompts), "-m", "16", "--repeats", "1"]
    assert main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    for key in ("plain_tok_s", "mtp_tok_s", "round_over_plain", "tau", "floor_ratio", "floor_ms"):
        assert values[key] > 0, key
    assert values["genai_tok_s"] is None and len(values["car"]) == 3 and values["identical"] == 1.0
    assert main([*arguments, "--temp", "0.8", "--seed", "1"]) == 0
    assert "identical" not in capsys.readouterr().out


def test_generate_samples_repeatably(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(folder), "--provider", "cpu", "-p", "hello there", "-m", "24", "--json", "--temp", "1"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "--seed", seed]) == 0
        texts.append(json.loads(capsys.readouterr().out)["tokens"])
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("temp", ["1e-30", "1e-40", "5e-324"])
def test_the_smallest_temperatures_are_greedy(temp: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(folder), "--provider", "cpu", "-p", "hello there", "-m", "24", "--json"]
    texts = []
    for options in ([], ["--temp", temp]):
        assert main([*arguments, *options]) == 0
        texts.append(json.loads(capsys.readouterr().out)["tokens"])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "-p", "x", "--temp", "-1"], "--temp: got -1.0, expected 0..100"),
        (["generate", "-p", "x", "--top-p", "1.5"], "--top-p: got 1.5"),
        (["generate", "-p", "x", "--num-draft-tokens", "9"], "--num-draft-tokens: got 9, expected 0..3"),
        (["generate", "-p", "x" * 300], "tokens, expected 1..255"),
        (["generate", "-p", "x", "--provider", "cuda"], "--provider cuda: this onnxruntime has no CUDA"),
        (["verify", "--prompts", "PROMPTS", "--temp", "0"], "--temp 0 leaves nothing to draw"),
        (["verify", "--prompts", "PROMPTS", "-m", "300"], "no room for a prompt"),
        (["bench", "--prompts", "PROMPTS", "-m", "1"], "--max-tokens: got 1, expected at least 2"),
        (["bench", "--prompts", "PROMPTS", "--genai", "nowhere"], "nowhere: not a genai folder"),
        (["bench", "--prompts", "PROMPTS", "--limit", "-2"], "--limit: got -2, expected at least 1"),
        (["verify", "--prompts", "PROMPTS", "--limit", "0"], "--limit: got 0, expected at least 1"),
        (["generate", "-p", "x", "--num-threads", "-1"], "--num-threads: got -1, expected 1.."),
        (["generate", "-p", "x", "--num-threads", "0", "--batch-size", "2"], "--num-threads: got 0, expected 1.."),
        (["generate", "-p", "x", "--temp", "1", "--xtc-probability", "0.5"], "exported graphs sample without XTC"),
        (["generate", "-p", "x", "--num-threads", "99999999999"], "--num-threads: got 99999999999, expected 1.."),
        (["generate", "-p", "x", "--temp", "1", "--seed", "-1"], "--seed: got -1, expected at least 0"),
        (
            ["bench", "--prompts", "PROMPTS", "-m", "2", "--cool-down", "1e30"],
            "--cool-down: got 1e+30, expected 0..3600",
        ),
        (["bench", "--prompts", "PROMPTS", "-m", "2", "--cool-down", "nan"], "--cool-down: got nan, expected 0..3600"),
        (["verify", "--prompts", "PROMPTS", "--tolerance", "nan"], "--tolerance: got nan, expected at least 0"),
        (["chat", "-m", "0"], "--max-tokens: got 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], message: str, folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = [str(prompts) if a == "PROMPTS" else a for a in arguments]
    assert main([command, str(folder), *rest]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"mtpd-onnx {command}: error: ") and message in error


@pytest.mark.parametrize(("error", "words"), [(MemoryError(), "MemoryError"), (RuntimeError("no device\nmore"), "no device")])
def test_faults_of_the_system_are_one_line(
    error: Exception, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(manifest, "read_manifest", fail)
    assert main(["info", str(folder)]) == 1
    assert capsys.readouterr().err == f"mtpd-onnx info: error: {words} (--traceback shows where)\n"


def test_memory_is_checked_before_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda provider: 10_000_000)
    with pytest.raises(ValueError, match=r"about 0\.\d GB of memory are needed, 0\.0 GB are free on cpu"):
        open_folder(folder, provider="cpu")


def lines(*texts: str) -> Iterator[str]:
    yield from texts


def test_chat_keeps_the_cache_between_turns_and_answers_as_a_fresh_start_would(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    backend = open_folder(folder, provider="cpu", num_threads=1, num_draft_tokens=3)
    prefilled: list[int] = []
    prefill = backend.prefill

    def watch(tokens: list[int]) -> int:
        prefilled.append(len(tokens))
        return prefill(tokens)

    backend.prefill = watch  # type: ignore[method-assign, assignment]
    out, said = io.StringIO(), lines("hi", "and then?", "r", "hi", "h", "q")
    assert run_chat(backend, tokenizer, 12, read=lambda _: next(said), out=out) == 0
    shown = out.getvalue()
    assert shown.count("tokens/s") == 3 and "tau" in shown
    assert prefilled[1] < prefilled[0] + 12 + len("and then?") + 20  # not the first turn again
    assert prefilled[2] == prefilled[0]
    answers = [line for line in shown.splitlines() if not line.startswith(("[", "commands"))]
    assert answers[0] == answers[-1]


def test_chat_shows_accepted_drafts_and_survives_a_full_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    backend, out = open_folder(folder, provider="cpu", num_threads=1, num_draft_tokens=3), io.StringIO()
    said = lines("hi", "x" * 300, "q")
    assert run_chat(backend, Tokenizer.from_folder(folder), 24, show_drafts=True, read=lambda _: next(said), out=out) == 0
    assert "\033[32m" in out.getvalue() and "error: the conversation has" in out.getvalue()


def test_a_full_context_is_said(folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend, out, said = open_folder(folder, provider="cpu", num_threads=1), io.StringIO(), lines("hi", "q")
    assert run_chat(backend, Tokenizer.from_folder(folder), 1000, read=lambda _: next(said), out=out) == 0
    assert out.getvalue().splitlines()[-1].endswith(" s, finish reason context: the cache is full, r starts again]")
    generate = ["generate", str(folder), "--provider", "cpu", "--num-threads", "1"]
    several = [*generate, "--prompts", str(prompts), "-m"]
    for arguments, words in (
        ([*generate, "-p", "hi", "-m", "1000"], ", finish reason context: the cache is full"),
        ([*several, "1000"], ", finish reason context: the cache is full in 3 of 3"),
        ([*several, "1000", "--batch-size", "2"], ", finish reason context: the cache is full in 3 of 3"),
        ([*several, "4"], ""),
    ):
        assert main(arguments) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Generation: ")]
        assert line.partition("distinct-4 ")[2][5:] == words


@pytest.mark.parametrize("ahead", [False, True])
def test_an_interrupted_round_leaves_the_text_as_it_was(folder: Path, ahead: bool) -> None:
    backend, fresh = (open_folder(folder, provider="cpu", num_threads=1, fixed_rounds=True) for _ in range(2))
    assert isinstance(backend, FusedBackend)
    backend.ahead, text = ahead, list(range(30, 50))
    token, wait = backend.prefill(text), backend.runner.wait

    def interrupted() -> list:
        wait()  # the device has gone on
        raise KeyboardInterrupt

    backend.runner.wait = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        backend.round(token)
    backend.runner.wait = wait  # type: ignore[method-assign]
    assert fresh.prefill(text) == token
    for _ in range(4):
        ours, theirs = backend.round(token), fresh.round(token)
        assert ours.emitted == theirs.emitted
        token = ours.emitted[-1]


def test_batches_write_what_single_texts_are(folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for size in ("1", "2"):
        arguments = ["generate", str(folder), "--provider", "cpu", "--prompts", str(prompts), "-m", "30", "--stop", "q"]
        how = ["--num-draft-tokens", "3", "--batch-size", size]
        assert main([*arguments, "--json", *how]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        counts = [[row["stats"][k] for k in ("rounds", "short_rounds", "plain_steps", "tokens_per_pass")] for row in rows]
        texts.append(([(row["id"], row["text"], row["tokens"], row["finish_reason"]) for row in rows], counts))
    assert texts[0] == texts[1]
    sampled = ["generate", str(folder), "--prompts", str(prompts), "-m", "20", "--temp", "1", "--seed", "3", "--json"]
    for _ in range(2):
        assert main([*sampled, "--batch-size", "2"]) == 0
        texts.append([json.loads(line)["tokens"] for line in capsys.readouterr().out.splitlines()])
    assert texts[2] == texts[3] != [row[2] for row in texts[0][0]]


def test_interrupted_batches_show_what_there_is(
    folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", str(folder), "--provider", "cpu", "--prompts", str(prompts), "-m", "30", "--batch-size", "2"]
    arguments += ["--num-draft-tokens", "3"]
    assert main([*arguments, "--json"]) == 0
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    right, runs = BatchSession.run, []

    def run(self: BatchSession, parts: Any) -> list[Verified]:
        runs.append(parts)
        if len(runs) == stop:
            raise KeyboardInterrupt
        return right(self, parts)

    monkeypatch.setattr(BatchSession, "run", run)
    for stop in (1, 4):
        runs.clear()
        assert main([*arguments, "--json"]) == 130
        parts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [part["finish_reason"] for part in parts] == ["interrupted"] * 2
        for part, row in zip(parts, whole, strict=False):
            assert part["tokens"] == row["tokens"][: len(part["tokens"])] and bool(part["tokens"]) == (stop > 1)
            assert part["stats"]["tokens_per_second"] >= 0
    runs.clear()
    assert main([*arguments, "--quiet"]) == 130
    assert "[" not in capsys.readouterr().out  # the text alone


def test_batches_check_the_files_and_refuse_bf16(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    data = (changed / "weights.bin").read_bytes()
    (changed / "weights.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    arguments = ["generate", str(changed), "-p", "x", "-m", "4", "--batch-size", "2", "--no-cuda-graph"]
    assert main(arguments) == 0 and capsys.readouterr()
    assert main([*arguments, "--verify"]) == 1 and "sha256" in capsys.readouterr().err
    manifest = json.loads((changed / "manifest.json").read_text()) | {
        "precision": "bf16",
        "activations": "bf16",
        "format_version": 6,
    }
    (changed / "manifest.json").write_text(json.dumps(manifest))
    assert main(arguments) == 1
    assert "--batch-size: bf16 texts are decoded one at a time; export with --precision fp16" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "chat", "bench", "verify"])
def test_help_leaves_out_what_graphs_have_built_in(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert "--top-p" in shown and "xtc" not in shown and "context-size" not in shown
