"""Texts decoded side by side: each is the one that it would be alone, whoever joins, leaves or is taken back beside it."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.decode import oracle
from helpers.heads_of import heads_of
from tiny import FAMILIES, LLAMA, VOCAB, write_base, write_checkpoint

from mtpd_mlx.decoding import rows_cache
from mtpd_mlx.decoding.batch import MLXBatch
from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.open import open_choosing, open_decoder
from mtpd_mlx.decoding.open_rows import open_batch
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.batch import Batch, Turn
from mtpd_mlx.speculative.finite import NO_TOKEN
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.round_costs import PLAIN, heads
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.verify import judge

K, CAPACITY, GREEDY = 4, 120, Sampling()


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return heads_of(getattr(request, "param", "postnorm"), tmp_path_factory.mktemp("model"), K)


@pytest.fixture(autouse=True, params=[False, True], ids=["apart", "stacked"])
def stacked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Caches of the texts by themselves, and in one buffer, as on a GPU."""
    monkeypatch.setattr("mtpd_mlx.decoding.open_rows.stacked", lambda options: request.param and options.kv_bits is None)
    return request.param


def batch_of(model: tuple, most: int = 6, options: DecodingConfig = DecodingConfig(), **more: Any) -> MLXBatch:  # noqa: B008
    opened = open_batch(*model, options, most, lambda sampling: 1 / 0, **({"capacity": CAPACITY} | more))  # type: ignore
    assert isinstance(opened, MLXBatch)
    return opened


class Writer:
    """One text of a batch. Its prompt goes in in pieces; `tokens`: what was emitted."""

    def __init__(self, batch: Batch, prompt: list[int], sampling: Sampling = GREEDY):
        self.batch, self.prompt, self.tokens = batch, prompt, list[int]()
        self.row = batch.join(sampling)

    def begin(self, *cuts: int) -> "Writer":
        for start, end in zip((0, *cuts), (*cuts, len(self.prompt)), strict=True):
            first = self.batch.prefill(self.row, self.prompt[start:end])
        self.tokens = [first]
        return self

    def turn(self, count: int | None) -> Turn:
        return Turn(self.row, self.tokens[-1], count)

    @property
    def full(self) -> bool:
        return self.batch.length(self.row) >= self.batch.capacity


def together(writers: list[Writer], counts: Iterator[int | None]) -> list[int]:
    """A round; accepted drafts of each."""
    rounds = writers[0].batch.round([w.turn(next(counts)) for w in writers])
    for writer, result in zip(writers, rounds, strict=True):
        writer.tokens += result.emitted
    return [result.accepted for result in rounds]


def always(count: int | None) -> Iterator[int | None]:
    while True:
        yield count


@pytest.mark.parametrize("model", ["postnorm", "prenorm", "drafts"], indirect=True)
def test_texts_of_any_lengths_and_drafts_are_the_plain_ones(model: tuple) -> None:
    random.seed(1)
    batch, accepted = batch_of(model), set[int]()
    prompts = [[random.randrange(2, VOCAB) for _ in range(n)] for n in (1, 2, 5, 20, 60, 90)]
    writers = [Writer(batch, prompt).begin() for prompt in prompts]
    for _ in range(8):
        accepted |= set(together(writers, iter(random.choices(range(K + 1), k=6))))
    assert accepted >= {0, 1, 2}
    for writer in writers:
        assert writer.tokens == oracle(model[0], writer.prompt, len(writer.tokens))
        assert batch.length(writer.row) == len(writer.prompt) + len(writer.tokens) - 1
    batch.check()


@pytest.mark.parametrize("seed", range(3))
def test_rows_join_leave_rewind_rest_and_are_alone(model: tuple, seed: int) -> None:
    rng = random.Random(seed)
    batch, writers, finished = batch_of(model, 4), list[Writer](), 0
    for _ in range(140):
        if len(writers) < 4 and rng.random() < 0.4:
            prompt = [rng.randrange(2, VOCAB) for _ in range(rng.choice((1, 3, 4, 30, 70)))]
            cut = [rng.randrange(1, len(prompt))] if len(prompt) > 1 and rng.random() < 0.5 else []
            writers.append(Writer(batch, prompt).begin(*cut))
        elif writers:
            act(batch, writers, rng)
        for writer in [w for w in writers if w.full or (len(w.tokens) > 20 and rng.random() < 0.1)]:
            assert writer.tokens == oracle(model[0], writer.prompt, len(writer.tokens))
            writers.remove(writer)
            batch.leave(writer.row)
            finished += 1
        batch.check()
    assert finished > 3


