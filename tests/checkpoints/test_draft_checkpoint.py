"""The draft vocabulary in a checkpoint: both readers refuse the same bad maps in one line; its rows of any output head."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from tiny import LLAMA, VOCAB, write_base, write_checkpoint, write_quantised

from mtpd_mlx.checkpoints.format import read_config, read_draft_tokens
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_arrays, load_checkpoint, save_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.train.extend import loop_heads

IDS = [3, 10, 20, 50, 96]


@pytest.fixture(scope="module")
def checkpoint(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("draft") / "heads", tiny_base, 2, draft_tokens=IDS)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def refused_by_both(folder: Path, words: str) -> None:
    for read in (lambda: load_checkpoint(folder), lambda: export_checkpoint(folder, folder.with_name("never"))):
        with pytest.raises(ValueError, match=words) as error:
            read()
        assert "\n" not in str(error.value)
    assert not folder.with_name("never").exists()


@pytest.mark.parametrize(
    ("ids", "dtype", "words"),
    [
        ([3, 500, 4, 60, 96], mx.int32, "got 500 at index 1, expected strictly ascending token ids 0..96"),
        ([-2, 1, 2, 3, 4], mx.int32, "got -2 at index 0"),
        ([1, 2, 3, 4, VOCAB], mx.int32, "got 97 at index 4"),
        (IDS[::-1], mx.int32, "got 50 at index 1"),
        ([1, 1, 2, 3, 4], mx.int32, "got 1 at index 1"),
        (IDS[:-1], mx.int32, r"got shape \(4,\), expected \(5,\)"),
        ([IDS], mx.int32, r"got shape \(1, 5\), expected \(5,\)"),
        (IDS, mx.uint32, "got dtype U32, expected I32"),
        (IDS, mx.int64, "got dtype I64, expected I32"),
        (IDS, mx.float32, "got dtype F32, expected I32"),
        (IDS, mx.bfloat16, "got dtype BF16, expected I32"),
        (None, None, "missing key 'draft_tokens'.*draft_vocab 5"),
    ],
)
def test_bad_maps_are_refused_by_both_runtimes(ids: Any, dtype: Any, words: str, copy: Path) -> None:
    arrays = load_arrays(copy / "heads.safetensors")
    mx.eval(arrays)  # they are read lazily, from the file that is about to be replaced
    del arrays["draft_tokens"]
    changed = {} if ids is None else {"draft_tokens": mx.array(ids).astype(dtype)}
    mx.save_safetensors(str(copy / "heads.safetensors"), arrays | changed)
    refused_by_both(copy, words)


def test_bad_sizes_are_refused_and_older_files_have_none(copy: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    good = json.loads((copy / "mtp_config.json").read_text())
    assert list(good)[3:5] == ["hidden_source", "draft_vocab"] and good["draft_vocab"] == 5
    for size in (True, 0, -1, VOCAB + 1, 5.0, "5", [5]):
        (copy / "mtp_config.json").write_text(json.dumps(good | {"draft_vocab": size}))
        refused_by_both(copy, "draft_vocab: got .*, expected 1..97 or null")
    for older in (good | {"draft_vocab": None}, {k: v for k, v in good.items() if k != "draft_vocab"}):
        (copy / "mtp_config.json").write_text(json.dumps(older))
        refused_by_both(copy, "unexpected key 'draft_tokens'.*draft_vocab null")
    plain = Path(shutil.copytree(tiny_checkpoint, tmp_path / "plain"))
    values = json.loads((plain / "mtp_config.json").read_text())
    (plain / "mtp_config.json").write_text(json.dumps({k: v for k, v in values.items() if k != "draft_vocab"}))
    assert read_config(plain).draft_vocab is None and load_checkpoint(plain)[1].draft_tokens is None


def test_saving_refuses_what_loading_would(checkpoint: Path, tmp_path: Path) -> None:
    _, heads, config = load_checkpoint(checkpoint)
    heads.draft_among(mx.array([5, 2, 200], mx.int32))
    with pytest.raises(ValueError, match="got 2 at index 1"):
        save_heads(tmp_path / "again", heads, config)
    assert not (tmp_path / "again" / "heads.safetensors").exists()


def test_looping_and_8_bits_keep_it_and_it_never_trains(checkpoint: Path, tmp_path: Path) -> None:
    base, heads, config = load_checkpoint(checkpoint)
    save_heads(tmp_path, loop_heads(base, heads, 2 * config.num_heads), config, bits=8)
    again = read_draft_tokens(tmp_path, read_config(tmp_path))
    assert again is not None and again.dtype == np.int32 and again.tolist() == IDS
    assert export_checkpoint(tmp_path, tmp_path / "onnx").draft_vocab == len(IDS)
    assert not any("draft" in name for name in (*heads.parameters(), *heads.trainable_parameters()))
    heads.set_dtype(mx.float16)
    assert heads.draft_tokens is not None and heads.draft_tokens.dtype == mx.int32


QUANTISED = [
    None,
    {"group_size": 32, "bits": 4},
    {"group_size": 32, "bits": 3},
    {"group_size": 64, "bits": 8},
    {"group_size": 32, "bits": 4, "mode": "mxfp4"},
]


@pytest.mark.parametrize("quantised", QUANTISED)
@pytest.mark.parametrize("tied", [True, False])
def test_draft_head_is_its_rows_of_the_output_head(tied: bool, quantised: dict | None) -> None:
    base = new_base(LLAMA | {"tie_word_embeddings": tied}, 0)
    if quantised:
        nn.quantize(base.model, **quantised)
    for size in (1, 3, 40, VOCAB):
        ids = mx.array(np.sort(np.random.default_rng(size).choice(VOCAB, size, replace=False)).astype(np.int32))
        head = base.draft_head(ids)
        for shape in ((1, 1), (2, 9)):
            hidden = mx.random.normal((*shape, base.hidden_size), key=mx.random.key(size))
            got, want = head(hidden), base.logits(hidden)[..., ids]
            assert got.shape == (*shape, size)
            np.testing.assert_allclose(np.array(got), np.array(want), atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_base_drafts_inside_and_writes_its_own_text(tied: bool, tmp_path: Path) -> None:
    write_quantised(tmp_path / "q4", write_base(tmp_path / "plain", LLAMA | {"tie_word_embeddings": tied}, scale=2.0), 4)
    ids = list(range(0, VOCAB, 2))
    base, heads, _ = load_checkpoint(write_checkpoint(tmp_path / "heads", tmp_path / "q4", 3, noise=0.02, draft_tokens=ids))
    assert base.is_quantized
    model, drafts, tokens = MLXModel(base, heads), [], []
    original = model.draft
    model.draft = lambda token: drafts.append(original(token)) or drafts[-1]  # type: ignore[func-returns-value, method-assign]
    for chunk in generate(StepBackend(model), [9, 4, 7], max_tokens=40):
        tokens += chunk.tokens
    plain_text = [
        t for c in generate(StepBackend(MLXModel(base, None)), [9, 4, 7], max_tokens=40, plain=True) for t in c.tokens
    ]
    assert tokens == plain_text
    assert drafts and {t for guesses in drafts for t in guesses} <= set(ids)
