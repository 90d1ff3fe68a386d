"""Exported folders on onnxruntime, driven in any order, against the MLX base that recomputes the text from its beginning."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from decoding_machine import Oracle, check_backend
from helpers.decode import decoded
from helpers.schedules import Scheduled
from hypothesis import given
from hypothesis import strategies as st
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.protocol import Backend

K, CAPACITY = 3, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    base = write_base(folder / "base", scale=8.0)
    checkpoint = write_checkpoint(folder / "heads", base, K, noise=0.14)  # drafts that a wrong state changes
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, folder / layout, ExportOptions(layout=layout, capacity=CAPACITY))
    return folder


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(*load_for_decoding(folder / "heads")[:2])


def opened(folder: Path, layout: str, plain: bool = False, drafts: int | None = None) -> Backend:
    """One session: a rewind to 0 makes a used backend as good as a new one."""
    return open_folder(folder / layout, provider="cpu", num_threads=1, plain=plain, num_draft_tokens=drafts, fixed_rounds=True)


def test_rounds_of_this_model_accept_now_more_drafts_now_fewer(oracle: Oracle) -> None:
    assert len(oracle.acceptance()) > 2


@pytest.mark.parametrize("ahead", [False, True])
def test_fused(folder: Path, oracle: Oracle, ahead: bool) -> None:
    """`ahead`: as on CUDA, the next round runs before this one's tokens are read."""
    backend = opened(folder, "fused")
    backend.ahead = ahead  # type: ignore[attr-defined]
    check_backend(oracle, lambda: backend, drafts_of=lambda fused, _: fused.drafts)


@pytest.mark.parametrize("drafts", [1, K])
def test_choosing(folder: Path, oracle: Oracle, drafts: int) -> None:
    """The graph of any number of drafts, here always the same one."""
    backend = open_folder(folder / "fused", provider="cpu", num_threads=1, num_draft_tokens=drafts)
    check_backend(oracle, lambda: backend)


@given(seed=st.integers(0, 10**6), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
def test_any_schedule_of_drafts(folder: Path, oracle: Oracle, seed: int, prompt: list[int]) -> None:
    backend: Any = choosing(folder)
    backend.drafting = Scheduled(seed, K, VOCAB)
    text = decoded(backend, prompt, CAPACITY)[0]
    assert len(prompt) + len(text) == CAPACITY + 1
    for end in range(len(prompt), CAPACITY + 1):
        assert oracle.choices([*prompt, *text][:end]) == [[*prompt, *text][end]]


@cache
def choosing(folder: Path) -> Backend:
    return open_folder(folder / "fused", provider="cpu", num_threads=1, num_draft_tokens=K)


@pytest.mark.parametrize("ahead", [False, True])
def test_plain(folder: Path, oracle: Oracle, ahead: bool) -> None:
    backend = opened(folder, "fused", plain=True)
    backend.ahead = ahead  # type: ignore[attr-defined]
    check_backend(oracle, lambda: backend)


@pytest.mark.parametrize("drafts", [1, K])
def test_split(folder: Path, oracle: Oracle, drafts: int) -> None:
    backend = opened(folder, "split", drafts=drafts)
    drafted = lambda split, token: split.model.draft(token)[:drafts]  # noqa: E731
    check_backend(oracle, lambda: backend, drafted)


def test_split_round_in_an_empty_context(folder: Path, oracle: Oracle) -> None:
    assert opened(folder, "split").round(5).emitted[:1] == oracle.choices([5])
