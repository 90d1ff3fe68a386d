"""Data sets whose batches are a pure function of (seed, step): a resumed run sees the same batches.
Called by train/setup.py and teacher_cache."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from mtpd_mlx.data.counts import Counts, count, total
from mtpd_mlx.data.formats import read_rows, tokenize
from mtpd_mlx.data.packing import Batch, add_counts, epoch_order, pack, pad
from mtpd_mlx.options.train import DataConfig
from mtpd_mlx.text.rows import is_readable
from mtpd_mlx.text.tokenizer import Tokenizer


class PackedDataset:
    """Rows of one split."""

    def __init__(self, rows: Batch, batch_size: int, seed: int, cut: np.ndarray | None = None):
        """cut: which rows hold the beginning of a longer document alone, bool [R] (None: none)."""
        if len(rows.tokens) == 0:
            raise ValueError("data: no rows of text after tokenisation")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.cut = np.zeros(len(rows.tokens), bool) if cut is None else cut
        self._order = lru_cache(maxsize=2)(partial(epoch_order, self.num_rows, seed))

    @property
    def num_rows(self) -> int:
        return len(self.rows.tokens)

    @property
    def num_tokens(self) -> int:
        return int((self.rows.segments > 0).sum())

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for array in (self.rows.tokens, self.rows.segments, self.rows.loss_mask):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def counts(self) -> Counts:
        return count(self.rows, int(self.cut.sum()))

    def batch(self, step: int) -> Batch:
        """Micro-batch number `step`: rows step*B .. step*B+B-1 of an endless sequence of shuffled epochs."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return self.take(np.array([self.row(p) for p in positions]))

    def token_counts(self) -> np.ndarray:
        """How often each token id occurs, int64 [highest id + 1]."""
        return np.bincount(self.rows.tokens[self.rows.segments > 0])

    def row(self, position: int) -> int:
        """Which row stands at a place of that sequence."""
        return int(self._order(position // self.num_rows)[position % self.num_rows])

    def iter_batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows once, in order; the last batch is filled with padding rows so that shapes repeat."""
        for start in range(0, self.num_rows, batch_size):
            rows = np.arange(start, min(start + batch_size, self.num_rows))
            batch, missing = self.take(rows), batch_size - rows.size
            fill = ((0, missing), (0, 0))
            yield Batch(np.pad(batch.tokens, fill), np.pad(batch.segments, fill), np.pad(batch.loss_mask, fill))

    def take(self, rows: np.ndarray | slice) -> Batch:
        return Batch(self.rows.tokens[rows], self.rows.segments[rows], self.rows.loss_mask[rows])


class MixedDataset:
    """Rows of several sources in given shares, each source shuffled by itself: batch(step) stays a pure function."""

    CYCLE = 1000  # shares are kept to a thousandth

    def __init__(self, parts: list[PackedDataset], weights: tuple[float, ...]):
        self.parts, self.batch_size = parts, parts[0].batch_size
        shares = np.array(weights) / sum(weights)
        taken, self._pattern, before = np.zeros(len(parts), dtype=int), [], []
        for place in range(1, self.CYCLE + 1):
            before.append(taken.copy())
            source = int(np.argmax(shares * place - taken))  # the one furthest behind its share
            self._pattern.append(source)
            taken[source] += 1
        self._before, self._per_cycle = np.stack(before), taken

    @property
    def num_tokens(self) -> int:
        return sum(p.num_tokens for p in self.parts)

    @property
    def sha256(self) -> str:
        return hashlib.sha256("".join(p.sha256 for p in self.parts).encode()).hexdigest()

    def token_counts(self) -> np.ndarray:
        return add_counts(p.token_counts() for p in self.parts)

    def counts(self) -> Counts:
        return total(part.counts() for part in self.parts)

    def batch(self, step: int) -> Batch:
        rows = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            cycle, place = divmod(position, self.CYCLE)
            source = self._pattern[place]
            own = cycle * int(self._per_cycle[source]) + int(self._before[place, source])
            rows.append(self.parts[source].take(np.array([self.parts[source].row(own)])))
        return concatenate(rows)


def concatenate(batches: list[Batch]) -> Batch:
    """One batch of the rows of all, in order."""
    return Batch(*(np.concatenate([getattr(b, f) for b in batches]) for f in ("tokens", "segments", "loss_mask")))


def interleave(sources: list[Batch]) -> Batch:
    """All rows, those of every source evenly spread: the first --val-batches of them are a sample of all sources."""
    places = np.concatenate([(np.arange(len(b.tokens)) + 0.5) / len(b.tokens) for b in sources])
    order, whole = np.argsort(places, kind="stable"), concatenate(sources)
    return Batch(whole.tokens[order], whole.segments[order], whole.loss_mask[order])


@dataclass(frozen=True)
class Splits:
    """Training rows, and validation rows if any are held out."""

    train: PackedDataset | MixedDataset
    valid: PackedDataset | None


def _read(file: Path, cfg: DataConfig, tokenizer: Tokenizer, seed: int) -> PackedDataset:
    documents = tokenize(read_rows(file), tokenizer, cfg.mask_prompt)
    if not documents:
        raise ValueError(f"{file}: no text in it")
    length = cfg.max_seq_length
    if cfg.pack:
        return PackedDataset(pack(documents, length), cfg.batch_size, seed)
    cut = np.array([document.ids.size > length for document in documents])
    return PackedDataset(pad(documents, length), cfg.batch_size, seed, cut)


def load_text(name: str, cfg: DataConfig, tokenizer: Tokenizer) -> PackedDataset:
    """One file as one split."""
    file = Path(name).expanduser()
    if not is_readable(file):
        raise ValueError(f"data {name}: no such file")
    return _read(file, cfg, tokenizer, 0)


def load_dataset(cfg: DataConfig, tokenizer: Tokenizer, seed: int = 0) -> Splits:
    """The splits of one or several data folders or files. ValueError in one line on anything missing or malformed."""
    if cfg.max_seq_length < 3 or cfg.batch_size < 1:
        raise ValueError(
            f"--batch-size, --max-seq-length: got {cfg.batch_size} rows of {cfg.max_seq_length} "
            "tokens, expected at least 1 row of 3"
        )
    weights = cfg.data_weights
    if weights and (len(weights) != len(cfg.data) or min(weights) < 0 or sum(weights) <= 0):
        raise ValueError(f"--data-weights: got {list(weights)}, expected {len(cfg.data)} shares of at least 0, one per --data")
    parts = [_load_source(name, cfg, tokenizer, seed) for name in cfg.data]
    held = [part.valid for part in parts if part.valid is not None]
    valid = join(held, interleave([part.rows for part in held])) if held else None
    trains = [p.train for p in parts if isinstance(p.train, PackedDataset)]
    if weights:
        return Splits(MixedDataset(trains, weights), valid)
    return Splits(join(trains, concatenate([t.rows for t in trains])), valid)


def join(parts: list[PackedDataset], rows: Batch) -> PackedDataset:
    """Their `rows` as one data set."""
    return PackedDataset(rows, parts[0].batch_size, parts[0].seed, np.concatenate([part.cut for part in parts]))


def find_source(name: str) -> Path:
    """A file of rows, or a folder with train.jsonl. ValueError where there is neither."""
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "train.jsonl").is_file():
        raise ValueError(f"--data {name}: no train.jsonl in it")
    if not path.is_dir() and not is_readable(path):
        raise ValueError(f"--data {name}: no such file or folder")
    return path


def _load_source(name: str, cfg: DataConfig, tokenizer: Tokenizer, seed: int) -> Splits:
    path = find_source(name)
    if not path.is_dir():
        return _hold_out(name, _read(path, cfg, tokenizer, seed), cfg, seed)
    train, valid = _read(path / "train.jsonl", cfg, tokenizer, seed), path / "valid.jsonl"
    if not valid.is_file():
        return _hold_out(name, train, cfg, seed)
    return Splits(train, _read(valid, cfg, tokenizer, seed) if valid.stat().st_size > 0 else None)


def _hold_out(name: str, whole: PackedDataset, cfg: DataConfig, seed: int) -> Splits:
    """The last `valid_share` of the rows, at least one of them, is for validation."""
    if cfg.valid_share <= 0:
        return Splits(whole, None)
    cut = whole.num_rows - max(1, round(cfg.valid_share * whole.num_rows))
    if cut < 1:
        raise ValueError(
            f"data {name}: {whole.num_rows} row(s) of {cfg.max_seq_length} tokens, too few to hold some out for validation; "
            "give more, a lower --max-seq-length, or a valid.jsonl beside train.jsonl"
        )
    parts = (slice(cut), slice(cut, None))
    return Splits(*(PackedDataset(whole.take(part), cfg.batch_size, seed, whole.cut[part]) for part in parts))