def act(batch: MLXBatch, writers: list[Writer], rng: random.Random) -> None:
    what, writer = rng.random(), rng.choice(writers)
    if what < 0.6:
        some = rng.sample(writers, rng.randrange(1, len(writers) + 1))
        together(some, iter(rng.choices(range(K + 1), k=len(some))))
    elif what < 0.8:
        backend = batch.alone(writer.row)
        assert backend is not None
        writer.tokens += backend.round(writer.tokens[-1]).emitted
    elif what < 0.9:  # the last tokens again
        keep = rng.randrange(max(1, len(writer.tokens) - 5), len(writer.tokens) + 1)
        writer.tokens = writer.tokens[:keep]
        batch.rewind_to(writer.row, len(writer.prompt) + keep - 1)
    else:  # another text that begins alike
        keep = rng.randrange(1, len(writer.prompt) + len(writer.tokens))
        text = [*writer.prompt, *writer.tokens]
        assert batch.restart(writer.row, GREEDY, keep - 1) == keep - 1
        more = [rng.randrange(2, VOCAB), rng.randrange(2, VOCAB)]
        writer.prompt = [*text[: keep - 1], *more][: CAPACITY - 1]
        writer.tokens = [batch.prefill(writer.row, writer.prompt[keep - 1 :])] if len(writer.prompt) >= keep else [0]


def test_rows_that_are_nearly_full_verify_fewer(model: tuple) -> None:
    batch = batch_of(model)
    long, short = Writer(batch, list(range(2, 90)) + list(range(2, 32))).begin(), Writer(batch, [5, 6]).begin()
    for _ in range(2):
        together([long, short] if not long.full else [short], always(K))
    assert long.full and long.tokens == oracle(model[0], long.prompt, len(long.tokens))
    with pytest.raises(ValueError, match="context full"):
        batch.round([long.turn(0)])
    assert short.tokens == oracle(model[0], short.prompt, len(short.tokens))


def test_heads_that_were_out_of_use_catch_up(model: tuple) -> None:
    batch = batch_of(model)
    one, other = Writer(batch, [5, 6, 7]).begin(), Writer(batch, [9, 8]).begin()
    for _ in range(40):
        together([one, other], always(0))
    accepted = together([one, other], always(K))
    assert not batch.regular
    for _ in range(3):
        accepted += together([one, other], always(K))
    assert batch.regular and sum(accepted) > 0
    for writer in (one, other):
        assert writer.tokens == oracle(model[0], writer.prompt, len(writer.tokens))


