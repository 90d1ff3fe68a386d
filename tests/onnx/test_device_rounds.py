"""Rounds whose text lies on the device (graphs/device_rounds.py), here on a CPU: the same text, whatever is chosen."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.decode import decoded
from helpers.evidence import evidence
from helpers.renewed import differ
from helpers.schedules import OnDevice, check_texts, truth_of
from helpers.standard_heads import drafts_of_standard_heads
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.layouts import draft_counts
from mtpd_onnx.manifest import Manifest, read_manifest
from mtpd_onnx.runtime.device_rounds import DeviceBackend
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_device import open_device
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.drafting import FixedDrafting
from mtpd_mlx.speculative.round_costs import PLAIN, Kind, heads, lookup
from mtpd_mlx.speculative.sampling import Sampling

PROMPTS = [[5], [9, 4], [6, 7, 8], list(range(30)), list(range(90, 40, -1)) * 3]
CASES = [("llama-tied", 4, "postnorm", None), ("llama-untied", 1, "prenorm", None), ("qwen3", 5, "prenorm", 60)]


def exported(place: Path, family: str, count: int, source: str = "postnorm", drafts: int | None = None) -> Path:
    """In float32, with the graphs of a folder for CUDA."""
    base = write_base(place / "base", FAMILIES[family], scale=2.0)
    tokens = None if drafts is None else np.arange(drafts)
    checkpoint = write_checkpoint(place / "heads", base, count, source, noise=0.05, draft_tokens=tokens)
    export_checkpoint(checkpoint, place / "onnx", ExportOptions())
    export_checkpoint(checkpoint, place / "split", ExportOptions(layout="split"))
    return place / "onnx"


@pytest.fixture(scope="module", autouse=True)
def float32_is_for_cuda() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("mtpd_onnx.export.export", "mtpd_onnx.manifest"):
            patch.setattr(f"{module}.PROVIDERS", {"fp32": "cuda"})
        for module in ("builder", "cuda_modules"):  # transposed matrices, the best token by blocks
            patch.setattr(f"mtpd_onnx.graphs.{module}.CUDA_TYPES", (ir.DataType.FLOAT,))
        patch.setattr("mtpd_onnx.graphs.cuda_modules.BLOCK", 97)  # of a vocabulary of 97: one; 60 draft tokens: none
        yield


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("device"), *request.param)


def opened(folder: Path, num_draft_tokens: int | None = None, ahead: bool = False, **how: Any) -> DeviceBackend:
    """`ahead`: rounds are started before the one before is read, as on a device."""
    backend = open_device(folder, read_manifest(folder), "cpu", 1, num_draft_tokens=num_draft_tokens, **how)
    backend.ahead = ahead
    return backend


def plain_texts(folder: Path) -> dict[tuple[int, ...], list[int]]:
    plain = open_folder(folder, provider="cpu", plain=True, num_threads=1)
    return {tuple(prompt): decoded(plain, prompt, 60)[0] for prompt in PROMPTS}


@pytest.fixture(autouse=True)
def the_folder_runs_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtpd_onnx.runtime.open.choose_provider", lambda *_: "cpu")


@pytest.mark.parametrize("ahead", [False, True])
def test_every_number_of_drafts_gives_the_plain_text(folder: Path, ahead: bool) -> None:
    expected, count = plain_texts(folder), read_manifest(folder).num_heads
    rounds = open_folder(folder, provider="cpu", num_threads=1, fixed_rounds=True)
    for drafts in draft_counts(count):
        fixed = opened(folder, drafts, ahead)
        for prompt in PROMPTS:
            text, accepted = decoded(fixed, prompt, 60)
            assert text == expected[tuple(prompt)]
            if drafts == count and len(prompt) == 30:
                assert sum(accepted) / len(accepted) > 0.8 * np.mean(decoded(rounds, prompt, 60)[1])


@pytest.mark.parametrize("ahead", [False, True])
def test_any_schedule_gives_the_plain_text(folder: Path, ahead: bool) -> None:
    expected, count = plain_texts(folder), read_manifest(folder).num_heads

    backend = opened(folder, ahead=ahead)
    drafting = backend.drafting = OnDevice(3, count, VOCAB, truth_of(expected))
    check_texts(backend, drafting, expected, lookups=4)


def test_heads_draft_what_standard_heads_draft(folder: Path) -> None:
    """After plain steps, lookups, fewer heads, rewinds and rounds ahead, over the positions that they have read."""
    count = read_manifest(folder).num_heads
    backend, oracle = opened(folder), open_folder(folder.parent / "split", num_threads=1).model  # type: ignore[attr-defined]
    scheduled, rng, seen, begun = OnDevice(5, count, VOCAB), np.random.default_rng(1), set(), set()
    for _ in range(30):
        backend.drafting, backend.ahead = scheduled, bool(rng.random() < 0.5)
        backend.rewind_to(int(rng.integers(0, backend.length + 1)) if rng.random() < 0.5 else 0)
        token = backend.prefill(rng.integers(0, VOCAB, int(rng.integers(16, 50))).tolist())
        for _ in range(int(rng.integers(0, 12))):
            token = backend.round(token).emitted[-1] if rng.random() < 0.9 else backend.step(int(rng.integers(0, VOCAB)))
        oracle.rewind_to(0)
        oracle.verify(backend._tokens)
        named = token if rng.random() < 0.8 else int(rng.integers(0, VOCAB))
        backend._drain()
        backend.drafting, backend.ahead = FixedDrafting(count), False
        ours = backend.round(named)
        drafts = drafts_of_standard_heads(oracle, backend._origin, named)
        chosen = oracle.verify([named, *drafts]).tolist()
        right = next((i for i, (d, t) in enumerate(zip(drafts, chosen, strict=False)) if d != t), count)
        assert (ours.proposed, ours.accepted, ours.emitted) == (count, right, chosen[: right + 1])
        seen.add(right)
        begun.add(backend._origin == 0)
    assert len(begun) == 2 and len(seen) > (count > 1)


def test_an_interrupted_round_leaves_the_text_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, expected = opened(folder, 1, ahead=True), plain_texts(folder)
    prompt = PROMPTS[-1]
    text = [*prompt, *expected[tuple(prompt)]]
    token = backend.prefill(prompt)
    wait = backend._runs.plain.__class__.wait

    def interrupted(runner: Any) -> Any:
        wait(runner)
        raise KeyboardInterrupt

    for _ in range(3):
        monkeypatch.setattr("mtpd_onnx.runtime.runner.Runner.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.round(token)
        monkeypatch.undo()
        monkeypatch.setattr("mtpd_onnx.runtime.open.choose_provider", lambda *_: "cpu")
        for _ in range(4):
            token = backend.round(token).emitted[-1]
            assert token == text[backend.length]


def test_the_choice_is_made_of_what_was_measured(folder: Path) -> None:
    backend, expected = opened(folder, ahead=True), plain_texts(folder)
    costs = backend.drafting.chooser.costs  # type: ignore[attr-defined]
    assert costs.cost(PLAIN) == 1 and costs.cost(heads(1)) > 0 and costs.cost(lookup(7)) > 0 and backend.length == 0
    for prompt in PROMPTS:
        assert decoded(backend, prompt, 60)[0] == expected[tuple(prompt)]


def test_costs_that_are_known_are_not_measured_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTPD_CACHE_DIR", str(tmp_path))
    calls = []

    def measure(self: DeviceBackend, kinds: list[Kind]) -> dict[Kind, float]:
        calls.append(kinds)
        return {kind: 1 + 0.1 * kind.num_drafts for kind in kinds}

    monkeypatch.setattr(DeviceBackend, "seconds_of", measure)
    first, second = opened(folder), opened(folder)
    table = first.drafting.chooser.costs.table()  # type: ignore[attr-defined]
    assert len(calls) == 1 and second.drafting.chooser.costs.table() == pytest.approx(table)  # type: ignore[attr-defined]
    opened(folder, remeasure=True)
    opened(folder, lookup=False)  # other kinds
    assert len(calls) == 3


def test_a_full_cache_is_filled_to_its_end(folder: Path) -> None:
    plain = open_folder(folder, provider="cpu", plain=True, num_threads=1)
    for ahead in (False, True):
        backend = opened(folder, ahead=ahead)
        backend.drafting = OnDevice(2, read_manifest(folder).num_heads, VOCAB)
        prompt = PROMPTS[-1]
        assert decoded(backend, prompt, 500)[0] == decoded(plain, prompt, 500)[0]
        assert backend.length == backend.capacity


def test_sessions_read_the_one_copy_of_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is changed there changes every session's text."""
    from mtpd_onnx.runtime import shared_weights

    made: list[Any] = []

    class Changed(shared_weights.SharedWeights):
        def _placed(self, array: np.ndarray, kind: str, provider: str) -> Any:
            made.append(array.size)
            return super()._placed(np.zeros_like(array) if array.size == VOCAB * 64 else array, kind, provider)

    right = decoded(opened(folder, 1), PROMPTS[3], 20)[0]
    monkeypatch.setattr("mtpd_onnx.runtime.open_device.SharedWeights", Changed)
    assert decoded(opened(folder, 1), PROMPTS[3], 20)[0] != right
    manifest = read_manifest(folder)
    assert len(made) == len(manifest.tensors) and sum(made) > VOCAB * 64


