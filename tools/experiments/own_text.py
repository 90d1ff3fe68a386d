"""`own_rows`: the base's own text as training data, continued from the corpus by sampling, resumable.
Called by measures.py and train_arm.py."""

from pathlib import Path

import numpy as np

from mtpd_mlx.data import Batch, PackedDataset
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.generate import Pick, generate_batch, greedy
from mtpd_mlx.model.runtime import mx
from tools.experiments.clock import Clock
from tools.experiments.settings import Setting


def at_temperature(temp: float) -> Pick:
    """logits [B, V] -> token ids [B], drawn by MLX's own generator (seeded by who calls); temperature 0: the best."""
    if temp == 0:
        return greedy
    from mlx_lm.sample_utils import make_sampler

    sample = make_sampler(temp)

    def pick(logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32)
        return sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    return pick


def own_rows(
    base: Base, corpus: Batch, folder: Path, s: Setting, clock: Clock, factor: int = 1, temp: float | None = None
) -> np.ndarray:
    """Token ids [factor x own_rows, length], at temperature `temp` (None: own_temp); each batch is kept in a file of its own,
    named by its number, those of one temperature in one folder."""
    temp = s.own_temp if temp is None else temp
    folder = folder / f"temp-{temp:g}"
    folder.mkdir(parents=True, exist_ok=True)
    pick, parts, rows_wanted = at_temperature(temp), [], factor * s.own_rows
    for number in range(-(-rows_wanted // s.own_batch)):
        file = folder / f"{number}.npy"
        if not file.exists():
            clock.check()
            mx.random.seed(number)
            begin = corpus.tokens[number * s.own_batch : (number + 1) * s.own_batch, : s.own_prompt].tolist()
            texts = generate_batch(base, begin, s.length - s.own_prompt, frozenset(), pick)
            rows = np.array([prompt + text for prompt, text in zip(begin, texts, strict=True)], np.uint16)
            np.save(folder / f"tmp-{number}.npy", rows)
            (folder / f"tmp-{number}.npy").rename(file)
        parts.append(np.load(file))
    return np.concatenate(parts)[:rows_wanted].astype(np.int32)


def own_set(rows: np.ndarray, s: Setting, seed: int) -> PackedDataset:
    return PackedDataset(Batch(rows, np.ones_like(rows), np.ones(rows.shape, bool)), s.batch_size, seed)
