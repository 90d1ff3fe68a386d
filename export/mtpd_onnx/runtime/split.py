"""`SplitModel`: the StepModel of layout split: growing caches in numpy arrays, two graphs.
Called by runtime/open.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtpd_mlx.speculative.finite import check_logits
from mtpd_onnx.errors import one_line
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.limits import check_rewind, need_room
from mtpd_onnx.runtime.runner import check_inputs, float_type

Caches = dict[str, np.ndarray]  # by the names of the inputs, [heads, positions, size]


class SplitModel:
    """The split layout as a StepModel: caches grow, positions and masks are ordinary inputs, numpy does the rest."""

    def __init__(self, main: Any, heads: Any, manifest: Manifest):
        self._main, self._heads = main, heads
        self.num_draft_tokens, self.capacity = manifest.num_heads, manifest.capacity
        self._float = float_type(manifest)
        layers = manifest.dims["num_layers"]
        kept = [manifest.kept(i) for i in range(layers + manifest.num_heads)]
        self._cache, self._head_cache = (empty_caches(part, self._float) for part in (kept[:layers], kept[layers:]))
        kind = "tensor(float16)" if self._float is np.float16 else "tensor(float)"
        for session, caches in ((main, self._cache), (heads, self._head_cache)):
            check_inputs(session, {name: (kind, array.shape) for name, array in caches.items()})
        self._tokens: list[int] = []
        self._states: np.ndarray = np.zeros((0, manifest.dims["hidden_size"]), self._float)  # h^0 at every cached position
        self._head_length = 0  # positions of the head caches known to be final

    @property
    def length(self) -> int:
        return len(self._tokens)

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        predicted, _ = self._append(tokens)
        return predicted

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        logits = self._append(tokens)[1].astype(np.float32)
        check_logits(logits, self.length - len(tokens) + 1)
        return logits

    def _append(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        need_room(self, len(tokens))
        inputs = self._inputs(np.asarray(tokens, dtype=np.int64), self.length, self._cache)
        with one_line("onnxruntime"):
            predicted, logits, hidden, *grown = self._main.run(None, inputs)
            self._cache = dict(zip(self._cache, grown, strict=True))
        self._states = np.concatenate([self._states, hidden])
        self._tokens += [int(t) for t in tokens]  # last: should it be interrupted before, rewind_to cuts the others
        return predicted, logits

    def _inputs(self, tokens: np.ndarray, start: int, caches: Caches) -> dict[str, np.ndarray]:
        rows = np.arange(start, start + len(tokens), dtype=np.int64)
        blocked = np.arange(start + len(tokens))[None, :] > rows[:, None]
        low = -1e4 if self._float is np.float16 else -1e9
        mask: np.ndarray = np.where(blocked, low, 0).astype(self._float)
        return {"tokens": tokens, "positions": rows, "mask": mask} | caches

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        del self._tokens[length:]
        self._states = self._states[:length]
        self._cache = cut(self._cache, length)
        self._head_length = min(self._head_length, max(0, length - self.num_draft_tokens))

    def draft(self, next_token: int) -> list[int]:
        """The window starts where the head caches stop being final: entry s of head k needs x_{s+k} to be known."""
        start = self._head_length
        tokens = np.array([*self._tokens[start + 1 :], next_token], dtype=np.int64)
        inputs = self._inputs(tokens, start, cut(self._head_cache, start))
        with one_line("onnxruntime"):
            drafts, *grown = self._heads.run(None, inputs | {"hidden": self._states[start:]})
            self._head_cache = dict(zip(self._head_cache, grown, strict=True))
        self._head_length = max(0, self.length - self.num_draft_tokens)
        return drafts.tolist()


def empty_caches(kept: Sequence[Mapping[str, tuple[int, int, int]]], kind: type) -> Caches:
    """Of no positions; kept: of each block the names and sizes (Manifest.kept)."""
    shapes = {f"past.{i}.{name}": (heads, 0, size) for i, own in enumerate(kept) for name, (heads, _, size) in own.items()}
    return {name: np.zeros(shape, kind) for name, shape in shapes.items()}


def cut(caches: Caches, length: int) -> Caches:
    """Their first `length` positions."""
    return {name: array[:, :length] for name, array in caches.items()}
