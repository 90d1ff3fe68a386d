"""Caches of sliding layers that keep their window alone: what whole caches behind masks give (the oracle), wherever a text goes
back to, and no more memory however long it grows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.decode import oracle, text
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.open import open_choosing, open_decoder
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.decoding.prompt_cache import load_cache, save_cache
from mtpd_mlx.decoding.rewind import begin, reach_of, trim_to
from mtpd_mlx.families.dims import HELD, WINDOW_STEP
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.model.window_cache import WindowCache
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate

WINDOW, K = 9, 4
SLIDING = {
    "model_type": "gpt_oss",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
}
PLAIN = {k: v for k, v in SLIDING.items() if "experts" not in k} | {"model_type": "ministral", "intermediate_size": 96}
WAYS = ("rounds", "chosen", "plain", "exact", "fixed", "fixed+compiled")


@pytest.fixture(scope="module", params=[PLAIN, SLIDING], ids=["ministral", "gpt-oss"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("windows")
    base = write_base(folder / "base", request.param, 0, scale=6.0)
    return load_for_decoding(write_checkpoint(folder / "heads", base, K))[:2]


def opened(model: tuple, way: str, sliding_caches: str = "window") -> Decoder | PlainDecoder:
    base, heads = model
    plan = way if way.startswith("fixed") else "auto"
    how = DecodingConfig(exact=way == "exact", plan=plan, sliding_caches=sliding_caches)
    return open_choosing(base, heads, how) if way == "chosen" else open_decoder(base, None if way == "plain" else heads, how)


def more(backend: Decoder | PlainDecoder, prompt: list[int], length: int) -> list[int]:
    """The text behind what is cached and `prompt`."""
    return [token for chunk in generate(backend, prompt, max_tokens=length) for token in chunk.tokens]


def caches_of(backend: Decoder | PlainDecoder) -> list[WindowCache]:
    return [cache for cache in backend.settled().caches if isinstance(cache, WindowCache)]


def test_it_is_the_window_of_a_whole_cache() -> None:
    """Passes of 1 to 700 positions and ways back at random: rows and mask are those that a whole cache's mask leaves."""
    rng = np.random.default_rng(0)
    for window in (1, 9, 300):
        cache, whole = WindowCache(window), np.zeros((0, 3), np.float32)
        for _ in range(60):
            n = int(rng.choice([1, 1, 1, 5, 17, 700], p=[0.3, 0.2, 0.1, 0.1, 0.15, 0.15]))
            new = rng.standard_normal((n, 3)).astype(np.float32)
            mask = cache.make_mask(n, return_array=True)
            keys, values = cache.update_and_fetch(mx.array(new)[None, None], -mx.array(new)[None, None])
            whole = np.concatenate([whole, new])
            first = len(whole) - keys.shape[2]
            np.testing.assert_array_equal(np.array(keys)[0, 0], whole[first:])
            np.testing.assert_array_equal(np.array(values), -np.array(keys))
            for i, row in enumerate(np.array(mask)):
                position = len(whole) - n + i
                assert np.flatnonzero(row).tolist() == list(range(max(0, position - window + 1) - first, position - first + 1))
            assert cache.offset == len(whole) and cache.nbytes <= 2 * 12 * (window - 1 + HELD + 2 * WINDOW_STEP)
            back = int(rng.integers(0, min(len(whole), HELD) + 1)) if rng.random() < 0.5 else 0
            back = min(back, len(whole) - cache.reach)
            whole = whole[: len(whole) - cache.trim(back)]
        assert cache.reach > 0
        with pytest.raises(ValueError, match="cannot go back to 0 positions, expected"):
            cache.trim(cache.offset)


def test_a_transaction_takes_back_what_a_round_wrote(model: tuple) -> None:
    """Kept positions of a pass give what a pass over them alone gives; the oracle reads the text anew."""
    base, _ = model
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, VOCAB, 400).tolist()
    caches = base.make_cache(windows=True)
    base.trunk(mx.array([tokens]), caches)
    for keep in (0, 1, 5, 17):
        verified = begin(caches, 17)
        drafts = rng.integers(0, VOCAB, 17).tolist()
        base.trunk(mx.array([drafts]), caches)
        verified.commit(keep)
        tokens += drafts[:keep]
        fresh = base.make_cache()
        base.trunk(mx.array([tokens]), fresh)
        states = [base.trunk(mx.array([[7, 8]]), own) for own in (caches, fresh)]
        np.testing.assert_allclose(np.array(states[0]), np.array(states[1]), rtol=0, atol=2e-4)
        trim_to(caches, len(tokens))
    assert 0 < reach_of(caches) <= len(tokens) - (HELD - 17)


