"""`load_text`: the output of tools/experiments/prepare.py as data sets and prompts.
Called by run.py, equal_time.py, measures.py and train_arm.py."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.data import Batch, PackedDataset
from mtpd_mlx.data.formats import Document
from mtpd_mlx.data.packing import pad
from mtpd_mlx.text.tokenizer import Tokenizer
from tools.experiments.settings import Setting


@dataclass(frozen=True)
class Prompt:
    """A prompt of an evaluation set; `domain`: the train file it was held out of, or the name of the set."""

    set: str
    domain: str
    tokens: list[int]


@dataclass(frozen=True)
class Text:
    """train: rows [R, length]; valid: held-out documents, one a row, cut at `length`; domains: the domain of each of them;
    token_bytes [V]: bytes that a token stands for."""

    train: Batch
    valid: Batch
    domains: list[str]
    prompts: list[Prompt]
    token_bytes: np.ndarray
    tokenizer_folder: Path
    _sets: dict[int, PackedDataset] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(self.tokenizer_folder)

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    def train_set(self, s: Setting, seed: int) -> PackedDataset:
        """Batches of a seed are the same for every arm."""
        return self._sets.setdefault(seed, PackedDataset(self.train, s.batch_size, seed))

    def valid_batches(self, s: Setting) -> list[Batch]:
        """`valid_rows` of the held-out rows, evenly over the domains."""
        chosen = np.linspace(0, len(self.domains) - 1, min(s.valid_rows, len(self.domains))).astype(int)
        rows = PackedDataset(PackedDataset(self.valid, s.batch_size, 0).take(chosen), s.batch_size, 0)
        return list(rows.iter_batches(s.batch_size))


def load_text(folder: Path, s: Setting) -> Text:
    stream = np.load(folder / "train.npy", mmap_mode="r")
    with (folder / "eval.json").open() as f:
        evaluation = json.load(f)
    texts = [(domain, ids) for domain, rows in sorted(evaluation["texts"].items()) for ids in rows]
    documents = [Document(np.array(ids, np.int32), np.ones(len(ids), bool)) for _, ids in texts]
    return Text(
        rows_of(stream, end_token(folder), s.length),
        pad(documents, s.length),
        [domain for domain, _ in texts],
        _prompts(evaluation["prompts"], s),
        np.array(evaluation["token_bytes"]),
        folder / "tokenizer",
    )


def end_token(folder: Path) -> int:
    end = Tokenizer.from_folder(folder / "tokenizer").eos_token_id
    if end is None:
        raise ValueError(f"{folder}/tokenizer: no end token")
    return end


def rows_of(stream: np.ndarray, end: int, length: int) -> Batch:
    """stream [n]: documents, each with its end token -> rows [n // length, length]; segments number the documents of a row."""
    tokens = stream[: stream.size // length * length].astype(np.int32).reshape(-1, length)
    ended = np.pad(tokens[:, :-1] == end, ((0, 0), (1, 0)))
    segments = 1 + np.cumsum(ended, axis=1, dtype=np.int32)
    return Batch(tokens, segments, np.ones(tokens.shape, bool))


def _prompts(sets: dict[str, list[dict[str, Any]]], s: Setting) -> list[Prompt]:
    """At most `prompts` of each set; of heldout_lm twice as many, an even share of every domain."""
    chosen = []
    for name, rows in sets.items():
        limit = s.prompts if len({row["domain"] for row in rows}) == 1 else 2 * s.prompts
        places = np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int)
        chosen += [Prompt(name, rows[i]["domain"], rows[i]["tokens"]) for i in places]
    return chosen
