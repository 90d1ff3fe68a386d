"""`HeldOut`: whether a prompt overlaps with text that is kept for evaluation. Called by prompts.py."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RUN = 13  # words in a row that no prompt may share with evaluation text
WHOLE = 5  # evaluation texts of so many words up to RUN must not stand in a prompt whole


def words(text: str) -> list[str]:
    return re.sub(r"[\W_]+", " ", text.lower()).split()


class HeldOut:
    """Texts of evaluation rows: of all strings in them, prompts, turns, tests and references alike."""

    def __init__(self, texts: Iterable[str]):
        self._runs: set[tuple[str, ...]] = set()
        self._short: set[tuple[str, ...]] = set()
        self._exact: set[tuple[str, ...]] = set()
        for text in texts:
            found = tuple(words(text))
            if found:
                self._exact.add(found)
            self._runs |= set(_runs(found, RUN))
            if WHOLE <= len(found) < RUN:
                self._short.add(found)
        self._lengths = sorted({len(text) for text in self._short})

    @classmethod
    def of_files(cls, files: Iterable[Path]) -> "HeldOut":
        """ValueError (FILE:LINE) for a line that is no JSON; of .txt files every line is a text."""
        return cls(text for file in files for text in _texts(file))

    def holds(self, text: str) -> bool:
        """Whether `text` equals one of them, shares a run of RUN words with one, or holds a short one whole."""
        found = tuple(words(text))
        if found in self._exact or any(run in self._runs for run in _runs(found, RUN)):
            return True
        return any(run in self._short for length in self._lengths for run in _runs(found, length))


def _runs(found: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    return (found[i : i + length] for i in range(len(found) - length + 1))


def _texts(file: Path) -> Iterator[str]:
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if file.suffix.lower() != ".jsonl":
            yield line
        elif line.strip():
            try:
                yield from _strings(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{file}:{number}: not JSON ({error})") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
