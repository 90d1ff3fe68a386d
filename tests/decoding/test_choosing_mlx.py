"""Rounds whose drafts are chosen: whatever is chosen, the text is plain decoding's, and heads that lagged draft as if they
had never been out of use."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.decode import oracle
from helpers.heads_of import heads_of
from helpers.schedule import Schedule
from tiny import LLAMA, VOCAB, write_base, write_checkpoint

from mtpd_mlx.decoding import choosing_rounds, fixed_choosing, lagging_heads, text_state
from mtpd_mlx.decoding import open as open_module
from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.fixed_choosing import FixedChoosingDecoder
from mtpd_mlx.decoding.open import choosing_decoder, open_choosing
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.decoding.sampler import Sampled
from mtpd_mlx.decoding.text_state import KVOptions, Model
from mtpd_mlx.decoding.token_rules import Greedy, one_hot
from mtpd_mlx.decoding.tuning import round_times
from mtpd_mlx.decoding.tuning.choice import chosen_drafting
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.decoding.tuning.round_times import warmed
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend, Chooses, Round
from mtpd_mlx.speculative.round_costs import PLAIN, heads, lookup
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.significance import Evidence
from mtpd_mlx.speculative.verify import judge

K, CAPACITY = 4, 90


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """(base, heads): heads on normed states that draft among all tokens, unless a test asks for another kind."""
    return heads_of(getattr(request, "param", "postnorm"), tmp_path_factory.mktemp("model"), K)


@pytest.fixture(params=["growing", "fixed", "fixed+scatter+rows"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return Plan.parse(request.param)


GROWING = Plan()


def opened(
    model: tuple, drafting: Any, count: int = K, rule: Any = None, plan: Plan = GROWING, **options: Any
) -> ChoosingDecoder | FixedChoosingDecoder:
    base, own = model
    rule = rule or Greedy(own.draft_tokens)
    return choosing_decoder(Model(base, own if count else None, count, rule, **options), plan, drafting, CAPACITY)


def written(backend: Backend, prompt: list[int], length: int) -> list[int]:
    return [t for chunk in generate(backend, prompt, max_tokens=length) for t in chunk.tokens]


@pytest.mark.parametrize("model", ["postnorm", "prenorm", "drafts"], indirect=True)
def test_any_schedule_gives_the_plain_text(model: tuple, plan: Plan) -> None:
    used: Counter[str] = Counter()
    for seed in range(12):
        rng, drafting = np.random.default_rng(seed), Schedule(seed)
        backend = opened(model, drafting, plan=plan)
        for _ in range(3):
            prompt = rng.integers(0, VOCAB, rng.integers(1, 30)).tolist()
            backend.rewind_to(0)
            first = written(backend, prompt, 40)
            assert first == oracle(model[0], prompt, 40)
            kept = int(rng.integers(0, backend.length + 1))
            whole, more = (prompt + first)[:kept], rng.integers(0, VOCAB, rng.integers(1, 9)).tolist()
            backend.rewind_to(kept)
            assert backend.length == kept and backend.tokens == whole
            assert written(backend, more[: CAPACITY - kept - 21], 20) == oracle(
                model[0], whole + more[: CAPACITY - kept - 21], 20
            )
        used += drafting.used
    assert {"plain", "heads 1", "heads 3", "heads 4", "lookup 2"} <= set(used)


def test_texts_fill_the_context_to_its_end(model: tuple, plan: Plan) -> None:
    for seed in range(4):
        backend = opened(model, Schedule(seed), plan=plan)
        text = written(backend, [3, 4, 5], 999)
        assert len(text) == CAPACITY - 3 + 1 and backend.length == CAPACITY
        assert text == oracle(model[0], [3, 4, 5], len(text))


class Guessing(Schedule):
    """In place of lookup's drafts those of a model that knows better: the base's own greedy text. They are as certain."""

    def __init__(self, seed: int, model: tuple):
        super().__init__(seed, most=3, kinds=("heads", "plain"))
        self._plain = MLXModel(model[0], None)

    def propose(self, most: int) -> Proposal:
        if not most or self.rng.random() < 0.4:
            return super().propose(most)
        count = min(most, int(self.rng.integers(1, 4)))
        self._plain.rewind_to(0)
        drafts = [int(self._plain.verify(self.lookup._index.tokens)[-1])]
        while len(drafts) < count:
            drafts.append(int(self._plain.verify(drafts[-1:])[-1]))
        return Proposal(lookup(count), tuple(drafts))


class Watched(Schedule):
    """Heads and plain steps only; compares what each heads' round accepts with what heads that never lagged would."""

    def __init__(self, seed: int, model: tuple):
        super().__init__(seed, kinds=("plain", "heads", "lookup"))
        self.model, self.known, self.checked = model, [], 0

    def align(self, text: Sequence[int], token: int) -> None:
        super().align(text, token)
        self.known = [*text, token]

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        if proposal.kind.source == "heads" and proposal.count:
            fresh = MLXModel(*self.model)
            fresh.prefill(self.known[:-1])
            drafts = fresh.draft(self.known[-1])[: proposal.count]
            right = [a == b for a, b in zip(drafts, emitted, strict=False)]
            assert len(emitted) - 1 == [*right, False].index(False) if len(emitted) <= proposal.count else all(right)
            self.checked += len(emitted) > 1
        super().observe(proposal, emitted, proposed, seconds)


