"""One JSON object from a file: what is accepted, and that everything else is one line that names the file."""

import json
import os
from pathlib import Path

import pytest

from mtpd_mlx.files.json_object import parse_json_object, read_json_object


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_object_with_or_without_a_byte_order_mark(mark: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(mark + '{"a": "ü"}'.encode())
    assert read_json_object(file) == {"a": "ü"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON (Expecting value"),
        (b"{", "not valid JSON (Expecting property name"),
        (b'{"a": 1} x', "not valid JSON (Extra data"),
        (b"\xff\xfe{}", "not valid JSON (not UTF-8 text: byte 0)"),
        (b'{"a": "\xe9"}', "not valid JSON (not UTF-8 text: byte 7)"),
        (b"[" * 100_000, "not valid JSON (maximum recursion depth"),
        (b'{"a": ' * 100_000, "not valid JSON (maximum recursion depth"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON (Exceeds the limit"),
        (b"[]", "got list, expected an object"),
        (b'"a"', "got str, expected an object"),
        (b"null", "got NoneType, expected an object"),
        (b'{"a": 1}' + b" " * 93, "101 bytes, expected at most 100"),
    ],
)
def test_what_is_none_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    limit = 100 if "at most" in words else 1 << 20
    for what in (None, "--flag x"):
        with pytest.raises(ValueError) as error:
            read_json_object(file, what, limit)
        assert str(error.value).startswith(f"{what or file}: {words}") and "\n" not in str(error.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: missing$"):
        read_json_object(tmp_path / "none.json")
    with pytest.raises(ValueError, match="cannot be read"):
        read_json_object(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.json").chmod(0)
    if os.geteuid() != 0:  # who may read everything
        with pytest.raises(ValueError, match="cannot be read"):
            read_json_object(tmp_path / "a.json")


def test_contents_in_memory() -> None:
    assert parse_json_object(json.dumps({"a": 1}), "x") == parse_json_object(b'{"a": 1}', "x") == {"a": 1}
    with pytest.raises(ValueError, match=r"^x: got int, expected an object$"):
        parse_json_object("5", "x")
