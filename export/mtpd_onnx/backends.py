"""Backends of mtpd_mlx.speculative over onnxruntime: fused rounds, plain decoding, and the split layout."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtpd_mlx.speculative.protocol import Round
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.sessions import import_onnxruntime

PREFILL_CHUNK = 512


class Bound:
    """A session whose caches live in one place: each buffer is bound as input and as output."""

    def __init__(self, session: Any, manifest: Manifest, provider: str, num_heads: int):
        ort = import_onnxruntime()
        self._session = session
        self._bindings: dict[tuple[str, ...], Any] = {}
        shape = [1, manifest.dims["num_kv_heads"], manifest.capacity, manifest.dims["head_dim"]]
        dtype = np.float16 if manifest.precision == "fp16" else np.float32
        stems = [(f"past_key_values.{i}", f"present.{i}") for i in range(manifest.dims["num_layers"])]
        stems += [(f"past_mtp.{k}", f"present_mtp.{k}") for k in range(num_heads)]
        self._caches = [
            (
                f"{past}.{part}",
                f"{present}.{part}",
                ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), provider, 0),
            )
            for past, present in stems
            for part in ("key", "value")
        ]

    def run(self, inputs: dict[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
        """Feeds `inputs` from host memory and reads `outputs` back; the caches stay where they are."""
        binding = self._binding(outputs)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name in outputs:
            binding.bind_output(name, "cpu")  # again each time: a bound output keeps the shape of its last run
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()[: len(outputs)]]

    def _binding(self, outputs: tuple[str, ...]) -> Any:
        """One binding per set of outputs; `outputs` first, in order, then the caches."""
        if outputs not in self._bindings:
            binding = self._session.io_binding()
            for name in outputs:  # bound first, so that they come first
                binding.bind_output(name, "cpu")
            for past, present, buffer in self._caches:
                binding.bind_ortvalue_input(past, buffer)
                binding.bind_ortvalue_output(present, buffer)
            self._bindings[outputs] = binding
        return self._bindings[outputs]


class PlainBackend:
    """The main model alone, one token a step: the baseline of every speed-up."""

    num_draft_tokens = 0

    def __init__(self, session: Any, manifest: Manifest, provider: str):
        self.bound = Bound(session, manifest, provider, 0)
        self.capacity, self.length = manifest.capacity, 0

    def prefill(self, tokens: Sequence[int]) -> int:
        for start in range(0, len(tokens), PREFILL_CHUNK):
            (predicted,) = self._run(tokens[start : start + PREFILL_CHUNK], ("predicted",))
        return int(predicted[-1])

    def step(self, token: int) -> int:
        return int(self._run([token], ("predicted",))[0][-1])

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends `tokens`; float32 logits [n, V] (parity reports)."""
        return self._run(tokens, ("logits",), every_row=True)[0].astype(np.float32)

    def _run(self, tokens: Sequence[int], outputs: tuple[str, ...], every_row: bool = False) -> list[np.ndarray]:
        need_room(self, len(tokens))
        inputs: dict[str, np.ndarray] = {
            "tokens": np.asarray(tokens, dtype=np.int64),
            "checked": np.arange(0 if every_row else len(tokens) - 1, len(tokens), dtype=np.int64),
            "main_seqlens": np.array([self.length + len(tokens) - 1], dtype=np.int32),
        }
        results = self.bound.run(inputs, outputs)
        self.length += len(tokens)
        return results

    def round(self, token: int) -> Round:
        return Round([self.step(token)], 0, 0)

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        self.length = length


def need_room(backend: Any, positions: int) -> None:
    if backend.length + positions > backend.capacity:
        raise ValueError(f"context full: {backend.length} + {positions} positions, capacity {backend.capacity}")


def check_rewind(backend: Any, length: int) -> None:
    if not 0 <= length <= backend.length:
        raise ValueError(f"rewind_to: got {length}, expected 0..{backend.length}")


