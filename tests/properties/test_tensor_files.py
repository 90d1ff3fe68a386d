"""Tensors come back from a file as they were written; a file that is not whole is one line, whatever of it is missing."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scratch import scratch_folder

from mtpd_mlx.files.safetensors import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    OF_HEADS,
    Raw,
    RawTensors,
    copy_tensors,
    read_header,
    write_raw,
)

BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def raw(dtypes: list[str]) -> st.SearchStrategy[Raw]:
    def of(dtype: str) -> st.SearchStrategy[Raw]:
        bits = np.dtype(BITS[ITEM_BYTES[dtype]])
        return arrays.arrays(bits, SHAPES).map(lambda values: Raw(dtype, values))

    return st.sampled_from(dtypes).flatmap(of)


READABLE = st.dictionaries(NAMES, raw(sorted(OF_HEADS)), max_size=5)
ANY_TYPE = st.dictionaries(NAMES, raw(sorted(ITEM_BYTES)), max_size=5)


def one_line(error: pytest.ExceptionInfo, file: Path) -> None:
    assert len(str(error.value).splitlines()) == 1 and str(error.value).startswith(str(file))


@given(READABLE)
def test_written_and_read(tensors: dict[str, Raw]) -> None:
    with scratch_folder() as out:
        file = out / "x.safetensors"
        write_raw(file, tensors)
        assert [f.name for f in out.iterdir()] == [file.name]
        read = RawTensors([file])
        table, start = read_header(file)
        assert list(table) == list(read.table) == list(tensors) and start % 8 == 0
        for name, tensor in tensors.items():
            got = read[name]
            assert got.dtype == tensor.dtype and got.bits.shape == tensor.bits.shape
            assert got.bits.tobytes() == tensor.bits.tobytes()
        with safetensors.safe_open(str(file), "numpy") as reader:  # the library sees the same
            assert set(reader.keys()) == set(tensors)
            for name, tensor in tensors.items():
                assert reader.get_slice(name).get_shape() == list(tensor.bits.shape)
                if tensor.dtype != "BF16":  # which numpy has not
                    assert reader.get_tensor(name).tobytes() == tensor.bits.tobytes()


LIBRARY = st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.int32, np.uint32, np.uint8])


@given(st.dictionaries(NAMES, LIBRARY.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)), min_size=1, max_size=5))
def test_what_the_library_writes(tensors: dict[str, np.ndarray]) -> None:
    with scratch_folder() as out:
        file = out / "x.safetensors"
        safetensors.numpy.save_file(tensors, file)
        read = RawTensors([file])
        assert set(read.table) == set(tensors)
        for name, values in tensors.items():
            assert read[name].bits.shape == values.shape and read[name].bits.tobytes() == values.tobytes()


@given(ANY_TYPE, st.data())
def test_copies_hold_the_same_bytes_in_the_order_asked_for(tensors: dict[str, Raw], data: st.DataObject) -> None:
    names = data.draw(st.permutations(list(tensors)).map(lambda n: n[: len(n) // 2 + 1]))
    with scratch_folder() as out:
        source, target = out / "a.safetensors", out / "b.safetensors"
        write_raw(source, tensors)
        copy_tensors(source, target, names)
        table, start = read_header(target)
        content = target.read_bytes()[start:]
        assert list(table) == list(names)
        for name, entry in table.items():
            begin, end = entry["data_offsets"]
            assert content[begin:end] == tensors[name].bits.tobytes()
            assert (entry["dtype"], entry["shape"]) == (tensors[name].dtype, list(tensors[name].bits.shape))
            if entry["dtype"] not in OF_HEADS:
                with pytest.raises(ValueError, match="got dtype"):
                    RawTensors([target])[name]


def test_a_name_of_several_lines_is_told_in_one(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_raw(file, {"a\nmtpd: all is well": Raw("BOOL", np.zeros(1, "u1"))})
    with pytest.raises(ValueError, match="got dtype") as error:
        RawTensors([file])["a\nmtpd: all is well"]
    one_line(error, file)


@given(st.dictionaries(NAMES, raw(sorted(ITEM_BYTES)), max_size=2))
@example({})
@example({"a": Raw("F32", np.zeros((2, 0), "<u4")), "b": Raw("U8", np.ones((), "u1"))})
def test_cut_at_any_byte(tensors: dict[str, Raw]) -> None:
    """And with bytes too many."""
    with scratch_folder() as out:
        file = out / "x.safetensors"
        write_raw(file, tensors)
        whole = file.read_bytes()
        for size in range(len(whole)):
            file.write_bytes(whole[:size])
            with pytest.raises(ValueError) as error:
                RawTensors([file])
            one_line(error, file)
        file.write_bytes(whole + b"\0")
        with pytest.raises(ValueError, match="truncated or damaged"):
            RawTensors([file])


@given(st.dictionaries(NAMES, raw(sorted(OF_HEADS)), min_size=1, max_size=3), st.data())
def test_any_byte_of_the_header_may_be_wrong(tensors: dict[str, Raw], data: st.DataObject) -> None:
    """It is one line, or a header that fits the data: a name may be spelt differently, never may bytes be read beyond it."""
    with scratch_folder() as out:
        file = out / "x.safetensors"
        write_raw(file, tensors)
        content = bytearray(file.read_bytes())
        _, start = read_header(file)
        for _ in range(20):
            changed = bytearray(content)
            changed[data.draw(st.integers(0, start - 1))] = data.draw(st.integers(0, 255))
            file.write_bytes(changed)
            try:
                read = RawTensors([file])
                for name, entry in read.table.items():
                    if entry["dtype"] in OF_HEADS:
                        assert list(read[name].bits.shape) == entry["shape"]
            except ValueError as error:
                assert len(str(error).splitlines()) == 1


ODD = st.one_of(st.none(), st.booleans(), st.integers(-3, 99), st.floats(), st.text(max_size=3), st.just([]), st.just({}))
ENTRIES = st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets"]),
    st.one_of(ODD, st.lists(ODD, max_size=3), st.sampled_from(["F32", "U8", [4], [0, 4], [0, 16], [1 << 70]])),
)
HEADERS = st.one_of(ODD, st.lists(ODD, max_size=2), st.dictionaries(st.text(max_size=3), st.one_of(ODD, ENTRIES), max_size=3))


@given(HEADERS, st.integers(0, 16))
@example({"a": {"dtype": "U8", "shape": [10**30, 0], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "?", "shape": [-1], "data_offsets": [0, 4]}}, 4)
def test_any_json_for_a_header(header: object, size: int) -> None:
    with scratch_folder() as out:
        file = out / "x.safetensors"
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + b"\x01" * size)
        try:
            read = RawTensors([file])
            for name in read.table:
                read[name]
        except ValueError as error:
            assert len(str(error).splitlines()) == 1


@given(st.integers(MAX_HEADER_BYTES, 2**64 - 1))
def test_lengths_that_no_header_has(length: int) -> None:
    """Nothing of that size is read or reserved."""
    with scratch_folder() as out:
        file = out / "x.safetensors"
        file.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ValueError, match="not a whole safetensors file") as error:
            read_header(file)
        one_line(error, file)


def test_a_header_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    with file.open("wb") as f:
        f.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        f.truncate(MAX_HEADER_BYTES + 100)  # the file is long enough
    with pytest.raises(ValueError, match="header"):
        read_header(file)
