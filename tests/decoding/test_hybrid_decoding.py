"""Every way of decoding over a hybrid base gives the text of plain greedy decoding (fp32), wherever it was rewound to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.decode import oracle, text
from helpers.hybrids import HYBRIDS, write_hybrid
from tiny import VOCAB, write_checkpoint

from mtpd_mlx.decoding import text_state
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.mlx_lm_base import wrapped_base
from mtpd_mlx.decoding.open import open_choosing, open_decoder
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.decoding.prompt_cache import load_cache, save_cache
from mtpd_mlx.decoding.rewind import APART
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.generate import generate_greedy
from mtpd_mlx.model.load_save import flatten, load_for_decoding
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.model.slots import write_texts
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling

PROMPTS = [[7], [5, 6], list(range(5, 20)), list(range(90, 40, -1)), [9] * 12]
K = 4
WAYS = ("rounds", "chosen", "plain", "exact", "fixed", "fixed+compiled")


@pytest.fixture(scope="module", params=sorted(HYBRIDS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("hybrid")
    return load_for_decoding(write_checkpoint(folder / "heads", write_hybrid(folder / "base", request.param), K))[:2]


def opened(model: tuple, way: str, **options: Any) -> Decoder | PlainDecoder:
    base, heads = model
    if way == "chosen":
        return open_choosing(base, heads, DecodingConfig(), **options)
    if base.dims.paired and way.startswith("fixed"):
        with pytest.raises(ValueError, match="a base of nemotron_h needs the plan growing"):
            open_decoder(base, heads, DecodingConfig(plan=way))
        way = "rounds"
    how = DecodingConfig(exact=way == "exact", plan=way if way.startswith("fixed") else "auto")
    return open_decoder(base, None if way == "plain" else heads, how, **options)


@pytest.mark.parametrize("way", WAYS)
def test_text_is_that_of_plain_decoding(model: tuple, way: str) -> None:
    backend, said, accepted = opened(model, way), set[int](), list[int]()
    length = 12 if way == "exact" else 40
    for prompt in PROMPTS:
        expected = oracle(model[0], prompt, length)
        backend.rewind_to(0)
        chunks = list(generate(backend, prompt, max_tokens=length))
        assert [t for c in chunks for t in c.tokens] == expected
        said |= set(expected)
        accepted += [c.round.accepted for c in chunks if c.round and c.round.proposed]
    assert len(said) > 10
    if way in ("rounds", "fixed"):
        assert len(set(accepted)) > 1


@pytest.mark.parametrize("way", WAYS)
def test_rewinds_go_on_as_if_nothing_had_been(model: tuple, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To every kind of length: inside the last round, behind it, inside and before the prompt."""
    monkeypatch.setattr(text_state, "PREFILL_CHUNK", 40)
    backend, rng = opened(model, way), np.random.default_rng(0)
    whole: list[int] = []
    for turn in range(8):
        prompt = rng.integers(0, VOCAB, rng.integers(1, 130 if turn % 2 else 20)).tolist()
        answer = [t for c in generate(backend, prompt, max_tokens=int(rng.integers(1, 25))) for t in c.tokens]
        assert answer == oracle(model[0], whole + prompt, len(answer))
        whole = (whole + prompt + answer)[: backend.length]
        kept = backend.length - int(rng.integers(0, 7)) if turn % 3 else int(rng.integers(0, backend.length + 1))
        backend.rewind_to(max(kept, 0))
        whole = whole[: max(kept, 0)]
        assert backend.tokens == whole


class Counted:
    """How many positions the base has read."""

    def __init__(self, base: Base, monkeypatch: pytest.MonkeyPatch):
        self.positions, trunk = 0, base.trunk

        def counted(tokens: Any, cache: Any = None) -> Any:
            self.positions += tokens.size
            return trunk(tokens, cache)

        monkeypatch.setattr(base, "trunk", counted)


