"""Text given out token by token, joined, is the text decoded at once, whatever the tokens; stop strings end it exactly."""

import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from mtpd_mlx.text.streaming import LONGEST_WAIT, StopMatcher, StreamDecoder
from mtpd_mlx.text.tokenizer import Tokenizer

TEXTS = st.text(st.sampled_from("ab é中🙂\n👩‍🇨"), max_size=12)


def byte_level() -> Tokenizer:
    """GPT-2's way: a token for every byte, some merges, two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("Ġ", "a"), ("Ã", "©"), ("ð", "Ł")]
    vocab = {c: i for i, c in enumerate([*alphabet, "<|end|>", "<|user|>", *("".join(m) for m in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|user|>"])
    return Tokenizer(backend, None, frozenset())


def byte_fallback() -> Tokenizer:
    """Llama 2's way: words begin with ▁, other characters fall back to bytes, the first space is stripped."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": b + 3 for b in range(256)}
    for piece in ["▁", "a", "▁ab", "b", "é", "▁中"]:
        vocab[piece] = len(vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(content=" ", left=1)
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, None, frozenset())


LEVEL, FALLBACK = byte_level(), byte_fallback()
PIECES = [FALLBACK.token_id(piece) for piece in ["▁", "a", "▁ab", "b", "é", "▁中"]]


def flat(parts: st.SearchStrategy[list[int]]) -> st.SearchStrategy[list[int]]:
    return st.lists(parts, max_size=8).map(lambda lists: [t for ids in lists for t in ids])


def with_special(ids: st.SearchStrategy[list[int]], tokenizer: Tokenizer, names: list[str]) -> st.SearchStrategy[list[int]]:
    """Special tokens anywhere, inside a character too."""

    def insert(whole: list[int], specials: list[tuple[int, int]]) -> list[int]:
        whole = list(whole)
        for place, token in specials:
            whole.insert(place % (len(whole) + 1), token)
        return whole

    special = st.tuples(st.integers(0, 100), st.sampled_from([tokenizer.token_id(name) for name in names]))
    return st.builds(insert, ids, st.lists(special, max_size=3))


def one(token: int) -> list[int]:
    return [token]


def byte_tokens(text: str) -> list[int]:
    return [FALLBACK.token_id(f"<0x{b:02X}>") for b in text.encode()]  # type: ignore[misc]


# The byte-level decoder takes any bytes at all: text, and anything between, half characters too. The other decodes a run of
# byte tokens as one: a bad byte turns what was text before it into U+FFFD, so a stream can promise whole characters alone.
ANY_TOKENS = flat(st.one_of(TEXTS.map(LEVEL.encode), st.integers(0, LEVEL.vocab_size - 1).map(one)))
ANY_LEVEL = with_special(ANY_TOKENS, LEVEL, ["<|end|>", "<|user|>"])
WHOLE_CHARACTERS = flat(st.one_of(TEXTS.map(byte_tokens), st.sampled_from(PIECES).map(one)))
WHOLE_FALLBACK = with_special(WHOLE_CHARACTERS, FALLBACK, ["<s>", "</s>"])
TOKENS = st.one_of(ANY_LEVEL.map(lambda ids: (LEVEL, ids)), WHOLE_FALLBACK.map(lambda ids: (FALLBACK, ids)))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [decoder.add(i) for i in ids] + [decoder.finish()]


@given(TOKENS)
def test_pieces_are_the_text_decoded_at_once(given_tokens: tuple[Tokenizer, list[int]]) -> None:
    tokenizer, ids = given_tokens
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(TEXTS)
@example("👩‍👩‍👧 é")
def test_of_whole_text_no_half_character_is_shown(text: str) -> None:
    for tokenizer, ids in ((LEVEL, LEVEL.encode(text)), (FALLBACK, byte_tokens(text))):
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert "\ufffd" not in "".join(pieces)


@given(flat(st.one_of(st.integers(128, 255).map(lambda b: [b + 3]), st.sampled_from(PIECES[:4]).map(one))))
def test_broken_bytes_cost_no_other_text(ids: list[int]) -> None:
    """Whatever is shown for bytes that are no character, letters beside them are shown once."""
    shown, whole = "".join(streamed(FALLBACK, ids)), FALLBACK.decode(ids)
    assert [c for c in shown if c in "ab"] == [c for c in whole if c in "ab"]


@given(st.lists(st.integers(0, 255), min_size=LONGEST_WAIT, max_size=3 * LONGEST_WAIT))
def test_text_waits_for_so_many_tokens_at_most(ids: list[int]) -> None:
    waiting = 0
    for piece in streamed(LEVEL, ids):
        waiting = 0 if piece else waiting + 1
        assert waiting < LONGEST_WAIT


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({p % (len(text) + 1) for p in places} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


SHORT = st.text("ab", max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
PLACES = st.lists(st.integers(0, 20), max_size=10)


@given(SHORT, STOPS, PLACES)
def test_stop_strings(text: str, stops: list[str], places: list[int]) -> None:
    """What is shown ends where a stop string begins, as soon as one is complete, and nothing is ever taken back."""
    matcher, shown, fed = StopMatcher(stops), "", ""
    for piece in cut(text, places):
        before = matcher.stopped
        shown += matcher.add(piece)
        if not before:
            fed += piece
        assert fed.startswith(shown)
        assert matcher.stopped == any(s in fed for s in stops)
        longest = max(map(len, stops), default=1)
        assert matcher.stopped or len(fed) - len(shown) < longest  # no more is held back than a stop string needs
    shown += matcher.finish()
    found = [fed.find(s) for s in stops if s in fed]
    assert shown == (fed[: min(found)] if found else text)


@given(TOKENS, st.lists(st.sampled_from(["a", "b ", "é", "中🙂", "\n\n", " a"]), max_size=2))
def test_stop_strings_split_over_tokens(given_tokens: tuple[Tokenizer, list[int]], stops: list[str]) -> None:
    """Decoder and matcher together: no stop string is shown, and all before it is."""
    tokenizer, ids = given_tokens
    decoder, matcher, shown = StreamDecoder(tokenizer), StopMatcher(stops), ""
    for token in ids:
        shown += matcher.add(decoder.add(token))
        if matcher.stopped:
            break
    if not matcher.stopped:
        shown += matcher.add(decoder.finish()) + matcher.finish()
    whole = tokenizer.decode(ids)
    assert matcher.stopped == any(s in whole for s in stops)
    assert whole.startswith(shown) and not any(s in shown for s in stops)
    if matcher.stopped:
        assert any(whole[len(shown) :].startswith(s) for s in stops)
    else:
        assert shown == whole