@pytest.mark.parametrize("window", [512, 3])
@pytest.mark.parametrize("model", ["postnorm", "prenorm"], indirect=True)
@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_heads_that_lagged_draft_as_if_they_had_not(
    model: tuple, window: int, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acceptance round by round is that of heads which read the whole text anew."""
    monkeypatch.setattr(lagging_heads, "LONGEST_WINDOW", window)
    monkeypatch.setattr(fixed_choosing, "FILLS", (window,))
    monkeypatch.setattr(text_state, "PREFILL_CHUNK", 7)
    checked = 0
    for seed in range(6):
        drafting = Watched(seed, model)
        backend = opened(model, drafting, plan=Plan(cache))
        for prompt in (list(range(5, 25)), [9], list(range(70, 40, -1))):
            backend.rewind_to(0)
            written(backend, prompt, 45)
        backend.rewind_to(50)  # a conversation that goes on in the middle
        written(backend, [1, 2], 20)
        checked += drafting.checked
    assert checked > 12


def test_steps_rounds_and_named_tokens_mix(model: tuple, plan: Plan) -> None:
    for seed in range(4):
        backend, rng, whole = opened(model, Schedule(seed), plan=plan), np.random.default_rng(seed), list(range(5, 20))
        token = backend.prefill(whole)
        for turn in range(24):
            if turn % 5 == 4:
                token = int(rng.integers(0, VOCAB))
            result = [backend.step(token)] if turn % 3 == 0 else backend.round(token).emitted
            assert result == oracle(model[0], [*whole, token], len(result))
            whole += [token, *result[:-1]]
            token = result[-1]
            if turn % 7 == 6:
                kept = len(whole) - int(rng.integers(0, 6))
                backend.rewind_to(kept)
                del whole[kept:]


def test_lookup_alone_needs_no_heads(model: tuple, plan: Plan) -> None:
    drafting = Schedule(0, most=8, kinds=("plain", "lookup"))
    backend = opened(model, drafting, 0, plan=plan)
    for prompt in ([9] * 12, list(range(5, 20)) * 2):
        backend.rewind_to(0)
        assert written(backend, prompt, 40) == oracle(model[0], prompt, 40)
    assert any(name.startswith("lookup") for name in drafting.used)


def test_processors_take_part(model: tuple) -> None:
    def never_twice(seen: mx.array, logits: mx.array) -> mx.array:
        return mx.put_along_axis(logits, seen[-1:][None].astype(mx.int32), mx.array(-1e9), axis=1)

    plain = opened(model, Schedule(0, kinds=("plain",)), logits_processors=(never_twice,))
    mixed = opened(model, Schedule(1), logits_processors=(never_twice,))
    assert written(plain, list(range(5, 25)), 40) == written(mixed, list(range(5, 25)), 40)


def test_quantised_caches_take_part(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", LLAMA | {"head_dim": 32}, scale=8.0)
    model = load_for_decoding(write_checkpoint(tmp_path / "heads", base, K))[:2]
    plain = opened(model, Schedule(0, kinds=("plain",)), kv=KVOptions(8, 32, 30))
    mixed = opened(model, Schedule(1), kv=KVOptions(8, 32, 30))
    assert written(plain, list(range(5, 25)), 40) == written(mixed, list(range(5, 25)), 40)


OPTIONS = [Sampling(temp=0.3, seed=1), Sampling(temp=0.4, top_k=12, min_p=0.02, repetition_penalty=1.3, seed=1)]
XTC = Sampling(temp=0.3, top_p=0.95, seed=1, xtc_probability=0.5, xtc_threshold=0.05, top_k=30)


@pytest.mark.parametrize("cache", ["growing", "fixed"])
@pytest.mark.parametrize(
    "options", [OPTIONS[0], *(pytest.param(o, marks=pytest.mark.slow) for o in (OPTIONS[1], XTC))], ids=str
)
def test_sampled_text_is_distributed_as_the_main_model_says(options: Sampling, cache: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", scale=5.0)
    model = load_for_decoding(write_checkpoint(tmp_path / "heads", base, 3, noise=0.02))[:2]
    rule = Sampled(options, VOCAB, CAPACITY + 40, None, ())
    backend, found, lookups = opened(model, Guessing(3, model), 3, rule, Plan(cache)), [], 0
    prompts = [("a", list(range(5, 20))), ("b", list(range(40, 60))), ("c", [9, 9, 9, 9, 4]), ("d", list(range(90, 60, -1)))]
    prompts *= 6
    for _, prompt in prompts:
        backend.rewind_to(0)
        chunks = list(generate(backend, prompt, max_tokens=CAPACITY - len(prompt)))
        found.append([t for c in chunks for t in c.tokens])
        lookups += sum(c.num_drafted for c in chunks if c.round is not None and c.round.source == "lookup")
    seen: Evidence = judge(MLXModel(model[0], None), prompts, found, options)
    assert seen.p_value > 1e-3 and lookups > 60


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_a_seed_repeats_its_text_whatever_rounds_take(model: tuple, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose times are noise chooses as one whose times are true."""
    texts, rng, now = [], np.random.default_rng(0), time.perf_counter
    for noisy in (False, True):
        if noisy:
            monkeypatch.setattr(choosing_rounds.time, "perf_counter", lambda: now() * rng.uniform(1, 2))
        how = DecodingConfig(plan=cache)
        backend = open_choosing(*model, how, capacity=CAPACITY, sampling=Sampling(temp=0.5, seed=7))
        assert isinstance(backend, Chooses)
        for prompt in ([9] * 12, list(range(5, 20)) * 2):
            backend.rewind_to(0)
            texts.append([c.tokens for c in generate(backend, prompt, max_tokens=50)])
    assert texts[:2] == texts[2:]


def test_what_has_one_number_of_drafts_does_not_choose(model: tuple) -> None:
    backend = open_choosing(*model, DecodingConfig(exact=True), num_draft_tokens=2)
    assert not isinstance(backend, Chooses) and backend.num_draft_tokens == 2
    assert isinstance(open_choosing(*model), Chooses) and isinstance(open_choosing(model[0], None), Chooses)
    fixed = DecodingConfig(plan="fixed")
    assert isinstance(open_choosing(*model, fixed), FixedChoosingDecoder)
    assert isinstance(open_choosing(model[0], None, fixed), FixedChoosingDecoder)
    assert isinstance(open_choosing(model[0], None, lookup=False), PlainDecoder)


def test_point_masses() -> None:
    assert np.array_equal(np.array(one_hot(mx.array([2, 0], mx.uint32), 4)), np.eye(4, dtype=np.float32)[[2, 0]])


def test_times_are_those_of_rounds_and_not_the_callers(model: tuple, plan: Plan) -> None:
    """A caller that takes its time makes rounds that are not counted."""
    drafting = Schedule(0, kinds=("heads",), most=1)
    backend = opened(model, drafting, plan=plan)
    token = backend.prefill(list(range(5, 25)))
    for _ in range(8):
        token = backend.round(token).emitted[-1]
    counted = len(drafting.times)
    assert counted >= 4 and all(0 < t < 5 for t in drafting.times)
    for _ in range(4):
        time.sleep(0.3)
        token = backend.round(token).emitted[-1]
    assert len(drafting.times) == counted


def test_a_cache_goes_to_another_decoder(model: tuple, plan: Plan) -> None:
    """`settled`: all heads have read the text, whatever was in use; `resume` goes on from there."""
    first, second = opened(model, Schedule(2, kinds=("plain", "lookup")), plan=plan), opened(model, Schedule(3), plan=plan)
    prompt = list(range(5, 25))
    text = written(first, prompt, 30)
    host = first.settled()
    second.resume(list(host.tokens), host.caches, host.head_caches)
    result: Round = second.round(text[-1])
    assert result.emitted == oracle(model[0], [*prompt, *text], len(result.emitted))


def test_rounds_are_compiled(model: tuple) -> None:
    backend, prompt = opened(model, Schedule(5), plan=Plan.parse("fixed+compiled")), list(range(5, 25))
    assert written(backend, prompt, 40) == oracle(model[0], prompt, 40)


def test_rounds_are_timed_by_kind_and_the_text_is_forgotten(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    drafting, known = Schedule(0), [PLAIN, heads(4), lookup(2)]
    backend = choosing_decoder(Model(model[0], model[1], K, Greedy()), Plan("fixed"), drafting, 400)
    assert isinstance(backend, FixedChoosingDecoder)
    times = warmed(backend, known, VOCAB)
    assert list(times) == known and times[PLAIN] == 1 and all(cost > 0 for cost in times.values())
    assert backend.length == 0 and backend.drafting is drafting
    assert written(backend, [3, 4, 5], 20) == oracle(model[0], [3, 4, 5], 20)
    assert warmed(opened(model, drafting, plan=Plan("fixed")), known, VOCAB) == {}  # no room
    monkeypatch.setattr(round_times, "BUDGET", 0.0)
    monkeypatch.setattr(round_times, "ALWAYS", 2)
    assert list(warmed(backend, known, VOCAB)) == known[:2]


def test_kinds_that_were_not_compiled_are_not_chosen(model: tuple) -> None:
    drafting = chosen_drafting(*model, with_lookup=True, costs={PLAIN: 1.0, heads(2): 1.2}, partial=True)
    assert drafting.chooser.costs.kinds == [PLAIN, heads(2)]


def test_a_second_start_measures_nothing(model: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the plan and the costs of the first start."""
    monkeypatch.setenv("MTPD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(open_module, "on_cpu", lambda: False)
    monkeypatch.setattr(open_module, "candidates", lambda _: (Plan("fixed"), Plan("fixed", write="scatter")))
    calls = []
    monkeypatch.setattr(open_module, "time_plans", lambda *_: calls.append("plans") or {Plan("fixed", write="scatter"): 1.0})
    found = {PLAIN: 1.0, heads(2): 1.25}
    monkeypatch.setattr(open_module, "kinds", lambda *_: [PLAIN, heads(2)])
    monkeypatch.setattr(open_module, "warmed", lambda *_: calls.append("rounds") or found)
    for remeasure, expected in ((False, 2), (False, 2), (True, 4)):
        backend = open_choosing(*model, remeasure=remeasure)
        assert isinstance(backend, FixedChoosingDecoder) and str(backend.plan) == "fixed+scatter"
        assert backend.drafting.chooser.costs.table() == {PLAIN: 1.0, heads(2): pytest.approx(1.25)}  # type: ignore[attr-defined]
        assert len(calls) == expected
    open_choosing(*model, sampling=Sampling(temp=0.7))  # costs otherwise
    assert len(calls) == 6
    monkeypatch.setattr(open_module, "kinds", lambda *_: [PLAIN, heads(1), heads(2)])  # one was not compiled in time
    for expected in (8, 10):
        open_choosing(*model, lookup=False)
        assert len(calls) == expected
