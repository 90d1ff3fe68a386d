"""`mtpd distill-data`: batches equal one prompt at a time, exact ids, resume to the same bytes, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.adapters import write_adapter
from helpers.ring import ring
from helpers.runs import error_line, one_line
from tiny import write_quantised

from mtpd_mlx.cli import main
from mtpd_mlx.data import load_dataset, own_text
from mtpd_mlx.data.own_folder import CONFIG_NAME, PART_NAME, parts_in, sides_of
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.generate import batches_of, generate_greedy
from mtpd_mlx.model.runtime import mx, on_cpu
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.tokenizer import Tokenizer

PROMPTS = [[5, 9, 14], [7], [3, 4, 5, 6, 7, 8, 9, 10], [11, 12]]


def one_at_a_time(folder: Path, prompt: list[int], count: int) -> list[int]:
    base, tokens = load_base(str(folder)), list(prompt)
    for _ in range(count):
        logits = base.logits(base.norm(base.trunk(mx.array([tokens]))))[0, -1]
        tokens.append(int(mx.argmax(logits).item()))
    return tokens[len(prompt) :]


def test_batched_greedy_equals_one_prompt_at_a_time(tiny_base: Path) -> None:
    texts = generate_greedy(load_base(str(tiny_base)), PROMPTS, 12, frozenset(), batch_size=3)
    assert [t.tokens for t in texts] == [one_at_a_time(tiny_base, p, 12) for p in PROMPTS]
    assert sorted(i for chunk in batches_of(PROMPTS, 3) for i in chunk) == [0, 1, 2, 3]


def test_stops_at_end_of_text(tiny_base: Path) -> None:
    base = load_base(str(tiny_base))
    free = generate_greedy(base, PROMPTS, 12, frozenset())
    eos = frozenset({free[0].tokens[4]})
    for text in generate_greedy(base, PROMPTS, 12, eos):
        assert not eos & set(text.tokens[:-1])


def prompts_file(folder: Path, count: int = 9) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say {i * 7} {'x' * (i % 4)}"}) + "\n" for i in range(count)))
    return file


def arguments(base: Path, prompts: Path, out: Path, *extra: str) -> list[str]:
    fixed = ["--max-tokens", "6", "--batch-size", "2", "--valid-share", "0.3"]
    return ["distill-data", "--model", str(base), "--prompts", str(prompts), "--out", str(out), *fixed, *extra]


def sides_in(base: Path, prompts: Path) -> list[str]:
    tokenizer = Tokenizer.from_folder(base)
    return sides_of([tokenizer.encode(json.loads(line)["prompt"]) for line in prompts.read_text().splitlines()], 0.3)


def content(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("train.jsonl", "valid.jsonl")}


def test_output_is_training_data_with_exact_ids(tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "own"
    assert main(arguments(tiny_base, prompts_file(tmp_path), out)) == 0
    assert not (out / PART_NAME).exists()
    tokenizer = Tokenizer.from_folder(tiny_base)
    sides = sides_in(tiny_base, tmp_path / "prompts.jsonl")
    rows = {name: [json.loads(line) for line in (out / name).read_text().splitlines()] for name in content(out)}
    assert {n: len(r) for n, r in rows.items()} == {n: sides.count(n) for n in rows}
    for row in (*rows["train.jsonl"], *rows["valid.jsonl"]):
        prompt, made = row["tokens"][: row["prompt_tokens"]], row["tokens"][row["prompt_tokens"] :]
        assert prompt == tokenizer.encode(row["prompt"]) and made == one_at_a_time(tiny_base, prompt, len(made))
    masked = load_dataset(DataConfig((str(out),), max_seq_length=24, pack=False, mask_prompt=True), tokenizer)
    for i, row in enumerate(rows["train.jsonl"]):
        n = len(row["tokens"])
        assert masked.train.rows.tokens[i, :n].tolist() == row["tokens"]  # type: ignore[union-attr]
        assert masked.train.rows.loss_mask[i].sum() == n - row["prompt_tokens"]  # type: ignore[union-attr]


def test_continuations_of_one_prompt_are_on_one_side(tiny_base: Path, tmp_path: Path) -> None:
    """A prompt may stand in the file many times, to sample many continuations: none of them validates the others."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say {i % 8}"}) + "\n" for i in range(32)))
    assert set(sides_in(tiny_base, file)) == {"train.jsonl", "valid.jsonl"}
    train, valid = set(), set()
    for seed in ("0", "1"):  # of one run or of several, which are mixed
        out = tmp_path / seed
        assert main(arguments(tiny_base, file, out, "--temp", "1.3", "--seed", seed)) == 0
        for side, text in zip((train, valid), content(out).values(), strict=True):
            side |= {json.loads(line)["prompt"] for line in text.splitlines()}
        file.write_text("\n".join(reversed(file.read_text().splitlines())))
    assert train and valid and not train & valid and len(train | valid) == 8


