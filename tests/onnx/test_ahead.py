"""Rounds and steps started before the last results are read: the same texts, whatever the host does in between."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling

K, CAPACITY = 3, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    checkpoint = write_checkpoint(folder / "heads", write_base(folder / "base", scale=2.0), K, noise=0.05)
    export_checkpoint(checkpoint, folder / "onnx", ExportOptions(capacity=CAPACITY))
    return folder / "onnx"


def session(backend: Any, seed: int) -> list[list[int]]:
    """Texts that end anywhere, go on after a rewind, are forced elsewhere, and fill the cache."""
    rng, texts = np.random.default_rng(seed), []
    for _ in range(12):
        keep = 0 if rng.random() < 0.5 else int(rng.integers(0, backend.length + 1))
        backend.rewind_to(keep)
        room = backend.capacity - keep - 1
        if room < 1:
            continue
        prompt = rng.integers(0, VOCAB, int(rng.integers(1, min(room, 12) + 1))).tolist()
        count = int(rng.choice([1, 7, 20, 200]))
        texts.append([t for chunk in generate(backend, prompt, max_tokens=count) for t in chunk.tokens])
        if backend.length + 1 < backend.capacity and rng.random() < 0.3:
            texts.append([backend.step(int(rng.integers(0, VOCAB)))])
    return texts


@pytest.mark.parametrize("sampling", [None, Sampling(temp=0.8, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("plain", [False, True], ids=["rounds", "steps"])
def test_texts_are_the_same(folder: Path, plain: bool, sampling: Sampling | None) -> None:
    for seed in range(4):
        texts, most = [], 0
        for ahead in (False, True):
            backend: Any = open_folder(folder, provider="cpu", plain=plain, num_threads=1, sampling=sampling, fixed_rounds=True)
            assert backend.ahead is False  # on the CPU nothing is gained by it
            backend.ahead, wait = ahead, backend.runner.wait

            def watched(runner: Any = backend.runner, wait: Any = wait) -> list[np.ndarray]:
                nonlocal most
                most = max(most, runner.pending)
                return wait()

            backend.runner.wait = watched
            texts.append(session(backend, seed))
        assert texts[0] == texts[1] and most == 2


def test_it_never_runs_beyond_the_cache(folder: Path) -> None:
    backend: Any = open_folder(folder, provider="cpu", num_threads=1, fixed_rounds=True)
    backend.ahead = True
    token = backend.prefill(list(range(CAPACITY - 2 * (K + 1) + 1)))
    backend.round(token)
    assert backend.runner.pending == 0  # a second round would not have fitted, had all drafts been accepted
