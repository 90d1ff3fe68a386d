"""files/safetensors: names, types and shapes of what is read; what a planned file looks like; what a copy holds in memory."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.files.model_files import model_files
from mtpd_mlx.files.safetensors import ITEM_BYTES, Raw, RawTensors, copy_tensors, lay_out, read_header, write_raw
from mtpd_mlx.teacher_cache.format import Layout, shard_header

DEMO = Path(__file__).parents[2] / "mtpd_mlx" / "assets" / "demo"


def raw(*values: float) -> Raw:
    return Raw.of_floats(np.array(values, np.float32))


def test_every_type_and_shape_comes_back(tmp_path: Path) -> None:
    file, rng = tmp_path / "a.safetensors", np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(), (0,), (3,), (2, 0, 4), (2, 3)]
    held = {
        f"{dtype}{shape}": Raw(dtype, rng.integers(0, 1 << 8 * width, shape, f"u{width}", endpoint=False))
        for dtype, width in ITEM_BYTES.items()
        for shape in shapes
        if width < 8
    }
    write_raw(file, held)
    source = RawTensors([file])
    assert list(source) == list(held)
    for name, expected in held.items():
        got = source.mapped(name)
        assert got.dtype == expected.dtype and got.bits.dtype == expected.bits.dtype
        assert source.shape(name) == got.bits.shape == expected.bits.shape and np.array_equal(got.bits, expected.bits)
        assert source.data(name).tobytes() == expected.bits.tobytes()


def test_names_types_and_what_is_missing(tmp_path: Path) -> None:
    first, second = tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"
    write_raw(first, {"x.a": raw(1), "x.b": raw(2), "other": raw(3)})
    write_raw(second, {"x.c": Raw("BOOL", np.ones(1, np.uint8))})
    source = RawTensors.of_model(tmp_path, lambda name: name.removeprefix("x.") if name.startswith("x.") else None)
    assert list(source) == ["a", "b", "c"] and "other" not in source
    assert [source[name].floats().tolist() for name in "ab"] == [[1.0], [2.0]]
    with pytest.raises(ValueError, match=r"model-2\.safetensors: 'c': got dtype BOOL, expected F64 or I64 or F32"):
        source["c"]
    with pytest.raises(ValueError, match=r"model-1\.safetensors: 'a': got dtype F32, expected I32$"):
        source.mapped("a", ["I32"])
    for read in (source.data, source.mapped, source.shape, source.__getitem__):
        with pytest.raises(ValueError, match="weights: missing key 'd'"):
            read("d")
    assert model_files(tmp_path) == [first, second] and model_files(tmp_path / "none") == []
    with pytest.raises(ValueError, match=r"none: no model\*\.safetensors in it"):
        RawTensors.of_model(tmp_path / "none")


def test_a_type_that_numpy_has_no_word_for_is_copied(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [6], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + b"abc")
    copy_tensors(tmp_path / "a", tmp_path / "b", ["a"])
    assert read_header(tmp_path / "b")[0] == read_header(tmp_path / "a")[0]
    assert RawTensors([tmp_path / "b"]).data("a").tobytes() == b"abc"
    with pytest.raises(ValueError, match="got dtype F4"):
        RawTensors([tmp_path / "b"]).mapped("a")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the descriptors of Linux")
def test_a_file_is_mapped_once(tmp_path: Path) -> None:
    """macOS gives a process 256 descriptors, and a cache has many shards open."""
    write_raw(tmp_path / "a", {str(i): raw(i) for i in range(50)})
    source = RawTensors([tmp_path / "a"])
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    views = [source.mapped(name) for name in source]
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
    assert [view.floats()[0] for view in views] == list(range(50))


def test_planned_files_are_those_that_older_versions_wrote() -> None:
    """The size of a shard is in the index, and the fingerprint of a base in its heads."""
    head, begins, size = shard_header(Layout(2, 9, 3, 1, "float16", "float32"), 4)
    text = (
        b'{"__metadata__":{"format":"mlx"},"tokens":{"dtype":"I32","shape":[4,3],"data_offsets":[0,48]},'
        b'"segments":{"dtype":"I32","shape":[4,3],"data_offsets":[48,96]},'
        b'"main_loss":{"dtype":"F32","shape":[4,3],"data_offsets":[96,144]},'
        b'"logsumexp":{"dtype":"F32","shape":[4,3],"data_offsets":[144,192]},'
        b'"top_logits":{"dtype":"F32","shape":[4,3,1],"data_offsets":[192,240]},'
        b'"hidden":{"dtype":"F16","shape":[4,3,2],"data_offsets":[240,288]},'
        b'"top_tokens":{"dtype":"U16","shape":[4,3,1],"data_offsets":[288,312]},'
        b'"loss_mask":{"dtype":"BOOL","shape":[4,3],"data_offsets":[312,324]}}'
    )
    text += b" " * (-len(text) % 8)
    assert head == struct.pack("<Q", len(text)) + text
    assert begins["loss_mask"] == len(head) + 312 and size == len(head) + 324
    assert lay_out([], "pt")[2] == len(lay_out([], "pt")[0])
    recorded = json.loads((DEMO / "heads" / "mtp_config.json").read_text())["base"]["fingerprint"]
    assert fingerprint_base(DEMO / "base") == recorded
