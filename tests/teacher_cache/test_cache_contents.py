"""What a cache holds equals what the base says, computed directly."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.cache import TOP_N, make, rows_of
from tiny import FAMILIES, LLAMA, VOCAB, write_base, write_quantised

from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.teacher_cache.arrays import to_mlx, to_numpy
from mtpd_mlx.teacher_cache.format import Layout, Tensor, bytes_per_token, read_index
from mtpd_mlx.teacher_cache.reader import CachedBatch, CachedDataset
from mtpd_mlx.teacher_cache.teacher import top_logits


def check_batch(base: Base, batch: CachedBatch, atol: float) -> None:
    """The oracle: whole logits, numpy's stable argsort, float64 log-sum-exp."""
    tokens = batch.tokens
    hidden = base.trunk(mx.array(tokens))
    logits = np.array(base.logits(base.norm(hidden)).astype(mx.float32)).astype(np.float64)  # [B, T, V]
    np.testing.assert_allclose(np.array(to_mlx(batch.hidden, batch.hidden_dtype)), np.array(hidden), atol=atol, rtol=atol)
    best = -np.sort(-logits, axis=-1)[..., : batch.top_logits.shape[-1]]
    np.testing.assert_allclose(batch.top_logits, best, atol=atol, rtol=atol)
    ids = batch.top_tokens.astype(np.int64)
    np.testing.assert_allclose(np.take_along_axis(logits, ids, -1), batch.top_logits, atol=atol, rtol=atol)
    assert all(len(set(row)) == len(row) for row in ids.reshape(-1, ids.shape[-1]).tolist())
    logsumexp = np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(batch.logsumexp, logsumexp, atol=1e-4, rtol=1e-5)
    picked = np.take_along_axis(logits[:, :-1], tokens[:, 1:, None].astype(np.int64), -1)[..., 0]
    np.testing.assert_allclose(batch.main_loss[:, :-1], logsumexp[:, :-1] - picked, atol=1e-4, rtol=1e-4)
    assert not batch.main_loss[:, -1].any()


