"""Every family in ONNX graphs, fused and in standard operators: transformers' logits, and rounds that are plain decoding. One
that the graphs cannot express is refused by `mtpd export`."""

import re
from pathlib import Path

import numpy as np
import pytest
from family_models import TOLERANCE, Reference, prompts
from helpers.decode import decoded
from mtpd_onnx.dims import objection
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.open_rows import open_rows
from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.split import SplitModel

from mtpd_mlx.families.config import read_dims
from mtpd_mlx.families.multimodal import text_config
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.sampling import Sampling


@pytest.fixture(scope="module")
def exported(reference: Reference, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """Folders fused/ and split/; None where export refuses the family, as it then must."""
    out = tmp_path_factory.mktemp("onnx")
    if (why := objection(read_dims(text_config(reference.config)))) is not None:
        with pytest.raises(ValueError, match=re.escape(why)):
            export_checkpoint(checkpoint, out / "fused", ExportOptions())
        return None
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, out / layout, ExportOptions(layout=layout))
    return out


def opened(folder: Path, plain: bool = False) -> Backend:
    return open_folder(folder, provider="cpu", plain=plain, num_threads=1)


def test_onnx_logits(reference: Reference, exported: Path | None) -> None:
    if exported is None:
        return
    plain = opened(exported / "fused", plain=True)
    assert isinstance(plain, PlainBackend)
    np.testing.assert_allclose(plain.logits(reference.tokens), reference.logits, rtol=0, atol=TOLERANCE)


def test_onnx_standard_logits(reference: Reference, exported: Path | None) -> None:
    if exported is None:
        return
    split = opened(exported / "split")
    assert isinstance(split, StepBackend) and isinstance(split.model, SplitModel)
    rows = [split.model.logits(reference.tokens[:11]), split.model.logits(reference.tokens[11:])]
    np.testing.assert_allclose(np.concatenate(rows), reference.logits, rtol=0, atol=TOLERANCE)


def test_onnx_rounds_are_plain_decoding(reference: Reference, exported: Path | None, checkpoint: Path) -> None:
    """The fused round against plain decoding and against both step-by-step oracles; some drafts right, some wrong."""
    if exported is None:
        return
    base, heads, _ = load_checkpoint(checkpoint)
    fused, plain, split = opened(exported / "fused"), opened(exported / "fused", plain=True), opened(exported / "split")
    seen: set[int] = set()
    said: set[int] = set()
    for prompt in prompts(reference):
        tokens, accepted = decoded(fused, prompt)
        assert tokens == decoded(plain, prompt)[0]
        assert (tokens, accepted) == decoded(split, prompt)
        assert (tokens, accepted) == decoded(StepBackend(MLXModel(base, heads)), prompt)
        seen |= set(accepted)
        said |= set(tokens)
    assert len(seen) > 1 and len(said) > 1


def test_onnx_texts_side_by_side(reference: Reference, exported: Path | None) -> None:
    """Of different lengths, behind windows too: greedy texts of plain decoding, one beside that is sampled."""
    if exported is None:
        return
    if read_manifest(exported / "fused").reach is not None:
        with pytest.raises(ValueError, match="texts with recurrent state are decoded one at a time"):
            open_rows(exported / "fused", 4, provider="cpu")
        return
    batch = open_rows(exported / "fused", 4, provider="cpu", num_threads=1, measure=False)
    plain, some = opened(exported / "fused", plain=True), [*prompts(reference), [5, 6, 7]]
    rows = [(batch.join(Sampling()), prompt) for prompt in some]
    said = {row: [batch.prefill(row, prompt)] for row, prompt in rows}
    beside = batch.join(Sampling(temp=0.8, top_p=0.9))
    said[beside] = [batch.prefill(beside, some[0])]
    for i in range(8):
        for row, result in zip(said, batch.round([Turn(row, said[row][-1], i % 3) for row in said]), strict=True):
            said[row] += result.emitted
    for row, prompt in rows:
        plain.rewind_to(0)
        expected, *_ = decoded(plain, prompt, 9)
        assert said[row][:9] == expected
    batch.check()
