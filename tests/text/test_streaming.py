"""Streaming text: whole characters only, the same text as decoding at once, bounded work per token."""

import random

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mtpd_mlx.text.streaming import LONGEST_WAIT, StopMatcher, StreamDecoder
from mtpd_mlx.text.tokenizer import Tokenizer

TEXTS = [
    "plain words, twice: plain words",
    "naïve café – “quoted”",
    "中文字符和日本語テキスト",
    "🙂🙃 🇨🇭 👩‍👩‍👧",
    "a\n\n  b\t c ",
]


def byte_level() -> Tokenizer:
    """256 byte tokens and a few merges, GPT-2's way; id 256 is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("p", "l"), ("Ġ", "w"), ("o", "r")]
    vocab = {c: i for i, c in enumerate([*alphabet, "<|end|>", *("".join(m) for m in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return Tokenizer(backend, None, frozenset())


def byte_fallback() -> Tokenizer:
    """Llama-2's way: words begin with ▁, unknown characters fall back to <0xNN>, the first space is stripped."""
    vocab = {"<unk>": 0, "<s>": 1} | {f"<0x{b:02X}>": b + 2 for b in range(256)}
    for piece in ["▁", "plain", "▁plain", "▁words", "▁the", "s", ","]:
        vocab[piece] = len(vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(content=" ", left=1)
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend, None, frozenset())


def stream(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [decoder.add(i) for i in ids] + [decoder.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_no_replacement_character_is_ever_shown(text):
    tokenizer = byte_level()
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)
    assert len(ids) > len(text) or text.isascii()  # characters really are spread over tokens


def test_text_appears_as_soon_as_it_is_certain():
    tokenizer = byte_level()
    pieces = stream(tokenizer, tokenizer.encode("aé!"))
    assert pieces == ["a", "", "é", "!", ""]


def test_fuzz_same_text_as_decoding_at_once():
    tokenizer = byte_level()
    for seed in range(60):
        rng = random.Random(seed)
        text = "".join(rng.choice("ab 🙂é中\n") for _ in range(rng.randint(1, 60)))
        ids = tokenizer.encode(text)
        for _ in range(rng.randint(0, 4)):  # special tokens anywhere, inside a character too
            ids.insert(rng.randint(0, len(ids)), tokenizer.token_id("<|end|>"))
        if seed % 2:  # broken text too: tokens dropped at random
            ids = [i for i in ids if rng.random() > 0.1]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_fuzz_byte_fallback_and_leading_spaces():
    tokenizer = byte_fallback()
    pieces = ["▁", "plain", "▁plain", "▁words", "▁the", "s", ",", "<s>"]
    for seed in range(60):
        rng, ids = random.Random(seed), []
        for _ in range(rng.randint(1, 40)):
            if rng.random() < 0.4:
                ids += [tokenizer.token_id(f"<0x{b:02X}>") for b in rng.choice("é中🙂\n").encode()]
            else:
                ids.append(tokenizer.token_id(rng.choice(pieces)))
        shown = stream(tokenizer, ids)
        assert "".join(shown) == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(shown)


def test_work_per_token_does_not_grow_with_the_text():
    tokenizer, longest = byte_level(), 0

    class Counting:
        def decode(self, ids):
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer.decode(ids)

        def stream(self):
            step, waiting = tokenizer.stream(), 0

            def count(token):  # the library decodes all tokens that wait once more
                nonlocal longest, waiting
                text = step(token)
                waiting = 0 if text is not None else waiting + 1
                longest = max(longest, waiting)
                return text

            return count

    broken = tokenizer.encode("é")[:1] * 500  # never a whole character
    for ids in (tokenizer.encode("plain words 中文 " * 200), broken, [tokenizer.token_id("<|end|>")] * 500):
        assert "".join(stream(Counting(), ids)) == tokenizer.decode(ids)
    assert longest <= 2 * LONGEST_WAIT + 1


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hello ", "User", ": x"], ["User:"], "Hello "),  # spans pieces
        (["ab", "ab", "c", "d"], ["abc"], "ab"),  # a beginning that fails, then the real one
        (["one two"], ["two", "one"], ""),  # the first in the text, not in the list
        (["a", "a", "a", "b"], ["aab"], "a"),
        (["no stop ", "Use"], ["User:"], "no stop Use"),  # a held beginning comes out at the end
        (["x", "y"], [], "xy"),
        (["end"], ["end"], ""),
    ],
)
def test_stop_matcher(pieces, stops, expected):
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.add(piece)
        assert expected.startswith(shown)  # nothing has to be taken back
    shown += matcher.finish()
    assert shown == expected
    assert matcher.stopped == any(s in "".join(pieces) for s in stops)
    assert matcher.add("more") == ("" if matcher.stopped else "more")


def test_fuzz_stop_matcher():
    for seed in range(300):
        rng = random.Random(seed)
        text = "".join(rng.choice("ab") for _ in range(20))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 5))) for _ in range(rng.randint(1, 2))]
        matcher, shown = StopMatcher(stops), ""
        for letter in text:
            shown += matcher.add(letter)
        ends = [text.find(s) + len(s) for s in stops if s in text]
        first = min(ends, default=None)  # letter by letter the stop string that ends first wins
        begins = [text.find(s) for s in stops if s in text and text.find(s) + len(s) == first]
        assert shown + matcher.finish() == text[: min(begins, default=len(text))]


def test_empty_stop_string():
    with pytest.raises(ValueError, match="stop string"):
        StopMatcher([""])
