"""Streaming with decoders of other kinds, and what tokenizers' DecodeStream alone does not do."""

import random

import pytest
import tokenizers
from tokenizers import decoders, models

from mtpd_mlx.text.streaming import LONGEST_WAIT, StreamDecoder
from mtpd_mlx.text.tokenizer import Tokenizer


def tokenizer_of(model: models.Model, decoder: decoders.Decoder, special: str) -> Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoder
    backend.add_special_tokens([special])
    return Tokenizer(backend, None, frozenset())


def metaspace() -> Tokenizer:
    vocab = {"<unk>": 0, "▁a": 1, "▁": 2, "b": 3, "▁▁": 4, "é": 5}
    return tokenizer_of(models.WordLevel(vocab, unk_token="<unk>"), decoders.Metaspace(), "<unk>")


def word_piece() -> Tokenizer:
    vocab = {"[UNK]": 0, "do": 1, "##n": 2, "'": 3, "t": 4, ".": 5, "##b": 6}
    return tokenizer_of(models.WordPiece(vocab), decoders.WordPiece(), "[UNK]")


def word_ends() -> Tokenizer:
    vocab = {"<x>": 0, "a</w>": 1, "b": 2, "c</w>": 3}
    return tokenizer_of(models.BPE(vocab, [], end_of_word_suffix="</w>"), decoders.BPEDecoder(), "<x>")


def bytes_and_words() -> Tokenizer:
    """Llama-2's way, without its stripping of the first space."""
    vocab = {"<s>": 0} | {f"<0x{b:02X}>": b + 1 for b in range(256)} | {"▁x": 257}
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return tokenizer_of(models.BPE(vocab, [], byte_fallback=True), decoders.Sequence(parts), "<s>")


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [decoder.add(i) for i in ids] + [decoder.finish()]


@pytest.mark.parametrize("make", [metaspace, word_piece, word_ends])
def test_same_text_as_decoding_at_once(make) -> None:
    tokenizer = make()
    for seed in range(200):
        rng = random.Random(seed)
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(1, 2 * LONGEST_WAIT))]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_half_a_character_at_the_end_is_given_out() -> None:
    tokenizer = bytes_and_words()
    x, half = tokenizer.token_id("▁x"), tokenizer.token_id("<0xC3>")
    assert stream(tokenizer, [x, half]) == [" x", "", "\ufffd"]
    assert stream(tokenizer, [half]) == ["", "\ufffd"]


def test_a_token_that_changes_text_which_is_out_ends_nothing() -> None:
    """Decoded at once the line break becomes a replacement character too."""
    tokenizer = bytes_and_words()
    x, line, half = (tokenizer.token_id(t) for t in ("▁x", "<0x0A>", "<0xC3>"))
    ids = [x, line, half, x, x]
    assert tokenizer.decode(ids) == " x\ufffd\ufffd x x"
    with pytest.raises(Exception, match="prefix"):
        step = tokenizer.stream()
        [step(i) for i in ids]
    assert stream(tokenizer, ids) == [" x", "\n", "", "\ufffd x", " x", ""]


def test_invalid_bytes_wait_for_a_bounded_time() -> None:
    tokenizer = bytes_and_words()
    half, x = tokenizer.token_id("<0xC3>"), tokenizer.token_id("▁x")
    pieces = stream(tokenizer, [x] + [half] * (2 * LONGEST_WAIT) + [x])
    out = [i for i, piece in enumerate(pieces) if piece]
    assert out == [0, LONGEST_WAIT, 2 * LONGEST_WAIT, 2 * LONGEST_WAIT + 1]
    assert "".join(pieces) == " x" + "\ufffd" * (2 * LONGEST_WAIT) + " x"