def test_a_table_that_does_not_fit_the_file_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    name = next(iter(manifest.tensors))
    damaged = Manifest(**{**vars(manifest), "tensors": {name: ["FLOAT", [1 << 30], 0]}})
    with pytest.raises(ValueError, match="ends at byte 4294967296"):
        open_device(folder, damaged, "cpu", 1, num_draft_tokens=1)


@pytest.mark.parametrize("family", ["llama-tied", "qwen3"])
def test_sampled_text_is_distributed_as_the_main_model_says(family: str, tmp_path: Path) -> None:
    """As in test_sampled_decoding.py: about 1,900 tokens. One family with a draft vocabulary."""
    folder = exported(tmp_path, family, 4, drafts=None if family == "llama-tied" else 60)
    reference: Any = open_folder(folder, provider="cpu", plain=True, num_threads=1)
    options = Sampling(temp=0.8, top_k=30, repetition_penalty=1.2, seed=1)
    backend = opened(folder, ahead=True, sampling=options)
    drafting = backend.drafting = OnDevice(1, 4, VOCAB, lambda text, count: decoded(reference, text, count)[0])
    found, accepted = evidence(backend, reference, options)
    assert found.p_value > 1e-3 and accepted > 100
    assert {source for source, _, _ in drafting.seen} == {"plain", "heads", "lookup"}
    greedy, top = plain_texts(folder), opened(folder, ahead=True, sampling=Sampling(temp=1.0, top_k=1))
    assert [decoded(top, prompt, 60)[0] for prompt in PROMPTS] == [greedy[tuple(prompt)] for prompt in PROMPTS]


