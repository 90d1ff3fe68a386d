"""A cache that is damaged, incomplete or not one is refused in one line."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cache import files_of, make
from helpers.runs import refused

import mtpd_mlx.teacher_cache.reader as reader
from mtpd_mlx.teacher_cache.reader import CachedDataset

BASE = {"id": "x", "fingerprint": "x", "model_type": "llama", "hidden_size": 64, "vocab_size": 97, "revision": None}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    for name, count in (("train", 40), ("valid", 6)):
        rows = [{"text": "abcdefgh ijklm nopq " * 3 + str(i % 7)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    make(tiny_base, folder, folder / "cache")
    return folder / "cache"


@pytest.fixture
def cache(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "cache"))


def read_all(cache: Path, split: str = "train") -> None:
    for _ in CachedDataset(cache, split, 2, 0).iter_batches(2):
        pass


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(bytes(content))


def test_missing_and_truncated_shards_are_refused_on_opening(cache: Path) -> None:
    shard = cache / "train-00001.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    refused(lambda: CachedDataset(cache, "train", 2, 0), str(shard), f"got {size - 1} bytes", f"expected {size}")
    refused(lambda: CachedDataset(cache, "valid", 2, 0), str(shard))
    shard.unlink()
    refused(lambda: CachedDataset(cache, "train", 2, 0), str(shard), "missing", f"expected {size} bytes")


@pytest.mark.parametrize("position", [3, 200, 5000, -1])
def test_bit_flip_is_refused_on_reading(position: int, cache: Path) -> None:
    shard = cache / "train-00001.safetensors"
    flip(shard, position)
    dataset = CachedDataset(cache, "train", 1, 0)  # sizes are right
    rows = dataset.index.rows_per_shard
    next(dataset.iter_batches(rows))  # the first shard is
    refused(lambda: read_all(cache), str(shard), "got sha256", "expected")
    read_all(cache, "valid")


def test_shard_of_another_layout_is_refused(cache: Path) -> None:
    """Right size and checksum, another header: an index put together by hand."""
    from mtpd_mlx.teacher_cache.format import file_sha256

    shard = cache / "train-00000.safetensors"
    content = shard.read_bytes().replace(b'"segments"', b'"fragment"')
    shard.write_bytes(content)
    values = json.loads((cache / "cache.json").read_text())
    values["splits"]["train"]["shards"][0]["sha256"] = file_sha256(shard)
    (cache / "cache.json").write_text(json.dumps(values))
    refused(lambda: read_all(cache), str(shard), "header")


@pytest.mark.parametrize(("name", "bad"), [("tokens", 97), ("tokens", -1), ("top_tokens", 97)])
def test_tokens_outside_the_vocabulary_are_refused(name: str, bad: int, cache: Path) -> None:
    """Right size and checksum; MLX would read, or write, wherever such an id points to."""
    from mtpd_mlx.teacher_cache.format import file_sha256, read_index, shard_header

    index, shard = read_index(cache), cache / "train-00000.safetensors"
    values = json.loads((cache / "cache.json").read_text())
    entry = values["splits"]["train"]["shards"][0]
    at, kind = shard_header(index.layout, entry["rows"])[1][name], index.layout.tensors()[name].dtype
    content = bytearray(shard.read_bytes())
    content[at : at + np.dtype(kind).itemsize] = np.array([bad]).astype(kind).tobytes()
    shard.write_bytes(content)
    entry["sha256"] = file_sha256(shard)
    (cache / "cache.json").write_text(json.dumps(values))
    refused(lambda: read_all(cache), str(shard), f"{name}: got ids", "expected 0..96")


def test_sha256_is_checked_once_a_shard(cache: Path, monkeypatch: Any) -> None:
    seen = []
    check = reader.check_sha256
    monkeypatch.setattr(reader, "check_sha256", lambda file, shard: seen.append(file.name) or check(file, shard))
    monkeypatch.setattr(reader, "MAX_MAPPED", 1)
    dataset = CachedDataset(cache, "train", 3, 0)
    assert seen == []
    for step in range(3 * dataset.num_rows):
        dataset.batch(step)
    assert sorted(seen) == [name for name in files_of(cache) if name.startswith("train")]


def test_incomplete_cache_is_refused_with_a_hint(cache: Path) -> None:
    values = json.loads((cache / "cache.json").read_text())
    values["splits"]["valid"]["shards"].pop()
    (cache / "cache.json").write_text(json.dumps(values))
    refused(lambda: CachedDataset(cache, "train", 2, 0), "incomplete", "valid: ", f"mtpd cache --resume --out {cache}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "gguf"}, ["expected format 'mtpd-cache'"]),
        ({"format_version": 2}, ["got 2, expected 1"]),
        ({"hidden": "postnorm"}, ["hidden: got 'postnorm'", "prenorm"]),
        ({"dtype": "float64"}, ["dtype: got 'float64'", "bfloat16"]),
        ({"top_n": -1}, ["top_n: got -1, expected 0..97"]),
        ({"top_n": True}, ["top_n: got True"]),
        ({"top_n": 8}, ["train-00000.safetensors: got", "bytes, expected"]),
        ({"base": {**BASE, "id": 5}}, ["base.id: got 5, expected text"]),
        ({"data": None}, ["data: got 'None', expected dict"]),
        ({"data": {"pack": "yes"}}, ["data.pack: got 'yes', expected bool"]),
        ({"versions": []}, ["versions: got '[]'"]),
        ({"rows_per_shard": 1, "splits": {"train": {"rows": 1 << 60, "tokens": 1, "sha256": "", "shards": []}}}, ["at most"]),
        ({"max_seq_length": "32"}, ["max_seq_length: got '32'"]),
        ({"base": {"id": "x"}}, ["cache.json"]),
        ({"splits": {}}, ["splits: got none"]),
        ({"splits": {"train": {"rows": 5}}}, ["'shards'"]),
        ({"rows_per_shard": 3}, ["train-00000.safetensors: got", "expected 3 rows"]),
    ],
)
def test_bad_index(change: dict[str, Any], words: list[str], cache: Path) -> None:
    values = json.loads((cache / "cache.json").read_text()) | change
    (cache / "cache.json").write_text(json.dumps(values))
    refused(lambda: CachedDataset(cache, "train", 2, 0), str(cache / "cache.json"), *words)


def test_shards_named_outside_the_folder_or_twice(cache: Path) -> None:
    text = (cache / "cache.json").read_text()
    (cache / "cache.json").write_text(text.replace("train-00001", "../train-00001"))
    refused(lambda: CachedDataset(cache, "train", 2, 0), "shards out of order")
    (cache / "cache.json").write_text(text.replace("train-00001", "train-00000"))
    refused(lambda: CachedDataset(cache, "train", 2, 0), "twice")


def test_not_a_cache(tmp_path: Path) -> None:
    refused(lambda: CachedDataset(tmp_path, "train", 2, 0), "no cache.json")
    (tmp_path / "cache.json").write_text("{")
    refused(lambda: CachedDataset(tmp_path, "train", 2, 0), "not valid JSON")
    (tmp_path / "cache.json").write_text("[]")
    refused(lambda: CachedDataset(tmp_path, "train", 2, 0), "cache.json: got list, expected an object")


def test_batch_size_must_be_positive(cache: Path) -> None:
    refused(lambda: CachedDataset(cache, "train", 0, 0), "batch_size: got 0")
