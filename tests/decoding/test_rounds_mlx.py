"""Every way of running rounds gives the text of plain decoding, token for token (fp32)."""

from pathlib import Path

import numpy as np
import pytest
from helpers.decode import oracle, text
from tiny import LLAMA, VOCAB, write_base, write_checkpoint

from mtpd_mlx.decoding import fixed_cache as caches
from mtpd_mlx.decoding import open as opening
from mtpd_mlx.decoding import text_state as host
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.decoding.row_by_row import row_by_row, whole_pass
from mtpd_mlx.decoding.tuning.plan import PLANS, Plan
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.rounds import StepBackend

PROMPTS = [[7], [5, 6], list(range(5, 20)), list(range(90, 40, -1)), [9] * 12]
K = 4


KINDS = ("postnorm", "prenorm", "drafts")


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """(base, heads): heads on normed states, unless a test asks for another of KINDS."""
    kind, folder = getattr(request, "param", "postnorm"), tmp_path_factory.mktemp("model")
    source = "prenorm" if kind == "prenorm" else "postnorm"
    drafts = list(range(0, VOCAB, 2)) if kind == "drafts" else None
    base = write_base(folder / "base", scale=8.0)  # text that changes, and 0..4 drafts accepted
    heads = write_checkpoint(folder / "heads", base, K, source, draft_tokens=drafts)
    return load_for_decoding(heads)[:2]