@pytest.mark.parametrize("options", [DecodingConfig(kv_bits=8, kv_group_size=32), DecodingConfig()], ids=["kv8", "whole"])
def test_quantised_caches_and_whole_buffers(options: DecodingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each is alone: rounding of quantised keys is another matter than the batch."""
    base = write_base(tmp_path / "base", FAMILIES["qwen3"], scale=5.0)
    model, alone = load_for_decoding(write_checkpoint(tmp_path / "heads", base, K))[:2], []
    prompts = [[5, 6, 7], list(range(40, 70))]
    for prompt in prompts:
        batch = batch_of(model, options=options)
        writer = Writer(batch, prompt).begin()
        for _ in range(10):
            together([writer], always(2))
        alone.append(writer.tokens)
    if options.kv_bits is None:
        monkeypatch.setattr(rows_cache, "on_cuda", lambda: True)
    batch = batch_of(model, options=options)
    writers = [Writer(batch, prompt).begin() for prompt in prompts]
    for _ in range(10):
        together(writers, always(2))
    assert [w.tokens for w in writers] == alone


SAMPLINGS = [Sampling(temp=1.0, top_p=0.9), Sampling(temp=0.7, top_k=9), Sampling(temp=1.3, repetition_penalty=1.3)]


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
def test_sampled_text_is_distributed_as_the_main_model_says(options: Sampling, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", scale=5.0)
    model = load_for_decoding(write_checkpoint(tmp_path / "heads", base, 3, noise=0.02))[:2]
    batch, found, prompts, accepted = batch_of(model, 5), [], [], 0
    for i in range(6):
        writers = [Writer(batch, list(range(5 + i, 20)), options).begin(), Writer(batch, [9, 9, i + 2], options).begin()]
        writers += [Writer(batch, [i + 2, 4], SAMPLINGS[i % 3]).begin(), Writer(batch, [7, i + 2]).begin()]
        for turn in range(30):
            accepted += sum(together(writers, iter([3, turn % 4, 1, 2]))[:2])
        for writer in writers:
            batch.leave(writer.row)
        assert writers[3].tokens == oracle(model[0], writers[3].prompt, len(writers[3].tokens))
        prompts += [(str(i), w.prompt) for w in writers[:2]]
        found += [w.tokens for w in writers[:2]]
    seen = judge(MLXModel(model[0], None), prompts, found, options)
    assert seen.p_value > 1e-3 and accepted > 60


def test_a_seeded_text_does_not_depend_on_its_company(model: tuple) -> None:
    sampling, texts = Sampling(temp=0.9, seed=5), []
    for company in ((), ([4, 5], [8] * 50), ([3],)):
        batch = batch_of(model)
        others = [Writer(batch, list(prompt), Sampling(temp=1.0)).begin() for prompt in company]
        writer = Writer(batch, [11, 12, 13], sampling).begin()
        assert batch.alone(writer.row) is None
        while len(writer.tokens) < 40:
            rounds = batch.round([*[w.turn(2) for w in others if not w.full], writer.turn(None)])
            writer.tokens += rounds[-1].emitted
            for other, result in zip([w for w in others if not w.full], rounds, strict=False):
                other.tokens += result.emitted
        texts.append(writer.tokens[:40])
        assert batch.restart(writer.row, sampling, 3) == 0
    assert texts[0] == texts[1] == texts[2]


def test_a_row_takes_over_what_another_way_of_sampling_has_cached(model: tuple) -> None:
    batch = batch_of(model)
    writer, other = Writer(batch, list(range(20, 60)), Sampling(temp=1.0)).begin(), Writer(batch, [5, 5]).begin()
    for _ in range(5):
        together([writer, other], always(3))
    assert batch.restart(writer.row, GREEDY, 30) == 30
    writer.prompt = [*range(20, 50), 3, 4]
    writer.tokens = [batch.prefill(writer.row, [3, 4])]
    for _ in range(6):
        together([writer, other], always(K))
    assert writer.tokens == oracle(model[0], writer.prompt, len(writer.tokens))
    batch.check()


def test_a_row_without_finite_logits_says_so_alone(model: tuple, tmp_path: Path) -> None:
    from mtpd_mlx.model.runtime import mx

    folder = write_base(tmp_path / "base", LLAMA | {"tie_word_embeddings": False})
    weights = mx.load(str(folder / "model.safetensors"))
    name = "model.embed_tokens.weight"
    weights[name] = mx.where(mx.arange(VOCAB)[:, None] == 7, mx.nan, weights[name])
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    broken = load_for_decoding(write_checkpoint(tmp_path / "heads", folder, 2))[:2]
    batch = batch_of(broken)
    bad, good = Writer(batch, [5, 6]).begin(), Writer(batch, [8, 9]).begin()
    rounds = batch.round([Turn(bad.row, 7, 2), good.turn(2)])
    assert rounds[0].emitted == [NO_TOKEN] and NO_TOKEN not in rounds[1].emitted


def test_what_a_round_costs_and_refuses(model: tuple) -> None:
    batch = batch_of(model, 2)
    costs = batch.costs(8)
    assert costs[PLAIN] == 1 and sorted(costs) == sorted([PLAIN, *(heads(k) for k in (1, 2, 3, 4))])
    writers = [Writer(batch, [5]).begin() for _ in range(3)]
    for turns in ([], [w.turn(0) for w in writers], [writers[0].turn(0)] * 2):
        with pytest.raises(ValueError, match="different ones"):
            batch.round(turns)
    with pytest.raises(ValueError, match="got row 77"):
        batch.round([Turn(77, 5)])
    while len(batch._rows) < batch.max_rows:
        batch.join(GREEDY)
    with pytest.raises(ValueError, match="rows are taken"):
        batch.join(GREEDY)


def test_caches_that_are_not_the_texts_are_found(model: tuple) -> None:
    batch = batch_of(model)
    writer = Writer(batch, [5, 6, 7]).begin()
    together([writer], always(2))
    batch.check()
    batch._rows[writer.row].decoder._host.caches[1].trim(1)
    with pytest.raises(RuntimeError, match=f"row {writer.row}: got .* layer 1"):
        batch.check()


def test_a_row_that_is_alone_may_have_another_decoder(model: tuple) -> None:
    options, opened = DecodingConfig(plan="fixed"), list[Any]()

    def one(sampling: Sampling) -> Any:
        opened.append(open_decoder(*model, options, sampling=sampling, capacity=CAPACITY))
        return opened[-1]

    batch = open_batch(*model, options, 4, one, capacity=CAPACITY)
    one_, two = Writer(batch, [5, 6, 7]).begin(), Writer(batch, [9, 8]).begin()
    for writer in (one_, two, one_):
        for _ in range(4):
            backend = batch.alone(writer.row)
            assert isinstance(backend, Decoder) and not isinstance(backend, ChoosingDecoder)
            writer.tokens += backend.round(writer.tokens[-1]).emitted
        for _ in range(3):
            together([one_, two], always(2))
        batch.check()
    assert len(opened) <= 2
    for writer in (one_, two):
        assert writer.tokens == oracle(model[0], writer.prompt, len(writer.tokens))
    assert batch.restart(two.row, GREEDY, 1) == 1 and batch.length(two.row) == 1


def test_drafts_that_the_user_fixed_and_a_base_alone(model: tuple) -> None:
    for own, count, expected in ((model, 2, 2), ((model[0], None), None, 0), (model, 0, 0)):
        batch = batch_of(own, num_draft_tokens=count)
        writers = [Writer(batch, [5, 6, 7]).begin(), Writer(batch, [8, 9]).begin()]
        rounds = batch.round([w.turn(4) for w in writers])
        assert [r.proposed for r in rounds] == [expected] * 2 and batch.num_draft_tokens == expected
        assert rounds[0].emitted == oracle(model[0], [5, 6, 7], 1 + len(rounds[0].emitted))[1:]


def test_what_cannot_be_decoded_side_by_side(model: tuple, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    opened = open_batch(*model, DecodingConfig(exact=True), 4, lambda s: open_choosing(*model, sampling=s))
    assert isinstance(opened, OneByOne) and "one at a time: --exact" in caplog.text


def test_texts_lie_in_one_buffer_until_somebody_wants_one(model: tuple, stacked: bool) -> None:
    """No copies from round to round of the same texts; rows of a wider buffer are never looked at."""
    batch = batch_of(model)
    writers = [Writer(batch, list(range(2, 2 + n))).begin() for n in (30, 3, 40)]
    together(writers, always(2))
    together(writers, always(2))
    assert (batch._stacks is not None) == stacked
    if batch._stacks is None:
        return
    stacks = (batch._stacks.base, *(batch._stacks.heads[k] for k in range(2)))
    gathered = [stack._texts for stack in stacks]
    together(writers, always(2))
    assert [len(stack.buffers) for stack in stacks] == [len(stacks[0].buffers), 1, 1]
    assert all(stack._texts is before for stack, before in zip(stacks, gathered, strict=True))
    batch.check()
    assert not any(stack.buffers for stack in stacks)
    together(writers[:2], always(1))
    assert len(stacks[0]._texts) == 2
    for writer in writers:
        assert writer.tokens == oracle(model[0], writer.prompt, len(writer.tokens))