def test_a_seed_repeats_its_texts(folder: Path) -> None:
    texts = []
    for seed in (3, 3, 4):
        backend = opened(folder, ahead=True, sampling=Sampling(temp=1.0, seed=seed))
        texts.append([decoded(backend, prompt, 40) for prompt in PROMPTS])
    assert texts[0] == texts[1] != texts[2]


def test_capturing_leaves_no_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU nothing is captured, but every kind of round runs once."""
    monkeypatch.setattr("mtpd_onnx.runtime.open_device.Stream.new", lambda: None)
    backend = opened(folder, captured=True)
    backend._runs.capture()
    for runner in backend._runs.runners:
        assert not any(runner.get(name).any() for name in runner._state)
    assert decoded(backend, PROMPTS[3], 60)[0] == plain_texts(folder)[tuple(PROMPTS[3])]


def test_a_base_without_heads_drafts_by_lookup(tmp_path: Path) -> None:
    export_checkpoint(write_base(tmp_path / "base", FAMILIES["llama-tied"], scale=2.0), tmp_path / "onnx", ExportOptions())
    backend, expected = opened(tmp_path / "onnx", ahead=True), plain_texts(tmp_path / "onnx")
    assert set(read_manifest(tmp_path / "onnx").graphs) >= {"given.onnx", "sampled_given.onnx"}
    drafting = backend.drafting
    for prompt in PROMPTS:
        assert decoded(backend, prompt, 60)[0] == expected[tuple(prompt)]
    backend.drafting = OnDevice(3, 0, VOCAB)
    assert decoded(backend, PROMPTS[3], 60)[0] == expected[tuple(PROMPTS[3])] and drafting.lookup is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_text_that_goes_on_as_another_is_drawn_anew(folder: Path, ahead: bool) -> None:
    assert differ(lambda sampling: opened(folder, 1, ahead, sampling=sampling))
