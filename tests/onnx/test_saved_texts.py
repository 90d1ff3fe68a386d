"""Texts of mtpd-onnx that are saved and go on elsewhere: the same text, and drafts of heads that are as good."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.bound import Paths
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.bound import BoundFolder
from mtpd_onnx.runtime.open import open_folder
from tiny import VOCAB, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.loop import generate


@pytest.fixture(scope="module", params=[3, 0])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("saved")
    base = write_base(place / "base", scale=6.0)
    checkpoint = write_checkpoint(place / "heads", base, request.param) if request.param else base
    export_checkpoint(checkpoint, place / "onnx", ExportOptions())
    return place / "onnx"


def opened(folder: Path) -> Any:
    return open_folder(folder, provider="cpu", num_threads=1, choose=True)


def written(backend: Any, prompt: Sequence[int], count: int = 20) -> list[int]:
    return [t for chunk in generate(backend, prompt, max_tokens=count) for t in chunk.tokens]


def test_texts_go_on_anywhere_in_what_was_saved(folder: Path) -> None:
    first, prompt = opened(folder), [5, 6, 7, 8, 9, 10]
    assert first.save() is None
    text = prompt + written(first, prompt)
    saved = first.save()
    assert saved.tokens == text[:-1] and saved.kind == first.saved_kind
    assert written(first, text[-1:], 10) == written(opened(folder), text, 10)  # it was a copy
    for length in (1, 4, 13, len(saved.tokens)):
        other = opened(folder)
        written(other, [1, 2, 3], 30)
        other.load(saved, length)
        assert other.length == length
        assert written(other, [*text[length:], 11], 30) == written(opened(folder), [*text, 11], 30)


def test_heads_draft_behind_a_loaded_text_as_behind_one_that_was_read(folder: Path) -> None:
    if not read_manifest(folder).num_heads:
        return
    read, loaded = (open_folder(folder, provider="cpu", num_threads=1, num_draft_tokens=3) for _ in range(2))
    prompt = list(range(5, 25))
    token = read.prefill(prompt)
    loaded.load(read.save(), len(prompt))
    for _ in range(6):
        rounds = [each.round(token) for each in (read, loaded)]
        assert rounds[0] == rounds[1]
        token = rounds[0].emitted[-1]


def test_bound_texts(folder: Path) -> None:
    bound, prompt = BoundFolder(folder, provider="cpu", num_threads=1), list(range(5, 30))
    texts, saved = [], None
    for length in (0, 20, 24):
        backend = bound.decoder()
        if saved is not None:
            backend.load(saved, length)
        backend.bind(Paths(VOCAB, 3))
        texts.append(written(backend, prompt[length:]))
        saved = backend.save()
        assert saved is not None and saved.tokens[: len(prompt)] == prompt
    assert texts[0] == texts[1] == texts[2]