@pytest.mark.parametrize(
    ("memory", "positions", "expected"), [(None, 64, 16), (1 << 40, 64, 1024), (4 << 30, 10_000, 69), (1 << 28, 10_000, 16)]
)
def test_how_many_texts_a_gpu_writes_at_a_time(
    memory: int | None, positions: int, expected: int, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(tiny_base))
    assert own_text.texts_at_a_time(base, positions) == 16
    monkeypatch.setattr(own_text, "on_cpu", lambda: False)
    monkeypatch.setattr(own_text, "memory_bytes", lambda: memory)
    assert own_text.texts_at_a_time(base, positions) == expected


def test_a_run_goes_on_with_fewer_texts_at_a_time(tiny_base: Path, tmp_path: Path) -> None:
    out = begun(tiny_base, prompts_file(tmp_path), tmp_path / "own")
    before = content(out)
    assert main(["distill-data", "--resume", "--out", str(out), "--batch-size", "1"]) == 0
    assert content(out) == before


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    extra = ("--temp", "1.3", "--top-p", "0.9")  # greedy: test_changed_prompts_are_not_mixed_in
    prompts, whole, out = prompts_file(tmp_path, 60), tmp_path / "whole", tmp_path / "killed"
    assert main(arguments(tiny_base, prompts, whole, *extra)) == 0
    command = [sys.executable, "-m", "mtpd_mlx.cli", *arguments(tiny_base, prompts, out, *extra)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while time.time() < deadline and not ((out / PART_NAME).exists() and (out / PART_NAME).stat().st_size > 500):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "train.jsonl").exists()
    assert main(["distill-data", "--resume", "--out", str(out)]) == 0
    assert content(out) == content(whole)


