"""Sampling in MLX: operation by operation against the numpy rule, and as a whole against the main model's distribution."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.decoding import sampler
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative import sampling as oracle
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.significance import Evidence
from mtpd_mlx.speculative.verify import judge

PROMPTS = [("a", list(range(5, 20))), ("b", list(range(40, 60))), ("c", [9, 9, 9, 9, 4]), ("d", list(range(90, 60, -1)))]
OPTIONS = [
    Sampling(temp=1.0),
    Sampling(temp=0.7, top_p=0.9),
    Sampling(temp=0.8, top_k=12, min_p=0.02, repetition_penalty=1.3),
    Sampling(temp=0.9, top_p=0.95, xtc_probability=0.5, xtc_threshold=0.05, top_k=30),
]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """(base, heads): heads that draft among all tokens, unless a test asks for a draft vocabulary."""
    folder = tmp_path_factory.mktemp("sampled")
    drafts = list(range(0, VOCAB, 2)) if getattr(request, "param", "whole") == "drafts" else None
    base = write_base(folder / "base", scale=2.0)
    return load_for_decoding(write_checkpoint(folder / "heads", base, 3, noise=0.02, draft_tokens=drafts))[:2]


@pytest.mark.parametrize(
    "options", [*OPTIONS, Sampling(temp=0.0, repetition_penalty=1.2), Sampling(temp=1.3, top_k=1)], ids=str
)
@pytest.mark.parametrize("special", [(), (3, 5)])
def test_probabilities_are_the_oracles(options: Sampling, special: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((40, 60)) * rng.uniform(0.5, 5, (40, 1))).astype(np.float32)
    contexts = rng.integers(0, 60, (40, 20))
    excluded = rng.random(40) < 0.5
    excluded_mlx = mx.array(excluded) if options.xtc_probability else None
    got = sampler.probabilities(mx.array(logits), options, mx.array(contexts), excluded_mlx, special)
    expected = oracle.probabilities(logits, options, contexts, excluded if options.xtc_probability else None, special)
    assert np.array_equal(np.array(got) > 0, expected > 0)
    np.testing.assert_allclose(np.array(got), expected, atol=2e-6)


def test_xtc_is_mlx_lms() -> None:
    from mlx_lm.sample_utils import apply_xtc

    logits = np.random.default_rng(1).standard_normal((30, 40)).astype(np.float32) * 3
    options = Sampling(temp=1.0, xtc_probability=1.0, xtc_threshold=0.1)
    stock = mx.softmax(apply_xtc(mx.array(logits), 1.0, 0.1, [2]), axis=-1)
    got = oracle.probabilities(logits, options, None, np.ones(30, bool), (2,))
    np.testing.assert_allclose(np.array(stock), got, atol=2e-6)
    assert (got == 0).any(-1).mean() > 0.5


def test_draws_and_acceptance_are_the_oracles() -> None:
    rng = np.random.default_rng(2)
    counts = []
    for _ in range(300):
        m = int(rng.integers(0, 5))
        p = rng.dirichlet(np.full(12, 0.4), m + 1).astype(np.float32)
        q = (0.7 * p[:m] + 0.3 * rng.dirichlet(np.full(12, 0.4), m)).astype(np.float32)
        drafts = [int(rng.choice(12, p=row / row.sum())) for row in q]
        table = oracle.uniforms(m + 1, rng)
        text, count = sampler.accept(mx.array(p), mx.array(q).reshape(m, 12), mx.array(drafts, mx.uint32), mx.array(table))
        expected = oracle.accept_sampled(p, q, drafts, table)
        assert int(np.array(count)) == expected[0]
        assert np.array(text)[: expected[0] + 1].tolist() == [*drafts[: expected[0]], expected[1]]
        counts.append(expected[0])
    assert len(set(counts)) == 5
    zero = mx.array([0.0, 0.0, 0.5, 0.0, 0.5, 0.0])
    assert [int(np.array(sampler.draw(zero, mx.array(u)))) for u in (0.0, 0.499, 0.5, 1.0)] == [2, 2, 4, 4]


def texts(backend: Backend, repeats: int = 4, length: int = 60) -> tuple[list[list[int]], int]:
    """(texts, accepted drafts)."""
    found, accepted = [], 0
    for _, prompt in PROMPTS * repeats:
        backend.rewind_to(0)
        chunks = list(generate(backend, prompt, max_tokens=length))
        found.append([t for c in chunks for t in c.tokens])
        accepted += sum(c.num_drafted for c in chunks)
    return found, accepted


def evidence(model: tuple, found: list[list[int]], options: Sampling) -> Evidence:
    return judge(MLXModel(model[0], None), PROMPTS * (len(found) // len(PROMPTS)), found, options)


@pytest.mark.parametrize(
    ("model", "options", "plan"),
    [
        ("whole", OPTIONS[0], "growing"),
        ("drafts", OPTIONS[1], "fixed"),
        pytest.param("whole", OPTIONS[2], "fixed", marks=pytest.mark.slow),
        pytest.param("drafts", OPTIONS[3], "growing", marks=pytest.mark.slow),
        pytest.param("whole", OPTIONS[1], "growing", marks=pytest.mark.slow),
    ],
    indirect=["model"],
    ids=str,
)
def test_text_is_distributed_as_the_main_model_says(model: tuple, options: Sampling, plan: str) -> None:
    options = replace(options, seed=1)
    found, accepted = texts(open_decoder(*model, DecodingConfig(plan=plan), sampling=options))
    assert evidence(model, found, options).p_value > 1e-3
    assert accepted > 60


@pytest.mark.parametrize("plan", ["growing", pytest.param("fixed", marks=pytest.mark.slow)])
def test_plain_text_is_distributed_as_the_main_model_says(model: tuple, plan: str) -> None:
    options = replace(OPTIONS[3], seed=2)
    plain = open_decoder(model[0], None, DecodingConfig(plan=plan), sampling=options)
    assert evidence(model, texts(plain)[0], options).p_value > 1e-3


@pytest.mark.parametrize(
    ("model", "plan"), [("whole", "growing"), pytest.param("drafts", "fixed", marks=pytest.mark.slow)], indirect=["model"]
)
def test_a_rule_that_accepts_too_much_is_found_out(model: tuple, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(p: mx.array, q: mx.array, drafts: mx.array, table: mx.array) -> tuple[mx.array, mx.array]:
        return sound(p, q * 1e-6, drafts, table)

    sound = sampler.accept
    monkeypatch.setattr(sampler, "accept", careless)
    options = Sampling(temp=1.0, seed=1)
    found, _ = texts(open_decoder(*model, DecodingConfig(plan=plan), sampling=options), 6)
    assert evidence(model, found, options).p_value < 1e-6


@pytest.mark.parametrize("model", ["drafts"], indirect=True)
def test_plans_draw_the_same_text_and_seeds_repeat_it(model: tuple) -> None:
    options = Sampling(temp=0.9, top_p=0.95, repetition_penalty=1.2, xtc_probability=0.3, seed=3)
    runs = [texts(open_decoder(*model, DecodingConfig(plan=p), sampling=options), 2, 30)[0] for p in ("growing", "fixed")]
    assert runs[0] == runs[1]
    assert runs[0][: len(PROMPTS)] != runs[0][len(PROMPTS) :]  # the second text of a seed is another one
    other = replace(options, seed=4)
    assert texts(open_decoder(*model, DecodingConfig(plan="growing"), sampling=other), 2, 30)[0] != runs[0]


def test_top_1_is_greedy_and_a_penalty_without_temperature_is_deterministic(model: tuple) -> None:
    greedy = texts(open_decoder(*model, DecodingConfig(plan="growing")), 1, 30)[0]
    for plan in ("growing", "fixed"):
        backend = open_decoder(*model, DecodingConfig(plan=plan), sampling=Sampling(temp=1.0, top_k=1))
        assert texts(backend, 1, 30)[0] == greedy
    penalised = Sampling(repetition_penalty=9.0)
    plain = texts(open_decoder(model[0], None, DecodingConfig(plan="growing"), sampling=penalised), 1, 30)[0]
    for plan in ("growing", "fixed"):
        assert texts(open_decoder(*model, DecodingConfig(plan=plan), sampling=penalised), 1, 30)[0] == plain != greedy


@pytest.mark.parametrize("model", ["drafts"], indirect=True)
def test_logits_processors(model: tuple) -> None:
    """mlx-lm's own: text is that of mlx_lm.generate with them, and drafts follow them too."""
    from mlx_lm.generate import generate_step
    from mlx_lm.sample_utils import make_logits_processors

    make = lambda: make_logits_processors({5: -100.0, 7: 2.0}, None, None, 0.5, 20, 0.7, 30)  # noqa: E731
    for _, prompt in PROMPTS:
        steps = generate_step(mx.array(prompt), model[0].model, max_tokens=50, logits_processors=make())
        expected = [int(token) for token, _ in steps]
        for heads in (None, model[1]):
            backend = open_decoder(model[0], heads, DecodingConfig(plan="growing"), logits_processors=make())
            assert [t for c in generate(backend, prompt, max_tokens=50) for t in c.tokens] == expected
    with pytest.raises(ValueError, match="plan fixed: a logits processor needs the plan growing"):
        open_decoder(*model, DecodingConfig(plan="fixed"), logits_processors=make())


def test_what_cannot_be_drawn_is_said(model: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--top-k: got 98, expected at most 97"):
        open_decoder(*model, sampling=Sampling(temp=1.0, top_k=VOCAB + 1))
    with pytest.raises(ValueError, match="--xtc-threshold: got"):
        Sampling(temp=1.0, xtc_threshold=0.7)
