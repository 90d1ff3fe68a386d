"""Several sources of data in given shares: pure in the step, every source in its own shuffled epochs."""

from pathlib import Path

import numpy as np
import pytest
from tiny import write_tokenizer

from mtpd_mlx.data import load_dataset
from mtpd_mlx.data.dataset import MixedDataset, PackedDataset
from mtpd_mlx.data.packing import Batch
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.tokenizer import Tokenizer


def source(rows: int, mark: int) -> PackedDataset:
    tokens = np.full((rows, 4), mark, np.int32)
    tokens[:, 1] = np.arange(rows)
    return PackedDataset(Batch(tokens, np.ones_like(tokens), np.ones_like(tokens, dtype=bool)), 5, 0)


def test_shares_purity_and_epochs() -> None:
    mixed = MixedDataset([source(7, 1), source(30, 2), source(3, 3)], (0.5, 0.3, 0.2))
    batches = [mixed.batch(step) for step in range(400)]
    tokens = np.concatenate([b.tokens for b in batches])
    assert [int((tokens[:1000, 0] == m).sum()) for m in (1, 2, 3)] == [500, 300, 200]
    assert [int((tokens[:100, 0] == m).sum()) for m in (1, 2, 3)] == [50, 30, 20]
    for mark, rows in ((1, 7), (2, 30), (3, 3)):
        own = tokens[tokens[:, 0] == mark, 1]
        for epoch in range(len(own) // rows):
            assert sorted(own[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    again = MixedDataset([source(7, 1), source(30, 2), source(3, 3)], (5, 3, 2))
    for step in (399, 0, 17):
        assert np.array_equal(again.batch(step).tokens, batches[step].tokens)


def write(folder: Path, letter: str, rows: int) -> Path:
    folder.mkdir()
    for name in ("train", "valid"):
        (folder / f"{name}.jsonl").write_text(f'{{"text": "{letter * 20}"}}\n' * rows)
    return folder


def test_folders_mix_by_size_or_by_weight(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_folder(tmp_path / "tokenizer")
    folders = (str(write(tmp_path / "a", "a", 30)), str(write(tmp_path / "b", "b", 10)))
    by_size = load_dataset(DataConfig(folders, max_seq_length=21, batch_size=4), tokenizer)
    assert isinstance(by_size.train, PackedDataset) and by_size.train.num_rows == 40
    assert by_size.valid is not None and by_size.valid.num_rows == 40
    even = load_dataset(DataConfig(folders, (1, 1), max_seq_length=21, batch_size=4), tokenizer).train
    tokens = np.concatenate([even.batch(i).tokens[:, 0] for i in range(10)])
    assert (tokens == tokenizer.encode("a")[0]).sum() == 20
    alone = load_dataset(DataConfig(folders[:1], max_seq_length=21, batch_size=4), tokenizer).train
    assert isinstance(alone, PackedDataset) and alone.num_rows == 30
    for weights in ((1.0,), (1.0, -1.0), (0.0, 0.0)):
        with pytest.raises(ValueError, match=r"--data-weights: got .* expected 2 shares"):
            load_dataset(DataConfig(folders, weights), tokenizer)


def test_the_first_validation_rows_are_of_every_source(tmp_path: Path) -> None:
    """--val-batches takes a beginning of them to choose the heads that are kept."""
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_folder(tmp_path / "tokenizer")
    folders = (str(write(tmp_path / "a", "a", 30)), str(write(tmp_path / "b", "b", 10)))
    valid = load_dataset(DataConfig(folders, max_seq_length=21, batch_size=4), tokenizer).valid
    assert valid is not None
    marks = [tokenizer.encode(letter)[0] for letter in "ab"]
    for start in range(0, 40, 8):
        assert [int((valid.rows.tokens[start : start + 8, 0] == mark).sum()) for mark in marks] == [6, 2]
    alone = load_dataset(DataConfig(folders[:1], max_seq_length=21, batch_size=4), tokenizer).valid
    assert alone is not None and alone.num_rows == 30