@pytest.mark.parametrize("family", ["llama-tied", "qwen3"])
def test_contents_equal_a_direct_computation(family: str, text_data: Path, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", FAMILIES[family])
    index = make(folder, text_data, tmp_path / "cache")
    assert index.complete and index.layout.dtype == index.layout.logits_dtype == "float32"
    assert len(index.splits["train"].shards) > 2
    base = load_base(str(folder))
    for split in ("train", "valid"):
        for batch in CachedDataset(tmp_path / "cache", split, 3, 0).iter_batches(3):
            check_batch(base, batch, 1e-4)


@pytest.mark.parametrize("dequantize", [False, True])
def test_quantised_base(dequantize: bool, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    folder = write_quantised(tmp_path / "q", tiny_base, 4, 64)
    make(folder, text_data, tmp_path / "cache", dequantize=dequantize)
    base = load_base(str(folder), dequantize=dequantize)
    assert base.is_quantized is not dequantize
    check_batch(base, CachedDataset(tmp_path / "cache", "train", 4, 1).batch(0), 1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_storage(dtype: str, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    index = make(tiny_base, text_data, tmp_path / "cache", cache_dtype=dtype)
    assert (index.layout.dtype, index.layout.logits_dtype) == (dtype, "float32")
    batch = CachedDataset(tmp_path / "cache", "train", 2, 0).batch(0)
    assert batch.hidden.dtype == ("uint16" if dtype == "bfloat16" else "float16") and batch.hidden_dtype == dtype
    expected = load_base(str(tiny_base)).trunk(mx.array(batch.tokens)).astype(getattr(mx, dtype))
    np.testing.assert_allclose(
        np.array(to_mlx(batch.hidden, dtype).astype(mx.float32)), np.array(expected.astype(mx.float32)), rtol=1e-2, atol=1e-3
    )


def test_bfloat16_logits_are_exact_in_float16(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    index = make(tiny_base, text_data, tmp_path / "cache", compute_dtype="bfloat16", cache_dtype="bfloat16")
    assert index.layout.logits_dtype == "float16"
    dataset = CachedDataset(tmp_path / "cache", "train", 2, 0)
    batch = next(dataset.iter_batches(2))
    base = load_base(str(tiny_base), dtype=mx.bfloat16)
    hidden = base.trunk(mx.array(batch.tokens))
    assert np.array_equal(to_numpy(hidden), batch.hidden)
    logits = base.logits(base.norm(hidden.reshape(-1, hidden.shape[-1])))
    wide = np.array(logits.astype(mx.float32))
    ids = np.argsort(-wide, axis=-1, kind="stable")[:, :TOP_N]
    assert np.array_equal(batch.top_tokens.reshape(ids.shape), ids)
    best = np.take_along_axis(wide, ids, -1)
    assert np.array_equal(batch.top_logits.reshape(ids.shape)[best > 1e-4], best[best > 1e-4].astype(np.float16))
    assert np.array_equal(best.astype(np.float16).astype(np.float32)[best > 1e-4], best[best > 1e-4])


@pytest.mark.parametrize("top_n", [1, 5, 39, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_selection_equals_a_stable_argsort_with_ties(top_n: int, dtype: str) -> None:
    rng = np.random.default_rng(top_n)
    values = rng.integers(-3, 4, (50, 40)).astype(np.float32) * np.float32(0.25)
    values[:, ::7] *= -1  # brings -0.0 among the zeros
    values[0], values[1], values[2, 3] = 0.0, -1e30 if dtype != "float16" else -6e4, 6e4
    logits = mx.array(values).astype(getattr(mx, dtype))
    ids, top = top_logits(logits, top_n)
    wide = np.array(logits.astype(mx.float32))
    expected = np.argsort(-wide, axis=-1, kind="stable")[:, :top_n]
    assert np.array_equal(np.array(ids), expected)
    assert np.array_equal(np.array(top.astype(mx.float32)), np.take_along_axis(wide, expected, -1))


def test_chunks_do_not_change_the_result(tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import mtpd_mlx.teacher_cache.teacher as teacher

    whole = make(tiny_base, text_data, tmp_path / "whole")
    seen = []
    compute = teacher._chunk
    monkeypatch.setattr(teacher, "CHUNK_BYTES", 4 * VOCAB * 5)
    monkeypatch.setattr(teacher, "_chunk", lambda *a: seen.append(a[2].shape[0]) or compute(*a))
    chunked = make(tiny_base, text_data, tmp_path / "chunked")
    assert max(seen) == 5 and min(seen) == 64 % 5
    a, b = (CachedDataset(tmp_path / name, "train", 4, 0).batch(0) for name in ("whole", "chunked"))
    np.testing.assert_allclose(a.top_logits, b.top_logits, atol=1e-5)
    np.testing.assert_allclose(a.main_loss, b.main_loss, atol=1e-5)
    assert whole.layout == chunked.layout


def test_batches_equal_those_of_the_packed_dataset(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    make(tiny_base, text_data, tmp_path / "cache")
    for split in ("train", "valid"):
        for batch_size, seed in ((2, 0), (5, 3)):
            packed = getattr(rows_of(tiny_base, text_data, batch_size, seed), split)
            cached = CachedDataset(tmp_path / "cache", split, batch_size, seed)
            assert (cached.num_rows, cached.num_tokens, cached.sha256) == (packed.num_rows, packed.num_tokens, packed.sha256)
            pairs = [(packed.batch(step), cached.batch(step)) for step in (0, 1, 7, 100)]
            pairs += zip(packed.iter_batches(batch_size), cached.iter_batches(batch_size), strict=True)
            for expected, got in pairs:
                for name in ("tokens", "segments", "loss_mask"):
                    a, b = getattr(expected, name), getattr(got, name)
                    assert np.array_equal(a, b) and a.dtype == b.dtype


def test_unpacked_masked_and_held_out_rows(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "abc" * (i % 4 + 1), "completion": "xyz" * (i % 5 + 1)} for i in range(30)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    options = {"pack": False, "mask_prompt": True, "valid_share": 0.2}
    index = make(tiny_base, file, tmp_path / "cache", **options)
    splits = rows_of(tiny_base, file, 4, 2, **options)
    assert index.splits["valid"].rows == 6 and index.data["mask_prompt"] is True
    for split in ("train", "valid"):
        expected, got = getattr(splits, split).batch(1), CachedDataset(tmp_path / "cache", split, 4, 2).batch(1)
        assert np.array_equal(expected.tokens, got.tokens) and np.array_equal(expected.loss_mask, got.loss_mask)


def test_no_validation_split(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "hello " * 40}) + "\n")
    index = make(tiny_base, tmp_path, tmp_path / "cache", valid_share=0.0)
    assert list(index.splits) == ["train"] and index.data["valid_sha256"] is None
    with pytest.raises(ValueError, match="no split 'valid', expected one of train"):
        CachedDataset(tmp_path / "cache", "valid", 2, 0)


def test_epoch_order_is_that_of_the_packed_dataset(tiny_base: Path, text_data: Path) -> None:
    from mtpd_mlx.data.packing import epoch_order

    packed = rows_of(tiny_base, text_data, 2, 11).train
    for epoch in range(3):
        assert np.array_equal(epoch_order(packed.num_rows, 11, epoch), packed._order(epoch))


def test_disk_per_token_is_what_is_written(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    index = make(tiny_base, text_data, tmp_path / "cache")
    per_token = 4 + 4 + 1 + 64 * 4 + TOP_N * (2 + 4) + 4 + 4
    assert bytes_per_token(index.layout) == per_token
    for shard in (s for split in index.splits.values() for s in split.shards):
        assert 0 <= (tmp_path / "cache" / shard.file).stat().st_size - shard.rows * 32 * per_token < 1024
    large = Layout(64, 70_000, 32, 5, "bfloat16", "float16")
    assert large.tensors()["top_tokens"] == Tensor("int32", (32, 5))
    assert bytes_per_token(large) == 4 + 4 + 1 + 64 * 2 + 5 * (4 + 2) + 4 + 4


def test_shards_are_plain_safetensors(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    index = make(tiny_base, text_data, tmp_path / "cache")
    first = load_file(tmp_path / "cache" / "train-00000.safetensors")
    loaded = mx.load(str(tmp_path / "cache" / "train-00000.safetensors"))
    rows = rows_of(tiny_base, text_data).train.rows
    assert np.array_equal(first["tokens"], rows.tokens[: index.rows_per_shard])
    assert all(np.array_equal(np.array(loaded[name]), first[name]) for name in first)
    assert set(first) == set(index.layout.tensors())


def test_index_reads_back(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    index = make(tiny_base, text_data, tmp_path / "cache")
    assert read_index(tmp_path / "cache") == index
    values = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert values["hidden"] == "prenorm" and values["top_n"] == TOP_N and values["base"]["vocab_size"] == VOCAB


def test_top_n_is_at_most_the_vocabulary(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    index = make(tiny_base, text_data, tmp_path / "cache", top_n=10_000)
    assert index.layout.top_n == VOCAB
    batch = CachedDataset(tmp_path / "cache", "train", 2, 0).batch(0)
    logsumexp = np.log(np.exp(batch.top_logits.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(logsumexp, batch.logsumexp, atol=1e-4)


def test_overflow_is_refused_in_one_line(text_data: Path, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", LLAMA, scale=3000.0)
    with pytest.raises(ValueError, match="hidden: got inf or nan") as error:
        make(folder, text_data, tmp_path / "cache", cache_dtype="float16")
    assert "\n" not in str(error.value) and not list((tmp_path / "cache").glob("*.safetensors"))