@pytest.mark.parametrize("way", ("rounds", "fixed"))
def test_a_chat_reads_its_text_once(model: tuple, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text ends inside a round, and the next turn goes on from there: a few positions at most are read again."""
    backend = opened(model, way)
    list(generate(backend, list(range(5, 90)) + list(range(90, 5, -1)), max_tokens=150))
    counted = Counted(model[0], monkeypatch)
    list(generate(backend, [3, 1, 4], max_tokens=1))
    assert counted.positions <= 3 + 2 * K + (2 * APART if way == "fixed" else 0)


@pytest.mark.parametrize("way", ("rounds", "chosen", "plain", "fixed"))
def test_saved_and_loaded(model: tuple, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = opened(model, way), opened(model, way)
    prompt = list(range(5, 90)) + list(range(90, 5, -1))
    answer = text(first, prompt, 20)
    save_cache(first, tmp_path / "a.safetensors")
    counted = Counted(model[0], monkeypatch)
    loaded = load_cache(second, tmp_path / "a.safetensors")
    assert loaded == second.tokens == first.tokens == (prompt + answer)[: first.length]
    got = [t for c in generate(second, [3, 1, 4], max_tokens=1) for t in c.tokens]
    assert counted.positions <= 4 + 2 * K
    got += [t for c in generate(second, got, max_tokens=20) for t in c.tokens]
    assert got == oracle(model[0], [*loaded, 3, 1, 4], 21)


def test_interrupted_rounds_go_on(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a pass is broken off between two layers, the text is as it was, or shorter, and goes on as ever."""
    base = model[0]
    backend, calls, trunk = opened(model, "rounds"), [0], base.trunk

    def broken(tokens: Any, cache: Any = None) -> Any:
        calls[0] += 1
        if calls[0] % 5 == 0:
            hidden = base.embed(tokens)
            base.run_block(0, hidden, cache[0])  # one layer is ahead of the others
            raise KeyboardInterrupt
        return trunk(tokens, cache)

    prompt = list(range(5, 20))
    whole = prompt + oracle(base, prompt, 80)
    backend.prefill(prompt)
    monkeypatch.setattr(base, "trunk", broken)
    stopped = 0
    for _ in range(12):
        try:
            backend.round(whole[backend.length])
        except KeyboardInterrupt:
            stopped += 1
    monkeypatch.setattr(base, "trunk", trunk)
    assert stopped > 1 and len(prompt) < backend.length < len(whole) and backend.tokens == whole[: backend.length]
    assert backend.round(whole[backend.length]).emitted[0] == whole[backend.length]


def test_batches_with_padding_on_the_left_are_texts_alone(model: tuple) -> None:
    base = model[0]
    expected = [oracle(base, prompt, 24) for prompt in PROMPTS]
    assert [g.tokens for g in generate_greedy(base, PROMPTS, 24, frozenset())] == expected
    written = dict(_flat(write_texts(base, PROMPTS, 24, frozenset(), slots=2)))
    assert [written[i] for i in range(len(PROMPTS))] == expected


def _flat(parts: Any) -> Iterator[tuple[int, list[int]]]:
    for part in parts:
        yield from part


def test_samples_are_repeated_by_their_seed(model: tuple) -> None:
    sampled = [text(opened(model, "rounds", sampling=Sampling(temp=0.8, seed=3)), PROMPTS[2], 20) for _ in range(2)]
    assert sampled[0] == sampled[1]


def test_decays_keep_their_type(model: tuple) -> None:
    """A_log is not cast with the weights, and half precision decodes."""
    base = load_base(str(model[0].path), dtype=mx.bfloat16)
    kinds = {name.rpartition(".")[2]: w.dtype for name, w in flatten(base.model).items()}
    assert kinds["weight"] == mx.bfloat16 and kinds.get("A_log", mx.float32) == mx.float32
    if base.dims.experts is None:  # MLX has no mixtures in half precision on CPUs
        assert len(text(open_decoder(base, None), PROMPTS[2], 8)) == 8


def test_stock_mlx_lm_is_refused(model: tuple) -> None:
    """Its caches of recurrent layers cannot go back, and it would not say so."""
    with pytest.raises(ValueError, match="model"):
        wrapped_base(model[0].model)
