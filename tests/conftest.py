"""Fixtures shared by all tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import write_base

    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    from tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("heads"), tiny_base)


@pytest.fixture
def text_data(tmp_path: Path) -> Path:
    """A data folder of short cyclic texts."""
    import json

    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 40), ("valid", 6)):
        rows = [{"text": "abcdefgh ijklm nopq " * 3 + str(i % 7)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder
