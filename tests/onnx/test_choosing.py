"""Rounds of any number of drafts of any origin (graphs/decoder.py): the same text, whatever is chosen."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.decode import decoded
from helpers.schedules import Scheduled, check_texts, truth_of
from helpers.standard_heads import drafts_of_standard_heads
from mtpd_onnx.cli import main
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.choosing import ChoosingBackend
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.measured_costs import guessed, kinds_of, measure
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.round_costs import PLAIN, Kind, heads, lookup
from mtpd_mlx.speculative.sampling import Sampling

PROMPTS = [[5], [9, 4], [6, 7, 8], [11, 3, 50, 4], list(range(30)), list(range(90, 40, -1))]
CASES = [  # family, heads, hidden source, draft vocabulary, precision
    ("llama-tied", 4, "postnorm", None, "fp32"),
    ("llama-untied", 1, "prenorm", None, "fp32"),
    ("qwen3", 3, "prenorm", 60, "fp32"),
    ("llama-tied", 9, "postnorm", None, "int8"),
]


def exported(place: Path, case: tuple[str, int, str, int | None, str], noise: float = 0.05) -> Path:
    family, count, source, drafts, precision = case
    base = write_base(place / "base", FAMILIES[family], scale=2.0)
    tokens = None if drafts is None else np.arange(drafts)
    checkpoint = write_checkpoint(place / "heads", base, count, source, noise=noise, draft_tokens=tokens)
    group_size = ExportOptions.group_size if precision == "fp32" else 32
    export_checkpoint(checkpoint, place / "onnx", ExportOptions(precision=precision, group_size=group_size))
    return place / "onnx"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[4]}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("choosing"), request.param)


def opened(folder: Path, **how: Any) -> Any:
    return open_folder(folder, provider="cpu", num_threads=1, **how)


def test_every_number_of_drafts_and_any_schedule_give_the_plain_text(folder: Path) -> None:
    plain, rounds = opened(folder, plain=True), opened(folder, fixed_rounds=True)
    count = read_manifest(folder).num_heads
    expected = {tuple(prompt): decoded(plain, prompt, 60)[0] for prompt in PROMPTS}
    for drafts in range(1, count + 1):
        fixed = opened(folder, num_draft_tokens=drafts)
        for prompt in PROMPTS:
            text, accepted = decoded(fixed, prompt, 60)
            assert text == expected[tuple(prompt)]
            if drafts == count and len(prompt) >= count:  # the same drafts as in rounds of fixed size
                assert accepted == decoded(rounds, prompt, 60)[1]

    backend = opened(folder, num_draft_tokens=count)
    drafting = backend.drafting = Scheduled(3, count, VOCAB, truth_of(expected))
    check_texts(backend, drafting, expected, lookups=5)


def test_heads_draft_as_if_they_had_never_been_left_behind(folder: Path) -> None:
    """After plain steps, lookups, fewer heads and rewinds the heads' drafts are those of a fresh start."""
    count = read_manifest(folder).num_heads
    backend, fresh = (opened(folder, num_draft_tokens=count) for _ in range(2))
    all_heads, scheduled = backend.drafting, Scheduled(5, count, VOCAB)
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(25):
        backend.drafting = scheduled
        keep = int(rng.integers(0, backend.length + 1)) if rng.random() < 0.5 else 0
        backend.rewind_to(keep)
        token = backend.prefill(rng.integers(0, VOCAB, int(rng.integers(1, 20))).tolist())
        for _ in range(int(rng.integers(0, 12))):
            token = backend.round(token).emitted[-1] if rng.random() < 0.9 else backend.step(int(rng.integers(0, VOCAB)))
        fresh.rewind_to(0)
        fresh.prefill(backend._tokens)
        named = token if rng.random() < 0.8 else int(rng.integers(0, VOCAB))
        backend.drafting = all_heads
        ours, theirs = backend.round(named), fresh.round(named)
        assert (ours.emitted, ours.accepted, ours.proposed) == (theirs.emitted, theirs.accepted, count)
        seen.add(ours.accepted)
    assert len(seen) > 1


def test_behind_a_long_text_heads_read_its_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their drafts are those of the standard heads over these positions."""
    base = write_base(tmp_path / "base", FAMILIES["qwen3"], scale=2.0)
    checkpoint = write_checkpoint(tmp_path / "heads", base, 3, "prenorm", noise=0.05)
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, tmp_path / layout, ExportOptions(layout=layout))
    monkeypatch.setattr("mtpd_onnx.runtime.choosing.READ_BACK", 9)
    backend, plain = opened(tmp_path / "fused", num_draft_tokens=3), opened(tmp_path / "fused", plain=True)
    oracle, seen, rows = opened(tmp_path / "split").model, set(), []
    run = backend._session.run

    def counted(*args: Any) -> Any:
        rows.append(0 if args[-1] is None else len(args[-1].tokens))
        return run(*args)

    monkeypatch.setattr(backend._session, "run", counted)
    for seed in range(12):
        prompt = np.random.default_rng(seed).integers(0, VOCAB, 30 + seed).tolist()
        text = [*prompt, *decoded(plain, prompt, 30)[0]]
        for each in (backend, oracle):
            each.rewind_to(0)
        token, first = backend.prefill(prompt), len(prompt) - 9
        oracle.verify(prompt)
        while backend.length < len(prompt) + 20:
            drafts, rest = drafts_of_standard_heads(oracle, first, token), text[backend.length + 1 :]
            right = next((i for i, (d, t) in enumerate(zip(drafts, rest, strict=False)) if d != t), 3)
            result = backend.round(token)
            assert (result.accepted, result.proposed) == (right, 3)
            oracle.verify([token, *result.emitted[:-1]])
            token = result.emitted[-1]
            seen.add(right)
        assert token == text[backend.length]
    assert max(rows) == 9 and len(seen) > 2


def test_an_interrupted_round_leaves_the_text_as_it_was(folder: Path) -> None:
    backend, fresh = (opened(folder, num_draft_tokens=1) for _ in range(2))
    text = list(range(30, 50))
    token, run = backend.prefill(text), backend._session.run
    backend.round(token)

    def interrupted(*args: Any) -> Any:
        run(*args)
        raise KeyboardInterrupt

    for named in (backend._next, 3):
        backend._session.run = interrupted
        with pytest.raises(KeyboardInterrupt):
            backend.round(named)
        backend._session.run = run
    fresh.prefill(backend._tokens)
    for _ in range(4):
        ours, theirs = backend.round(token), fresh.round(token)
        assert (ours.emitted, ours.proposed) == (theirs.emitted, theirs.proposed)
        token = ours.emitted[-1]


def test_the_choice_is_made_of_what_was_measured(folder: Path) -> None:
    backend, plain = opened(folder, choose=True), opened(folder, plain=True)
    assert isinstance(backend, ChoosingBackend)
    costs = backend.drafting.chooser.costs  # type: ignore[attr-defined]
    assert costs.cost(PLAIN) == 1 and costs.cost(heads(1)) > 0 and costs.cost(lookup(7)) > 0
    assert backend.length == 0
    for prompt in PROMPTS:
        assert decoded(backend, prompt, 60)[0] == decoded(plain, prompt, 60)[0]


def test_a_seed_chooses_by_no_clock(folder: Path) -> None:
    texts = []
    for _ in range(2):
        backend = opened(folder, choose=True, sampling=Sampling(temp=1.0, seed=3))
        texts.append([decoded(backend, prompt, 40) for prompt in PROMPTS])
    assert texts[0] == texts[1]
    table = guessed(backend.drafting.chooser.costs.kinds, "fp32", "fp32")
    if read_manifest(folder).precision == "fp32":
        assert backend.drafting.chooser.costs.table() == pytest.approx(table)  # as before the first round


def test_a_full_cache_is_filled_to_its_end(folder: Path) -> None:
    plain, backend = opened(folder, plain=True), opened(folder, num_draft_tokens=1)
    backend.drafting = Scheduled(2, read_manifest(folder).num_heads, VOCAB)
    prompt = list(range(90, 40, -1)) * 4
    assert decoded(backend, prompt, 500)[0] == decoded(plain, prompt, 500)[0]
    assert backend.length == backend.capacity


def test_kinds_and_costs() -> None:
    assert [str(kind) for kind in kinds_of(4, 100)] == [
        *("plain", "heads 1", "heads 2", "heads 3", "heads 4", "lookup 3", "lookup 7", "lookup 15"),
    ]  # fmt: skip
    assert kinds_of(0, 5) == [PLAIN, lookup(3)] and kinds_of(1, 100, with_lookup=False) == [PLAIN, heads(1)]
    table = guessed(kinds_of(4, 100), "int4", "int8")
    assert table[PLAIN] == 1 < table[lookup(3)] < table[lookup(7)] and table[heads(1)] < table[heads(4)]


def test_the_first_rounds_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = [0.0], list[Kind]()
    slow = {PLAIN: 1.0, heads(1): 2.0, lookup(3): 0.5}
    monkeypatch.setattr("mtpd_onnx.runtime.measured_costs.time.perf_counter", lambda: clock[0])

    def run(kind: Kind) -> None:
        runs.append(kind)
        clock[0] += slow[kind] * (100 if len(runs) <= 3 else 1.5 if runs.count(kind) == 3 else 1) / 1000

    assert measure(list(slow), run) == pytest.approx({kind: seconds / 1000 for kind, seconds in slow.items()})
    assert len(runs) == 4 + 9
    clock[0] = 0.0
    slow = {kind: 1000 * seconds for kind, seconds in slow.items()}  # a large model: one round of each
    runs.clear()
    measure(list(slow), run)
    assert len(runs) == 4 + 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("alone")
    export_checkpoint(write_base(place / "base", FAMILIES["llama-tied"], scale=2.0), place / "onnx")
    return place


def test_a_base_without_heads_decodes_with_lookup_alone(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = alone / "onnx"
    manifest = read_manifest(folder)
    assert manifest.num_heads == 0 and set(manifest.graphs) < set(manifest.files)
    assert not any("round" in name for name in manifest.files)
    plain, backend = opened(folder, plain=True), opened(folder, choose=True)
    for prompt in PROMPTS:
        assert decoded(backend, prompt, 60)[0] == decoded(plain, prompt, 60)[0]
    backend.drafting = Scheduled(1, 0, VOCAB)
    for prompt in PROMPTS:
        assert decoded(backend, prompt, 60)[0] == decoded(plain, prompt, 60)[0]
    assert {source for source, _, _ in backend.drafting.seen} == {"plain", "lookup"}
    sampled = opened(folder, choose=True, sampling=Sampling(temp=1.0, seed=1))
    assert len(decoded(sampled, PROMPTS[-1], 30)[0]) == 30
    assert isinstance(opened(folder), PlainBackend)
    arguments = ["generate", str(folder), "--provider", "cpu", "-p", "abc", "-m", "20"]
    assert main(arguments) == 0 and "Generation: 20 tokens" in capsys.readouterr().out
    for more, words in (
        (["--num-draft-tokens", "1"], "got 1, expected 0..0"),
        (["--batch-size", "2", "--num-draft-tokens", "1"], "got 1, expected 0..0"),
    ):
        assert main([*arguments, *more]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert words in line


@pytest.mark.parametrize(
    "options",
    [
        {"num_draft_tokens": 1},
        {"layout": "split"},
        {"draft_head_bits": 4},
        {"draft_vocab": 50},
        {"model": "x"},
        {"allow_base_mismatch": True},
    ],
    ids=str,
)
def test_what_needs_heads_is_refused_of_a_base(options: dict[str, Any], alone: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a base without heads; give a heads checkpoint, or leave") as error:
        export_checkpoint(alone / "base", tmp_path / "out", ExportOptions(**options))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_folder_of_the_version_before_drafts_with_all_heads(folder: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    values = json.loads((old / "manifest.json").read_text())
    for name in ("decoder.onnx", "sampled_decoder.onnx"):
        (old / name).unlink()
        for entries in ("files", "io", "weights_read"):
            del values[entries][name]
    (old / "manifest.json").write_text(json.dumps(values | {"format_version": 5}))
    backend, plain = opened(old, choose=True), opened(folder, plain=True)
    assert isinstance(backend, FusedBackend)
    assert decoded(backend, PROMPTS[-1], 40)[0] == decoded(plain, PROMPTS[-1], 40)[0]
