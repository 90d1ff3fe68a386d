"""Sampled rounds on onnxruntime: their text is distributed as the main model says, whatever the heads draft."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.decode import decoded
from helpers.evidence import PROMPTS, evidence, sample
from helpers.renewed import differ
from helpers.schedules import Scheduled
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.speculative.sampling import Sampling

OPTIONS = [
    Sampling(temp=1.0),
    Sampling(temp=0.7, top_p=0.9),
    Sampling(temp=0.8, top_k=12, min_p=0.02, repetition_penalty=1.3),
]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads that draft among all tokens, unless a test asks for a draft vocabulary."""
    folder = tmp_path_factory.mktemp("sampled")
    base = write_base(folder / "base", scale=2.0)
    drafts = np.arange(0, VOCAB, 2) if getattr(request, "param", "whole") == "drafts" else None
    export_checkpoint(write_checkpoint(folder / "heads", base, 3, noise=0.02, draft_tokens=drafts), folder / "onnx")
    return folder / "onnx"


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("whole", OPTIONS[0]),
        ("drafts", OPTIONS[2]),
        pytest.param("drafts", OPTIONS[1], marks=pytest.mark.slow),
        pytest.param("whole", OPTIONS[2], marks=pytest.mark.slow),
    ],
    indirect=["folder"],
    ids=str,
)
def test_text_is_distributed_as_the_main_model_says(folder: Path, options: Sampling) -> None:
    """About 1,900 tokens: a rule off by 5 points of the most probable token is found with power > .99 (deviate > 4)."""
    options = replace(options, seed=1)
    reference = open_folder(folder, provider="cpu", plain=True, num_threads=1)
    assert isinstance(reference, PlainBackend)
    hows: dict[str, dict] = {"rounds": {"fixed_rounds": True}, "plain": {"plain": True}, "any": {"num_draft_tokens": 3}}
    for how, more in hows.items():
        backend: Any = open_folder(folder, provider="cpu", num_threads=1, sampling=options, **more)
        if how == "any":  # any number of drafts, of the heads or looked up
            backend.drafting = Scheduled(1, 3, VOCAB, lambda text, count: decoded(reference, text, count)[0])
        found, accepted = evidence(backend, reference, options)
        assert found.p_value > 1e-3
        assert accepted == 0 if how == "plain" else accepted > 100


def test_a_graph_that_accepts_every_draft_would_be_found_out(folder: Path) -> None:
    options = Sampling(temp=1.0, seed=1)
    reference, broken = (open_folder(folder, provider="cpu", plain=p, num_threads=1, sampling=s, fixed_rounds=True)
                         for p, s in ((True, None), (False, options)))  # fmt: skip
    assert isinstance(reference, PlainBackend) and isinstance(broken, FusedBackend)
    start = broken.runner.start

    def forget() -> None:
        broken.runner.set("draft_probs", np.full((3, VOCAB), 1e-9, np.float32))
        start()

    broken.runner.start = forget  # type: ignore[method-assign]
    assert evidence(broken, reference, options)[0].p_value < 1e-6


@pytest.mark.parametrize("folder", ["whole", "drafts"], indirect=True)
def test_a_seed_repeats_its_texts_and_another_one_does_not(folder: Path) -> None:
    texts = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        backend = open_folder(folder, provider="cpu", num_threads=1, sampling=Sampling(temp=1.0, seed=seed))
        texts[name] = [sample(backend, prompt) for prompt in (PROMPTS[0], PROMPTS[0], PROMPTS[1])]
    assert texts["a"] == texts["b"] != texts["c"]
    assert texts["a"][0] != texts["a"][1]  # the second text of a seed is another one


def test_prefill_in_chunks_draws_the_same_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Sampling(temp=0.9, repetition_penalty=1.2, seed=5)
    texts = []
    for chunk in (512, 4):
        monkeypatch.setattr("mtpd_onnx.runtime.limits.PREFILL_CHUNK", chunk)
        backend = open_folder(folder, provider="cpu", num_threads=1, sampling=options, fixed_rounds=True)
        texts.append(sample(backend, PROMPTS[1]))
    assert texts[0] == texts[1]


def test_greedy_options_open_the_greedy_graph_and_top_1_draws_the_greedy_text(folder: Path) -> None:
    greedy = open_folder(folder, provider="cpu", num_threads=1)
    expected = [sample(greedy, prompt)[0] for prompt in PROMPTS]
    for options in (Sampling(), Sampling(temp=1.0, top_k=1)):
        backend = open_folder(folder, provider="cpu", num_threads=1, sampling=options)
        assert [sample(backend, prompt)[0] for prompt in PROMPTS] == expected


def test_what_graphs_cannot_do_is_said(folder: Path) -> None:
    for options, message in (
        (Sampling(temp=1.0, repetition_context_size=7), "--repetition-context-size: got 7"),
        (Sampling(temp=1.0, top_k=VOCAB + 1), "--top-k: got 98"),
    ):
        with pytest.raises(ValueError, match=message):
            open_folder(folder, provider="cpu", sampling=options)


@pytest.mark.parametrize("how", [{"fixed_rounds": True}, {"plain": True}, {"num_draft_tokens": 3}], ids=str)
def test_a_text_that_goes_on_as_another_is_drawn_anew(folder: Path, how: dict[str, Any]) -> None:
    assert differ(lambda sampling: open_folder(folder, provider="cpu", num_threads=1, sampling=sampling, **how))
