"""Rows made of documents hold every token once; their order and the mix of sources are pure functions of seed and step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.losses import counted

from mtpd_mlx.data.dataset import MixedDataset, PackedDataset, interleave
from mtpd_mlx.data.formats import Document
from mtpd_mlx.data.packing import Batch, add_counts, epoch_order, pack, pad, target_masks

LENGTHS = st.integers(3, 12)


@st.composite
def document_lists(draw: st.DrawFn, least: int = 1) -> list[Document]:
    """Token ids count up from 1 across all documents, so that each is known wherever it turns up."""
    sizes, at, documents = draw(st.lists(st.integers(least, 30), min_size=1, max_size=8)), 1, []
    for size in sizes:
        mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        documents.append(Document(np.arange(at, at + size, dtype=np.int32), np.array(mask, bool)))
        at += size
    return documents


def numbered(rows: int, length: int = 3, mark: int = 0) -> Batch:
    tokens = np.full((rows, length), mark, np.int32)
    tokens[:, 1] = np.arange(rows)
    return Batch(tokens, np.ones_like(tokens), np.ones_like(tokens, dtype=bool))


@given(document_lists(least=0), LENGTHS)
def test_packing_loses_nothing(documents: list[Document], length: int) -> None:
    rows = pack(documents, length)
    ids, masks = (np.concatenate([getattr(d, f) for d in documents]) for f in ("ids", "loss_mask"))
    assert rows.tokens.shape == rows.segments.shape == rows.loss_mask.shape == (-(-ids.size // length), length)
    assert (rows.tokens.dtype, rows.segments.dtype, rows.loss_mask.dtype) == (np.int32, np.int32, bool)
    tokens, segments, kept = (a.ravel() for a in (rows.tokens, rows.segments, rows.loss_mask))
    assert np.array_equal(tokens[: ids.size], ids) and np.array_equal(kept[: ids.size], masks)
    assert not tokens[ids.size :].any() and not segments[ids.size :].any() and not kept[ids.size :].any()
    owner = np.repeat(np.arange(len(documents)), [d.ids.size for d in documents])
    owner = np.pad(owner, (0, tokens.size - ids.size), constant_values=-1).reshape(rows.tokens.shape)
    for own, segment in zip(owner, rows.segments, strict=True):
        text = own >= 0
        assert (text == (segment > 0)).all() and segment[0] == 1
        assert np.array_equal(np.diff(own[text]), np.diff(segment[text]))  # one document: equal numbers, in order


@given(document_lists(), LENGTHS)
def test_padding_cuts_at_the_end_alone(documents: list[Document], length: int) -> None:
    rows = pad(documents, length)
    for tokens, segments, mask, document in zip(rows.tokens, rows.segments, rows.loss_mask, documents, strict=True):
        n = min(length, document.ids.size)
        assert np.array_equal(tokens[:n], document.ids[:n]) and np.array_equal(mask[:n], document.loss_mask[:n])
        assert (segments[:n] == 1).all()
        assert not tokens[n:].any() and not segments[n:].any() and not mask[n:].any()


@given(document_lists(), LENGTHS, st.booleans(), st.integers(0, 4))
def test_a_position_counts_within_its_document_alone(documents: list[Document], length: int, packed: bool, heads: int) -> None:
    rows = (pack if packed else pad)(documents, length)
    masks = target_masks(rows, heads)
    assert masks.shape == (heads + 1, *rows.tokens.shape)
    for (k, b, i), counts in np.ndenumerate(masks):
        assert counts == counted(rows.segments, rows.loss_mask, b, i, k)


@given(st.integers(1, 20), st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_the_order_is_a_pure_function_of_seed_and_epoch(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed, epoch)
    assert sorted(order) == list(range(rows)) and np.array_equal(order, epoch_order(rows, seed, epoch))
    sequence = PackedDataset(numbered(rows), 2, seed)
    for other in (0, epoch + 3, epoch, max(0, epoch - 1)):  # whatever was asked for before
        sequence.row(other * rows)
    assert [sequence.row(epoch * rows + i) for i in range(rows)] == order.tolist()


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 99), st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_batches_in_any_order(rows: int, batch_size: int, seed: int, steps: list[int]) -> None:
    whole, resumed = (PackedDataset(numbered(rows), batch_size, seed) for _ in range(2))
    in_turn = [whole.batch(step).tokens for step in range(31)]
    seen = np.concatenate(in_turn)[:, 1]
    for epoch in range(seen.size // rows):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    for step in steps:
        assert np.array_equal(resumed.batch(step).tokens, in_turn[step])


@given(document_lists(), LENGTHS, st.integers(1, 7))
def test_validation_reads_every_row_once(documents: list[Document], length: int, batch_size: int) -> None:
    rows = pack(documents, length)
    batches = list(PackedDataset(rows, 1, 0).iter_batches(batch_size))
    assert all(b.tokens.shape == (batch_size, length) for b in batches)
    for name in ("tokens", "segments", "loss_mask"):
        read = np.concatenate([getattr(b, name) for b in batches])
        assert np.array_equal(read[: len(rows.tokens)], getattr(rows, name))
        assert not read[len(rows.tokens) :].any()  # padding, which counts nowhere


WEIGHTS = st.lists(st.floats(0, 10).filter(lambda w: w == 0 or w > 0.01), min_size=2, max_size=4).filter(any)


@given(WEIGHTS, st.integers(1, 5), st.data())
def test_mixing(weights: list[float], batch_size: int, data: st.DataObject) -> None:
    """Shares hold from the first rows on, a share of 0 is none, and each source goes through its own epochs."""
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=len(weights), max_size=len(weights)))
    parts = [PackedDataset(numbered(rows, mark=i), batch_size, i) for i, rows in enumerate(sizes)]
    mixed, again = (MixedDataset(parts, tuple(weights)) for _ in range(2))
    steps = data.draw(st.integers(1, 60))
    batches = [mixed.batch(step) for step in range(steps)]
    tokens = np.concatenate([b.tokens for b in batches])
    for i, (weight, part) in enumerate(zip(weights, parts, strict=True)):
        own = tokens[tokens[:, 0] == i, 1]
        assert abs(own.size - len(tokens) * weight / sum(weights)) < len(parts) - 0.999
        assert bool(own.size) <= bool(weight)
        assert own.tolist() == [part.row(n) for n in range(own.size)]
    step = data.draw(st.integers(0, steps - 1))
    assert np.array_equal(again.batch(step).tokens, batches[step].tokens)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_sources_of_validation_are_evenly_spread(sizes: list[int]) -> None:
    whole = interleave([numbered(rows, mark=i) for i, rows in enumerate(sizes)]).tokens
    assert len(whole) == sum(sizes)
    for i, rows in enumerate(sizes):
        own = whole[:, 0] == i
        assert whole[own, 1].tolist() == list(range(rows))
        for n in range(1, len(whole) + 1):
            assert abs(own[:n].sum() - rows * n / len(whole)) < len(sizes)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=4))
def test_counts_add_up(texts: list[list[int]]) -> None:
    assert add_counts(np.bincount(text) for text in texts).tolist() == np.bincount(np.concatenate(texts)).tolist()


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows of text"):
        PackedDataset(pack([Document(np.zeros(0, np.int32), np.zeros(0, bool))], 4), 1, 0)
