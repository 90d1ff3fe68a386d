"""Every family in ONNX graphs, fused and in standard operators: transformers' logits, and rounds that are plain decoding."""

from pathlib import Path

import numpy as np
import pytest
from conftest import TOLERANCE, Reference
from mtpd_onnx.export import export_checkpoint
from mtpd_onnx.open import open_folder
from mtpd_onnx.plain_backend import PlainBackend
from mtpd_onnx.split_backend import SplitModel

from mtpd_mlx.backend import MLXModel
from mtpd_mlx.checkpoint import load_checkpoint
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend

COUNT = 40


@pytest.fixture(scope="module")
def exported(reference: Reference, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders fused/ and split/."""
    out = tmp_path_factory.mktemp("onnx")
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, out / layout, layout=layout)
    return out


def opened(folder: Path, plain: bool = False) -> Backend:
    return open_folder(folder, provider="cpu", plain=plain, num_threads=1)


def test_onnx_logits(reference: Reference, exported: Path) -> None:
    plain = opened(exported / "fused", plain=True)
    assert isinstance(plain, PlainBackend)
    np.testing.assert_allclose(plain.logits(reference.tokens), reference.logits, rtol=0, atol=TOLERANCE)


def test_onnx_standard_logits(reference: Reference, exported: Path) -> None:
    split = opened(exported / "split")
    assert isinstance(split, StepBackend) and isinstance(split.model, SplitModel)
    rows = [split.model.logits(reference.tokens[:11]), split.model.logits(reference.tokens[11:])]
    np.testing.assert_allclose(np.concatenate(rows), reference.logits, rtol=0, atol=TOLERANCE)


def test_onnx_rounds_are_plain_decoding(reference: Reference, exported: Path, checkpoint: Path) -> None:
    """The fused round against plain decoding and against both step-by-step oracles; some drafts right, some wrong."""
    prompt = reference.tokens[:9]
    tokens, accepted = decode(opened(exported / "fused"), prompt)
    assert tokens == decode(opened(exported / "fused", plain=True), prompt)[0]
    assert (tokens, accepted) == decode(opened(exported / "split"), prompt)
    base, heads, _ = load_checkpoint(checkpoint)
    assert (tokens, accepted) == decode(StepBackend(MLXModel(base, heads)), prompt)


def decode(backend: Backend, prompt: list[int]) -> tuple[list[int], list[int]]:
    tokens, accepted = [], []
    for chunk in generate(backend, prompt, max_tokens=COUNT):
        tokens += chunk.tokens
        if chunk.round is not None and chunk.round.proposed:
            accepted.append(chunk.round.accepted)
    return tokens, accepted