class FusedBackend:
    """One session.run per round: verify, accept and the whole draft chain (graphs.build_round)."""

    def __init__(self, session: Any, manifest: Manifest, provider: str):
        self.num_draft_tokens, self.capacity = manifest.num_heads, manifest.capacity
        self.bound = Bound(session, manifest, provider, manifest.num_heads)
        self._float = np.float16 if manifest.precision == "fp16" else np.float32
        self._width = manifest.dims["hidden_size"]
        self._tokens: list[int] = []
        self._clear()

    @property
    def length(self) -> int:
        return len(self._tokens)

    def _clear(self) -> None:
        k = self.num_draft_tokens
        self._hidden_tail = np.zeros((k, self._width), self._float)
        self._token_tail = np.zeros(k, np.int64)
        self._drafts: list[int] = []
        self._next = -1  # the token that the drafts follow
        self._stale = 0  # trailing positions whose states must be computed again after a rewind

    def prefill(self, tokens: Sequence[int]) -> int:
        need_room(self, len(tokens))
        self._refresh()
        for start in range(0, len(tokens), PREFILL_CHUNK):
            emitted = self._run(tokens[start : start + PREFILL_CHUNK], forced=True)
        return emitted[-1]

    def step(self, token: int) -> int:
        need_room(self, 1)
        self._refresh()
        return self._run([token], forced=True)[-1]

    def round(self, token: int) -> Round:
        """Proposes nothing, and takes a plain step through the same graph, in a context of fewer than K tokens and where
        `token` is not the one that the drafts follow."""
        need_room(self, 1 + self.num_draft_tokens)
        self._refresh()
        if self.length < self.num_draft_tokens or token != self._next:
            return Round([self._run([token], forced=True)[-1]], 0, 0)
        emitted = self._run([token, *self._drafts], forced=False)
        return Round(emitted, len(emitted) - 1, self.num_draft_tokens)

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        if length == self.length:
            return
        del self._tokens[length:]
        if length == 0:
            self._clear()
        else:
            self._stale = min(self.num_draft_tokens, length)

    def _refresh(self) -> None:
        """After a rewind: runs the last K kept tokens again, which restores the tails, the heads' caches and drafts."""
        if self._stale:
            again, self._stale = self._tokens[-self._stale :], 0
            del self._tokens[-len(again) :]
            self._hidden_tail[:] = 0
            self._run(again, forced=True, window=len(again))

    def _run(self, tokens: Sequence[int], forced: bool, window: int | None = None) -> list[int]:
        """One run; returns the emitted tokens (where forced, the last one alone) and moves the state on to t = P + a."""
        k, past, size = self.num_draft_tokens, self.length, len(tokens)
        if window is None:
            window = min(k, past) + (size if forced else 1)
        array = np.asarray(tokens, dtype=np.int64)
        inputs: dict[str, np.ndarray] = {
            "tokens": array,
            "checked": np.arange(size - 1 if forced else 0, size, dtype=np.int64),
            "main_seqlens": np.array([past + size - 1], np.int32),
            "past_length": np.array([past], np.int32),
            "window": np.arange(k - window + 1, k + 1, dtype=np.int64),
            "hidden_tail": self._hidden_tail,
            "token_tail": self._token_tail,
        }
        outputs = ("predicted", "accepted", "drafts", "next_hidden_tail", "next_token_tail")
        predicted, accepted, drafts, self._hidden_tail, self._token_tail = self.bound.run(inputs, outputs)
        count = int(accepted[0])
        self._tokens += [int(t) for t in tokens[: count + 1]]
        emitted = predicted[: None if forced else count + 1].tolist()
        self._drafts, self._next = drafts.tolist(), emitted[-1]
        return emitted


class SplitModel:
    """The split layout as a StepModel: caches grow, positions and masks are ordinary inputs, numpy does the rest."""

    def __init__(self, main: Any, heads: Any, manifest: Manifest):
        self._main, self._heads = main, heads
        self.num_draft_tokens, self.capacity = manifest.num_heads, manifest.capacity
        self._float = np.float16 if manifest.precision == "fp16" else np.float32
        empty = np.zeros((manifest.dims["num_kv_heads"], 0, manifest.dims["head_dim"]), self._float)
        self._cache = [empty] * (2 * manifest.dims["num_layers"])
        self._head_cache = [empty] * (2 * manifest.num_heads)
        self._tokens: list[int] = []
        self._states = np.zeros((0, manifest.dims["hidden_size"]), self._float)  # h^0 at every cached position
        self._head_length = 0  # positions of the head caches known to be final

    @property
    def length(self) -> int:
        return len(self._tokens)

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        predicted, _ = self._append(tokens)
        return predicted

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return self._append(tokens)[1].astype(np.float32)

    def _append(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        need_room(self, len(tokens))
        inputs = self._inputs(np.asarray(tokens, dtype=np.int64), self.length, self._cache)
        predicted, logits, hidden, *self._cache = self._main.run(None, inputs)
        self._tokens += [int(t) for t in tokens]
        self._states = np.concatenate([self._states, hidden])
        return predicted, logits

    def _inputs(self, tokens: np.ndarray, start: int, caches: list[np.ndarray]) -> dict[str, np.ndarray]:
        rows = np.arange(start, start + len(tokens), dtype=np.int64)
        blocked = np.arange(start + len(tokens))[None, :] > rows[:, None]
        names = [f"past.{i // 2}.{'value' if i % 2 else 'key'}" for i in range(len(caches))]
        low = -1e4 if self._float is np.float16 else -1e9
        mask = np.where(blocked, low, 0).astype(self._float)
        return {"tokens": tokens, "positions": rows, "mask": mask} | dict(zip(names, caches, strict=True))

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        del self._tokens[length:]
        self._states = self._states[:length]
        self._cache = [c[:, :length] for c in self._cache]
        self._head_length = min(self._head_length, max(0, length - self.num_draft_tokens))

    def draft(self, next_token: int) -> list[int]:
        """The window starts where the head caches stop being final: entry s of head k needs x_{s+k} to be known."""
        start = self._head_length
        tokens = np.array([*self._tokens[start + 1 :], next_token], dtype=np.int64)
        inputs = self._inputs(tokens, start, [c[:, :start] for c in self._head_cache])
        drafts, *self._head_cache = self._heads.run(None, inputs | {"hidden": self._states[start:]})
        self._head_length = max(0, self.length - self.num_draft_tokens)
        return drafts.tolist()