def of_kinds(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", kinds, indirect=True)


def opened(model: tuple, plan: str, drafts: int | None = None, **options) -> Decoder | PlainDecoder:  # type: ignore[no-untyped-def]
    return open_decoder(*model, DecodingConfig(plan=plan, **options), num_draft_tokens=drafts)


# Every plan with all drafts; nothing is drafted with none, and one draft is the shortest round: two plans for each.
CASES = [("postnorm", str(plan), K) for plan in PLANS]
CASES += [("prenorm", "growing", K), ("prenorm", "fixed+compiled", K), ("drafts", "growing", K), ("drafts", "fixed+rows", K)]
CASES += [("postnorm", "growing", 0), ("postnorm", "fixed+compiled+scatter+rows", 0)]
CASES += [("drafts", "fixed+scatter", 1), ("prenorm", "growing", 1)]


@pytest.mark.parametrize(("model", "plan", "drafts"), CASES, indirect=["model"])
def test_text_is_that_of_plain_decoding(model: tuple, plan: str, drafts: int) -> None:
    backend = opened(model, plan, drafts)
    assert backend.num_draft_tokens == drafts
    for prompt in PROMPTS:
        assert text(backend, prompt) == oracle(model[0], prompt)


@pytest.mark.parametrize(
    ("model", "plan"),
    [("postnorm", "growing"), ("prenorm", "fixed"), ("drafts", "growing"), ("drafts", "fixed")],
    indirect=["model"],
)
def test_drafts_and_acceptance_are_those_of_the_oracle(model: tuple, plan: str) -> None:
    """The same accepted counts round by round as draft-then-verify in Python: heads see the same states and tokens."""
    old, new = StepBackend(MLXModel(*model)), opened(model, plan)
    accepted = []
    for prompt in PROMPTS[2:]:
        for backend in (old, new):
            backend.rewind_to(0)
        rounds = [[c.round.accepted for c in generate(b, prompt, max_tokens=60) if c.round] for b in (old, new)]
        assert rounds[0] == rounds[1]
        accepted += rounds[0]
    assert len(set(accepted)) > 2


def test_buffers_grow_from_bucket_to_bucket(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "SMALLEST", 16)
    for plan in ("fixed", "fixed+compiled"):
        assert text(opened(model, plan), PROMPTS[2], 150) == oracle(model[0], PROMPTS[2], 150)


@of_kinds("prenorm", "drafts")
def test_rewinds_go_on_as_if_nothing_had_been(model: tuple) -> None:
    for plan in ("growing", "fixed"):
        backend, rng = opened(model, plan), np.random.default_rng(0)
        for _ in range(6):
            prompt = rng.integers(0, VOCAB, rng.integers(1, 30)).tolist()
            first = text(backend, prompt, int(rng.integers(1, 25)))
            kept = int(rng.integers(0, backend.length + 1))
            whole = (prompt + first)[:kept]
            more = rng.integers(0, VOCAB, rng.integers(1, 9)).tolist()
            backend.rewind_to(kept)
            assert backend.length == kept and backend.tokens == whole
            got = [t for c in generate(backend, more, max_tokens=20) for t in c.tokens]
            assert got == oracle(model[0], whole + more, 20)


@of_kinds("postnorm", "drafts")
def test_steps_rounds_and_forced_tokens_mix(model: tuple) -> None:
    """What the caller names counts, not what the decoder would have gone on with."""
    for plan in ("growing", "fixed", "fixed+compiled"):
        backend, rng = opened(model, plan), np.random.default_rng(1)
        backend.rewind_to(0)
        whole = list(PROMPTS[2])
        token = backend.prefill(whole)
        for turn in range(24):
            if turn % 5 == 4:
                token = int(rng.integers(0, VOCAB))
            result = [backend.step(token)] if turn % 3 == 0 else backend.round(token).emitted
            expected = oracle(model[0], [*whole, token], len(result))
            assert result == expected
            whole += [token, *result[:-1]]
            token = result[-1]
            assert backend.tokens == whole


def test_the_context_is_filled_to_the_last_position(model: tuple) -> None:
    base, heads = model
    for plan in ("growing", "fixed"):
        backend = open_decoder(base, heads, DecodingConfig(plan=plan), capacity=50)
        got = text(backend, PROMPTS[2], 100)
        assert got == oracle(base, PROMPTS[2], 36) and len(got) == 36 and backend.length == 50
        with pytest.raises(ValueError, match="got 50 \\+ 1 positions, expected at most 50"):
            backend.step(1)


def test_a_context_too_short_to_measure_plans_decodes(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "candidates", lambda drafts: (Plan(), Plan("fixed")))  # as on a GPU
    for length in (24, 60):
        monkeypatch.setattr(Base, "context_length", length)
        decoder = open_decoder(*model)
        assert str(decoder.plan) == "growing" and decoder.plan_milliseconds == {}
        assert text(decoder, PROMPTS[2], 100) == oracle(model[0], PROMPTS[2], length - 14)


@of_kinds("prenorm", "postnorm")
def test_prefill_in_chunks(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and acceptance are the same: the heads' caches are whole across chunks."""
    seen = []
    for chunk in (512, 7):
        monkeypatch.setattr(host, "PREFILL_CHUNK", chunk)
        for plan in ("growing", "fixed"):
            backend = opened(model, plan)
            backend.rewind_to(0)
            chunks = list(generate(backend, PROMPTS[3], max_tokens=40))
            seen.append([(c.tokens, c.round.accepted if c.round else None) for c in chunks])
    assert all(chunks == seen[0] for chunks in seen)


def test_exact_verification_has_the_bits_of_single_tokens(model: tuple) -> None:
    base = model[0]
    rows, single = base.make_cache(), base.make_cache()
    for tokens in (PROMPTS[3][:20], [3, 1, 4, 1, 5], [9, 2, 6]):
        logits = row_by_row(base)(mx.array([tokens]), rows)[2]
        expected = [whole_pass(base)(mx.array([[t]]), single)[2] for t in tokens]
        assert mx.array_equal(logits, mx.concatenate(expected)).item()
        for a, b in zip(rows, single, strict=True):
            assert mx.array_equal(a.keys_and_values()[0], b.keys_and_values()[0]).item()


def test_exact_is_plain_where_kernels_for_several_rows_round_differently(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [oracle(model[0], prompt) for prompt in PROMPTS]
    logits = Base.logits

    def coarse(self: Base, hidden: mx.array, weight: mx.array | None = None) -> mx.array:
        exact = logits(self, hidden, weight)
        return exact if hidden.shape[1] == 1 else mx.round(exact / 40) * 40

    monkeypatch.setattr(Base, "logits", coarse)
    assert [text(opened(model, "growing", exact=True), prompt) for prompt in PROMPTS] == expected
    assert [text(opened(model, "growing"), prompt) for prompt in PROMPTS] != expected


def test_exact_is_refused_where_blocks_do_not_reproduce_a_single_pass(model: tuple) -> None:
    base = load_base(str(model[0].path))
    trunk = base.trunk
    base.trunk = lambda tokens, cache=None: trunk(tokens, cache) * 1.5  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="--exact: llama blocks do not reproduce"):
        open_decoder(base, model[1], DecodingConfig(exact=True))


def test_quantised_kv_cache(tmp_path: Path) -> None:
    """Speculative text equals plain text over the same quantised cache; the first positions stay as they are."""
    config = LLAMA | {"head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    folder = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", config), 3, noise=0.01)
    base, heads, _ = load_for_decoding(folder)
    options = DecodingConfig(kv_bits=8, kv_group_size=32, quantized_kv_start=20)
    plain, ours = open_decoder(base, None, options), open_decoder(base, heads, options)
    for prompt in PROMPTS:
        assert text(ours, prompt) == text(plain, prompt, plain=True)
    assert type(ours._host.caches[0]).__name__ == "QuantizedKVCache"
    with pytest.raises(ValueError, match="--kv-group-size: got 64, expected a divisor of the head size 32"):
        open_decoder(base, heads, DecodingConfig(kv_bits=8))
    with pytest.raises(ValueError, match="a quantised KV cache needs the plan growing"):
        open_decoder(base, heads, DecodingConfig(kv_bits=8, kv_group_size=32, plan="fixed"))


def test_rotating_caches_are_refused(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models.cache import RotatingKVCache

    monkeypatch.setattr(
        Base, "make_cache", lambda self, blocks=None, windows=False: [RotatingKVCache(64) for _ in range(blocks or 2)]
    )
    with pytest.raises(ValueError, match="RotatingKVCache cannot be rewound"):
        opened(model, "growing")


@pytest.mark.parametrize("window", [None, 5])
def test_masks_of_fixed_buffers_are_mlx_lms(window: int | None) -> None:
    from mlx_lm.models.base import create_causal_mask

    rows = mx.zeros((1, 1, 32, 4)), mx.zeros((1, 1, 32, 4))
    for offset, count in ((0, 3), (7, 1), (20, 12)):
        mask = caches.FixedCache(rows, caches.Span(mx.array(offset))).make_mask(count, window_size=window)
        visible = mask if mask.dtype == mx.bool_ else mask == 0
        expected = create_causal_mask(count, offset, window)
        assert mx.array_equal(visible[:, : offset + count], expected).item()
        assert not visible[:, offset + count :].any().item()


def test_plans_have_names_and_wrong_ones_are_said() -> None:
    assert [Plan.parse(str(p)) for p in PLANS] == list(PLANS)
    with pytest.raises(ValueError, match="--plan: got 'quick', expected auto or one of growing, fixed"):
        Plan.parse("quick")
