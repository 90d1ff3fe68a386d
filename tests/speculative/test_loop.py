"""The decoder loop against the scripted fakes: same tokens as plain decoding, and a cache that says the truth."""

import random
from itertools import cycle

import pytest
from helpers.fakes import VOCAB, FusedModel, ScriptedModel, hashed, plain_text, scripted

from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.rounds import StepBackend

PROMPT = [11, 22, 33, 44, 55, 66]


def decode(backend, prompt=PROMPT, **options):
    """(tokens, chunks); checks after every chunk that the cache holds prompt and emitted tokens but the last."""
    start = list(backend.model.tokens)
    tokens, chunks = [], []
    for chunk in generate(backend, prompt, **options):
        tokens += chunk.tokens
        chunks.append(chunk)
        assert backend.model.tokens == [*start, *prompt, *tokens[:-1]]
    assert [c.finish_reason is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    return tokens, chunks


@pytest.mark.parametrize("right", [0, 1, 2, 3, 4, None])
@pytest.mark.parametrize("kind", [StepBackend, FusedModel])
def test_same_tokens_as_plain_decoding(right, kind):
    backend = kind(ScriptedModel(script=cycle([right])))
    tokens, chunks = decode(backend, max_tokens=50)
    assert tokens == plain_text(hashed, PROMPT, 50)
    accepted = 4 if right is None else right
    assert all(c.round.accepted == accepted for c in chunks[1:])
    assert chunks[0].round is None and chunks[0].prompt_tokens == len(PROMPT)
    assert chunks[-1].finish_reason == "length"
    assert len(chunks) == 1 + -(-49 // (accepted + 1))  # rounds really bring that many tokens
    assert all(c.num_drafted == min(accepted, len(c.tokens)) for c in chunks[1:])


@pytest.mark.parametrize("place", range(1, 6))
def test_eos_inside_an_accepted_run(place):
    """The round after prefill brings tokens 1..5; EOS stands at each place of it, the main head's own included."""
    text = [5, 6, 7, 8, 9, 10, 11]
    text[place] = 1
    backend = StepBackend(ScriptedModel(scripted(text, len(PROMPT))))
    tokens, chunks = decode(backend, max_tokens=50, eos_token_ids={1, 2})
    assert tokens == text[: place + 1]
    assert chunks[-1].finish_reason == "stop" and len(chunks) == 2
    assert chunks[-1].round.accepted == 4  # though the text ended inside it
    assert chunks[-1].num_drafted == min(place, 4)


def test_eos_right_after_the_prompt():
    backend = StepBackend(ScriptedModel(scripted([1], len(PROMPT))))
    tokens, chunks = decode(backend, max_tokens=50, eos_token_ids=frozenset({1}))
    assert tokens == [1] and len(chunks) == 1 and chunks[0].finish_reason == "stop"


@pytest.mark.parametrize("place", range(6))
def test_stop_inside_an_accepted_run(place):
    text, seen = [5, 6, 7, 8, 9, 10, 11], []
    backend = StepBackend(ScriptedModel(scripted(text, len(PROMPT))))

    def stop(token):
        seen.append(token)
        return token == text[place]

    tokens, chunks = decode(backend, max_tokens=50, stop=stop)
    assert tokens == seen == text[: place + 1]  # each emitted token once, none beyond
    assert chunks[-1].finish_reason == "stop"


def test_stop_does_not_see_eos():
    seen = []
    backend = StepBackend(ScriptedModel(scripted([5, 6, 1, 7], len(PROMPT))))
    tokens, _ = decode(backend, max_tokens=50, eos_token_ids={1}, stop=lambda t: bool(seen.append(t)))
    assert tokens == [5, 6, 1] and seen == [5, 6]


@pytest.mark.parametrize("limit", range(1, 13))
def test_max_tokens_inside_a_run(limit):
    backend = StepBackend(ScriptedModel())
    tokens, chunks = decode(backend, max_tokens=limit)
    assert tokens == plain_text(hashed, PROMPT, limit)
    assert chunks[-1].finish_reason == "length"


def test_eos_as_the_last_allowed_token_is_a_stop():
    backend = StepBackend(ScriptedModel(scripted([5, 6, 1], len(PROMPT))))
    assert decode(backend, max_tokens=3, eos_token_ids={1})[1][-1].finish_reason == "stop"


@pytest.mark.parametrize("length", range(1, 7))
def test_prompts_shorter_than_a_round(length):
    tokens, _ = decode(StepBackend(ScriptedModel()), PROMPT[:length], max_tokens=20)
    assert tokens == plain_text(hashed, PROMPT[:length], 20)


@pytest.mark.parametrize("capacity", range(7, 20))
@pytest.mark.parametrize("right", [0, 2, None])
def test_full_context_is_filled_by_plain_steps(capacity, right):
    backend = StepBackend(ScriptedModel(script=cycle([right]), capacity=capacity))
    tokens, chunks = decode(backend, max_tokens=100)
    assert tokens == plain_text(hashed, PROMPT, capacity - len(PROMPT) + 1)
    assert chunks[-1].finish_reason == "context" and backend.length == capacity
    plain = decode(StepBackend(ScriptedModel(capacity=capacity)), max_tokens=100, plain=True)
    assert plain[0] == tokens and plain[1][-1].finish_reason == "context"
    if right == 2 and capacity == 19:  # 6 cached; rounds of 3 end at 9, 12, 15 (15 + 1 + 4 > 19), then 4 steps
        assert [c.round is None for c in chunks[1:]] == [False] * 3 + [True] * 4


def test_plain_never_drafts():
    backend = StepBackend(ScriptedModel())
    tokens, chunks = decode(backend, max_tokens=9, plain=True)
    assert tokens == plain_text(hashed, PROMPT, 9) and all(c.round is None for c in chunks)
    assert not [call for call in backend.model.calls if call[0] in ("draft", "rewind")]
    no_heads = StepBackend(ScriptedModel(num_drafts=0))
    assert decode(no_heads, max_tokens=9)[0] == tokens


@pytest.mark.parametrize("bad", [[], list(range(16)), list(range(17))])
def test_prompts_that_do_not_fit(bad):
    backend = StepBackend(ScriptedModel(capacity=16))
    with pytest.raises(ValueError, match="prompt: got") as error:
        generate(backend, bad, max_tokens=5)  # at the call, not at the first chunk
    assert "\n" not in str(error.value) and backend.model.calls == []
    assert len(decode(backend, list(range(15)), max_tokens=5)[0]) == 2
    with pytest.raises(ValueError, match="max_tokens: got 0"):
        generate(StepBackend(ScriptedModel()), PROMPT, max_tokens=0)


def test_a_conversation_goes_on_from_the_cache():
    for cut in (3, 4, 8):
        backend = StepBackend(ScriptedModel(script=cycle([4, 1, 0])))
        first, _ = decode(backend, max_tokens=cut)
        follow_up = [first[-1], 77, 78]
        second, _ = decode(backend, follow_up, max_tokens=20)
        assert second == plain_text(hashed, [*PROMPT, *first, 77, 78], 20)


def test_a_consumer_that_leaves_early_finds_the_truth():
    backend = StepBackend(ScriptedModel())
    chunks = generate(backend, PROMPT, max_tokens=50)
    tokens = [*next(chunks).tokens, *next(chunks).tokens]
    chunks.close()
    assert backend.model.tokens == [*PROMPT, *tokens[:-1]]


def test_fuzz_speculative_equals_plain():
    for seed in range(400):
        rng = random.Random(seed)
        drafts, capacity = rng.randint(1, 6), rng.randint(6, 60)
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, min(12, capacity - 1)))]
        script = cycle([rng.choice([0, 0, 1, 2, 3, drafts, None]) for _ in range(7)])
        options = {
            "max_tokens": rng.randint(1, 60),
            "eos_token_ids": frozenset(rng.sample(range(VOCAB), rng.randint(0, 4))),
        }
        stops = set(rng.sample(range(VOCAB), rng.randint(0, 3)))
        model = ScriptedModel(script=script, num_drafts=drafts, capacity=capacity)
        backend = rng.choice([StepBackend, FusedModel])(model)
        got, chunks = decode(backend, prompt, stop=stops.__contains__, **options)
        plain = StepBackend(ScriptedModel(num_drafts=drafts, capacity=capacity))
        want, plain_chunks = decode(plain, prompt, plain=True, stop=stops.__contains__, **options)
        assert got == want, seed
        assert chunks[-1].finish_reason == plain_chunks[-1].finish_reason, seed
        assert model.tokens == plain.model.tokens, seed