def test_text_rows_are_begun(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text(json.dumps({"text": "a long story about nothing"}) + "\n")
    assert main(arguments(tiny_base, file, tmp_path / "own", "--prompt-tokens", "5", "--valid-share", "0")) == 0
    row = json.loads((tmp_path / "own" / "train.jsonl").read_text())
    assert row["prompt"] == "a lon" and row["prompt_tokens"] == 5


def test_bad_input_is_one_line(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts, out = prompts_file(tmp_path), tmp_path / "own"

    def error(*args: str) -> str:
        assert main(list(args)) == 1
        return error_line(capsys)

    assert "expected 1..246" in error(
        *arguments(tiny_base, prompts, out, "--max-tokens", "10"), "--prompts", str(long(tmp_path))
    )
    assert "missing option --model" in error("distill-data", "--prompts", str(prompts))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "no prompts" in error(*arguments(tiny_base, empty, out))
    assert "no interrupted run" in error("distill-data", "--resume", "--out", str(out))
    assert main(arguments(tiny_base, prompts, out)) == 0
    assert "holds train.jsonl already" in error(*arguments(tiny_base, prompts, out))
    assert main(arguments(tiny_base, prompts, out, "--overwrite")) == 0
    assert "the --prompts themselves" in error(*arguments(tiny_base, out / "train.jsonl", out, "--overwrite"))
    assert (out / "train.jsonl").is_file()
    (out / PART_NAME).touch()
    assert "--max-tokens: got 1000, expected at most 255" in error(
        *arguments(tiny_base, prompts, tmp_path / "o"), "--max-tokens", "1000"
    )
    assert "the interrupted run has 6" in error("distill-data", "--resume", "--out", str(out), "--max-tokens", "7")
    assert (out / CONFIG_NAME).exists()


def begun(base: Path, prompts: Path, out: Path) -> Path:
    """A run that was killed when two rows were made."""
    assert main(arguments(base, prompts, out, "--overwrite")) == 0
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    numbers = [i for i, side in enumerate(sides_in(base, prompts)) if side == "train.jsonl"]
    part = [{"row": number} | row for number, row in zip(numbers, rows, strict=True)][:2]
    (out / PART_NAME).write_text("".join(json.dumps(row) + "\n" for row in part))
    return out


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (PART_NAME, "5\n", "part.jsonl:1: damaged"),
        (PART_NAME, '{"row": 0, "tokens": "x"}\n', "part.jsonl:1: damaged"),
        (CONFIG_NAME, "[]", "holds no interrupted run"),
        (CONFIG_NAME, '{"options": {"temp": []}}', "temp: got []"),
        (CONFIG_NAME, '{"options": {}}', "missing option --model"),
    ],
)
def test_a_damaged_run_is_one_line(
    file: str, text: str, words: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = begun(tiny_base, prompts_file(tmp_path), tmp_path / "own")
    (out / file).write_text(text)
    capsys.readouterr()
    assert main(["distill-data", "--resume", "--out", str(out)]) == 1
    assert words in error_line(capsys)


def test_changed_prompts_are_not_mixed_in(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = prompts_file(tmp_path)
    out = begun(tiny_base, prompts, tmp_path / "own")
    before = content(out)
    with (out / PART_NAME).open("a") as f:
        f.write('{"row": 3, "prom')  # a half line, as a killed process may leave
    assert main(["distill-data", "--resume", "--out", str(out)]) == 0
    assert content(out) == before
    out = begun(tiny_base, prompts, tmp_path / "other")
    prompts.write_text(prompts.read_text().replace("say", "tell"))
    capsys.readouterr()
    assert main(["distill-data", "--resume", "--out", str(out)]) == 1
    one_line(capsys, "continues another prompt")


def test_a_quantised_base_is_unpacked_on_a_cpu(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, prompts = write_quantised(tmp_path / "packed", tiny_base, 8), prompts_file(tmp_path)
    held: list[bool] = []
    texts = own_text._texts
    monkeypatch.setattr(own_text, "_texts", lambda work, missing: held.append(work.base.is_quantized) or texts(work, missing))
    assert main(arguments(folder, prompts, tmp_path / "a")) == 0
    assert main(arguments(folder, prompts, tmp_path / "b", "--no-dequantize")) == 0
    assert held == [not on_cpu(), True]


def test_a_base_with_an_adapter_writes_its_own_text(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    adapter, prompts = tmp_path / "adapter", prompts_file(tmp_path)
    write_adapter(adapter, tiny_base)
    outs = [tmp_path / name for name in ("plain", "adapted")]
    assert main(arguments(tiny_base, prompts, outs[0])) == 0
    assert main(arguments(tiny_base, prompts, outs[1], "--adapter-path", str(adapter))) == 0
    base = load_base(str(tiny_base), adapter=adapter)
    row = json.loads((outs[1] / "train.jsonl").read_text().splitlines()[0])
    prompt, made = row["tokens"][: row["prompt_tokens"]], row["tokens"][row["prompt_tokens"] :]
    assert generate_greedy(base, [prompt], 6, frozenset({0}))[0].tokens == made
    assert content(outs[0]) != content(outs[1])
    begun_with = json.loads((outs[1] / CONFIG_NAME).read_text())
    assert begun_with["base"] == base.fingerprint and begun_with["options"]["adapter_path"] == str(adapter)


def long(folder: Path) -> Path:
    file = folder / "long.jsonl"
    file.write_text(json.dumps({"prompt": "x" * 300}) + "\n")
    return file


def test_of_few_prompts_one_is_for_validation() -> None:
    prompts = [[1, i] for i in range(6)]
    assert sides_of(prompts, 1e-9).count("valid.jsonl") == 1
    assert sides_of(prompts, 0.0) == 6 * ["train.jsonl"]
    assert sides_of([[1, 2], [1, 2]], 1e-9) == 2 * ["train.jsonl"]  # all that there is
    alone, among = sides_of(prompts[:4], 0.4), sides_of(prompts, 0.4)
    assert "valid.jsonl" in alone and among[:4] == alone  # the side of a prompt does not depend on the others


def test_two_ranks_write_what_one_writes(tiny_base: Path, tmp_path: Path) -> None:
    extra = ("--temp", "1.3")
    prompts, whole, out = prompts_file(tmp_path, 13), tmp_path / "whole", tmp_path / "shared"
    assert main(arguments(tiny_base, prompts, whole, *extra)) == 0
    program, pipe = ["-m", "mtpd_mlx.cli", *arguments(tiny_base, prompts, out, *extra)], subprocess.PIPE
    with ring(tmp_path, program, stdout=pipe, stderr=pipe, text=True) as ranks:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
    assert content(out) == content(whole) and parts_in(out) == []
    assert "train.jsonl" in said[0] and said[1] == ""


def test_what_two_ranks_had_done_counts(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prompts, out = prompts_file(tmp_path), tmp_path / "own"
    assert main(arguments(tiny_base, prompts, out)) == 0
    before = content(out)
    begun(tiny_base, prompts, out)
    rows = (out / PART_NAME).read_text().splitlines(keepends=True)
    (out / PART_NAME).write_text(rows[0])
    (out / "part-1.jsonl").write_text(rows[1] + '{"row": 3, "prom')  # a half line, as a killed process may leave
    assert main(arguments(tiny_base, prompts, out)) == 1
    assert "holds train.jsonl already" in error_line(capsys)
    made: list[int] = []
    texts = own_text._texts
    monkeypatch.setattr(own_text, "_texts", lambda work, missing: made.extend(missing) or texts(work, missing))
    assert main(["distill-data", "--resume", "--out", str(out)]) == 0
    assert len(made) == 7 and content(out) == before and parts_in(out) == []
