"""Texts that have lost their rows: the one that a prompt begins like is found, a limit holds, and texts come out the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.batches import ScriptedBatch
from helpers.serving import serving, with_template
from test_scheduler import Client, run, scheduler
from tiny import write_base, write_checkpoint

from mtpd_mlx.commands.serve import MLXRuntime
from mtpd_mlx.decoding.open import open_choosing, open_constrained, open_decoder
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.serving.prefix_cache import PrefixCache
from mtpd_mlx.serving.scheduler import LOST, RESTING
from mtpd_mlx.speculative.loop import generate


@dataclass(frozen=True)
class Kept:
    tokens: list[int]
    kind: str = "x"

    @property
    def nbytes(self) -> int:
        return 10 * len(self.tokens)


def test_the_longest_beginning_is_found() -> None:
    cache = PrefixCache(1000)
    texts = [[1, 2, 3], [1, 2, 4, 5, 6], [7, 8]]
    for text in texts:
        cache.put(Kept(text))
    for prompt, expected in (
        ([1, 2, 4, 9], (texts[1], 3)),
        ([1, 2, 3], (texts[0], 2)),
        ([7, 8, 9], (texts[2], 2)),
        ([9], None),
        ([7], None),
    ):
        found = cache.best(prompt)
        assert (found and (found[0].tokens, found[1])) == expected


def test_texts_that_another_one_begins_with_go() -> None:
    cache = PrefixCache(1000)
    for text in ([1, 2], [1, 2, 3], [1, 2], [4]):
        cache.put(Kept(text))
    assert len(cache) == 2 and cache.nbytes == 40
    cache.put(Kept([1, 2, 3, 4], kind="y"))
    assert len(cache) == 3  # of another kind


def test_the_limit_holds_and_the_last_used_stay() -> None:
    cache = PrefixCache(100)
    for i in range(4):
        cache.put(Kept([i] * 3))
    assert len(cache) == 3 and cache.nbytes == 90 and cache.best([0, 0, 0, 0]) is None
    assert cache.best([1, 1, 1, 9]) is not None  # now the last used
    cache.put(Kept([9] * 3))
    assert cache.best([1, 1, 1, 9]) is not None and cache.best([2, 2, 2, 9]) is None
    cache.put(Kept([5] * 11))
    assert cache.best([5] * 12) is None and cache.nbytes <= 100
    nothing = PrefixCache(0)
    nothing.put(Kept([1]))
    assert len(nothing) == 0


class SavingBatch(ScriptedBatch):
    def save(self, row: int) -> Kept:
        return Kept(list(self.rows[row].tokens))

    def load(self, row: int, saved: Any, length: int) -> int:
        assert self.rows[row].length == 0
        self.rows[row].tokens[:] = saved.tokens[:length]
        return length


def test_conversations_in_turn_prefill_only_what_is_new() -> None:
    """More of them than texts that rest; all begin alike."""
    batch = SavingBatch(6)
    scheduled = scheduler(batch, prefix_bytes=10**6)
    said: dict[int, list[int]] = {}
    for turn in range(3):
        for i in range(RESTING + 4):
            prompt = [*said.get(i, [5] * 40 + [i] * 40), 60 + i, turn]
            client = Client(prompt)
            scheduled.admit(client.job)
            run(scheduled)
            assert client.text == client.expected
            said[i] = [*prompt, *(ord(c) - 33 for c in client.text)]
            cached = client.end.cached_tokens
            assert cached >= len(prompt) - 3 if turn else cached in (0, 40), (turn, i, cached)
        scheduled.check()
    assert scheduled.prefixes.hits >= 2 * (RESTING + 4) - RESTING and scheduled.prefixes.saved_tokens > 1000
    scheduled.forget()
    assert len(scheduled.prefixes) == 0 and not batch.rows


def test_what_a_row_would_lose_is_kept_first() -> None:
    batch = SavingBatch(1)
    scheduled = scheduler(batch, 1, prefix_bytes=10**6)
    long, other = [3] * (LOST + 40), [3] * 8 + [4] * 60
    for prompt in (long, other, [*long, 7]):
        client = Client(prompt)
        scheduled.admit(client.job)
        run(scheduled)
        assert client.text == client.expected
    assert client.end.cached_tokens == len(long)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("kept")
    base = with_template(write_base(folder / "base", scale=8.0))
    checkpoint = write_checkpoint(folder / "heads", base, 3)
    return checkpoint, load_for_decoding(checkpoint)[:2]


def written(backend: Any, prompt: Sequence[int], count: int = 20) -> list[int]:
    return [t for chunk in generate(backend, prompt, max_tokens=count) for t in chunk.tokens]


@pytest.mark.parametrize("how", ["choosing", "fixed", "growing", "plain"])
def test_texts_of_mlx_go_on_anywhere_in_what_was_saved(model: Any, how: str) -> None:
    def opened() -> Any:
        if how == "choosing":
            return open_choosing(*model[1], capacity=120)
        options = DecodingConfig(plan="fixed" if how == "fixed" else "growing")
        return open_decoder(*model[1], options, num_draft_tokens=0 if how == "plain" else None, capacity=120)

    first, prompt = opened(), [5, 6, 7, 8, 9, 10]
    assert first.save() is None
    text = prompt + written(first, prompt)
    saved = first.save()
    assert saved.tokens == text[:-1] and saved.nbytes > 0 and saved.kind == first.saved_kind
    assert written(first, text[-1:], 10) == written(opened(), text, 10)  # it was a copy
    for length in (1, 4, 13, len(saved.tokens)):
        other = opened()
        written(other, [1, 2, 3], 5)
        other.load(saved, length)
        assert other.length == length
        if how == "choosing":
            other.check("its client goes now")
        assert written(other, [*text[length:], 11]) == written(opened(), [*text, 11])


def test_bound_texts_take_what_free_ones_saved(model: Any) -> None:
    from helpers.bound import Paths
    from tiny import VOCAB

    free, prompt = open_choosing(*model[1], capacity=120), list(range(5, 30))
    written(free, prompt)
    saved = free.save()
    texts = []
    for loaded in (False, True):
        backend = open_constrained(*model[1], capacity=120)
        assert backend.saved_kind == saved.kind
        if loaded:
            backend.load(saved, 20)
        backend.bind(Paths(VOCAB, 3))
        texts.append(written(backend, prompt[20:] if loaded else prompt))
    assert texts[0] == texts[1]
    again = open_constrained(*model[1], capacity=120)
    again.load(backend.save(), 22)
    again.bind(Paths(VOCAB, 3))
    assert written(again, prompt[22:]) == texts[0]


def test_over_http(model: Any) -> None:
    def opened() -> MLXRuntime:
        return MLXRuntime(RunnableOptions(checkpoint=str(model[0])), DecodingConfig(), None)

    prompts = [f"{i} is the number of this rather long text, which is longer than what may be lost" for i in range(RESTING + 3)]
    with serving(opened, max_batch=2) as (client, _), serving(opened, max_batch=1, prefix_cache=0) as (plain, _):
        for turn in range(2):
            for prompt in prompts:
                body = {"prompt": prompt + " again" * turn, "max_tokens": 8}
                answers = [each.post("/v1/completions", json=body).json() for each in (client, plain)]
                assert answers[0]["choices"] == answers[1]["choices"]
                cached = [each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in answers]
                assert not turn or cached[0] >= len(prompt)
        metrics = client.get("/metrics").text
        assert (
            "mtpd_prefix_cache_hits" in metrics and float(metrics.split("\nmtpd_prefix_cache_tokens ")[1].split("\n")[0]) > 100
        )