@pytest.mark.parametrize("way", WAYS)
def test_text_is_that_of_plain_decoding(model: tuple, way: str) -> None:
    backend = opened(model, way)
    prompt = np.random.default_rng(2).integers(0, VOCAB, 30).tolist()
    for length, start in ((12 if way == "exact" else 60, prompt), (8, [5, 6])):
        backend.rewind_to(0)
        assert text(backend, start, length) == oracle(model[0], start, length)
    assert caches_of(backend)


@pytest.mark.parametrize("way", WAYS)
def test_rewinds_go_on_as_if_nothing_had_been(model: tuple, way: str) -> None:
    """Inside the last round, behind it, and beyond what is held: then the text is read again."""
    backend, rng, whole = opened(model, way), np.random.default_rng(3), list[int]()
    for turn, kept in enumerate((-3, -1, 130, -60, 5, 0, -2)):
        prompt = rng.integers(0, VOCAB, 200 if turn % 2 else 20).tolist()
        answer = more(backend, prompt, 9)
        assert answer == oracle(model[0], whole + prompt, 9)
        whole = (whole + prompt + answer)[: backend.length]
        length = max(0, backend.length + kept if kept <= 0 else min(kept, backend.length))
        backend.rewind_to(length if kept else 0)
        whole = whole[: backend.length]
        assert backend.tokens == whole


@pytest.mark.parametrize(("way", "other"), [("rounds", "chosen"), ("fixed", "rounds"), ("chosen", "fixed")])
def test_saved_and_loaded(model: tuple, tmp_path: Path, way: str, other: str) -> None:
    """A file holds windows alone; a decoder of whole caches refuses it, and one of windows takes whole ones."""
    prompt, file = np.random.default_rng(4).integers(0, VOCAB, 900).tolist(), tmp_path / "a.safetensors"
    first, second = opened(model, way), opened(model, way)
    answer = text(first, prompt, 10)
    save_cache(first, file)
    with pytest.raises(ValueError, match="holds the window of sliding layers alone; needs --sliding-caches window"):
        load_cache(opened(model, other, "whole"), file)
    whole_decoder, whole_file = opened(model, other, "whole"), tmp_path / "whole.safetensors"
    text(whole_decoder, prompt, 10)
    save_cache(whole_decoder, whole_file)
    assert file.stat().st_size < 0.8 * whole_file.stat().st_size
    for saved in (file, whole_file):
        loaded = load_cache(second, saved)
        assert loaded == (prompt + answer)[: len(loaded)]
        assert more(second, [3, 1, 4], 12) == oracle(model[0], [*loaded, 3, 1, 4], 12)


def test_a_long_text_takes_no_more_of_them(model: tuple) -> None:
    backend = opened(model, "rounds")
    sizes = []
    for turn in range(3):
        more(backend, np.random.default_rng(turn).integers(0, VOCAB, 600).tolist(), 5)
        sizes.append([cache.nbytes for cache in caches_of(backend)])
    assert len(sizes[0]) == 2 and sizes[0] == sizes[1] == sizes[2]
    row: Any = model[0].dims.num_kv_heads * model[0].dims.head_dim * 2 * 4
    assert max(sizes[0]) <= row * (WINDOW - 1 + HELD + WINDOW_STEP)


def test_options() -> None:
    assert DecodingConfig().windows and not DecodingConfig().of_server().windows and not DecodingConfig(kv_bits=8).windows
    with pytest.raises(ValueError, match="--sliding-caches: got window with --kv-bits, expected whole"):
        DecodingConfig(sliding_caches="window", kv_bits=8)
    with pytest.raises(ValueError, match="--sliding-caches: got window, expected whole: a server takes texts up anywhere"):
        DecodingConfig(sliding_caches="window").of_server()
