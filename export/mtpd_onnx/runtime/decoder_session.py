"""`DecoderSession`: runs of graphs/decoder.py, with the caches held in place.
Called by runtime/choosing.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mtpd_onnx.errors import one_line
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.runner import cache_state, check_inputs, device_array, float_type
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.sessions import import_onnxruntime

SMALL = 64  # numbers of an input, rows of an output, that are kept for the next run


@dataclass(frozen=True)
class Drafting:
    """What the heads do in a run: the first `count` of them see W positions up to `last`, where hidden [W, d] is h^0 and tokens
    [W] are x_{s+1}. verified: how many of their drafts the base verifies, at most; after a product of their largest
    probabilities below min_confidence no more are made."""

    count: int
    hidden: np.ndarray
    tokens: Sequence[int]
    last: int
    verified: int
    min_confidence: float = 0.0


@dataclass(frozen=True)
class Verified:
    """accepted, proposed: drafts of the run. emitted: the main head's tokens after the asked rows, meaningless beyond the first
    one that is not the token after it. hidden [S, d]: h^0 of the run's rows (without heads [0, d]), to be read before the
    next run."""

    accepted: int
    proposed: int
    emitted: list[int]
    hidden: np.ndarray


class Runs(Protocol):
    """What a backend of one text asks of a session. width: the hidden size."""

    width: int

    @property
    def base_caches(self) -> Mapping[str, Any]:
        """Keys and values of the base's layers, by input name: OrtValues, or arrays."""
        ...

    def begin(self) -> None:
        """Another text begins: sampling draws other random numbers."""
        ...

    def run(
        self, known: Sequence[int], past: int, first: int, recent: np.ndarray | None, drafting: Drafting | None = None
    ) -> Verified:
        """Appends `known` (N of them) at position `past`, and the heads' drafts behind them; asks the main head after the rows
        from `first` on. Sampled: `recent` are the tokens before them."""
        ...


class DecoderSession:
    """One session and its caches, on a CPU. Every run names all it needs: nothing but the caches outlives it.

    ValueError in one line where shapes do not fit the graph, or onnxruntime fails.
    """

    def __init__(self, session: Any, manifest: Manifest, sampling: SamplingState | None = None):
        self._session, self._sampling = session, sampling
        self.num_heads, self.width = manifest.num_heads, manifest.dims["hidden_size"]
        self._float = float_type(manifest)
        self._make = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type
        caches = cache_state(manifest, "cpu", manifest.num_heads)
        shapes = {name: (value.data_type(), value.shape()) for name, (_, value) in caches.items()}
        if self.num_heads:
            shapes["window_hidden"] = ("tensor(float)", [1, self.width])
        check_inputs(session, shapes)
        self._base_caches = {name: value for name, (_, value) in caches.items() if name.startswith("past_key_values.")}
        self._binding = session.io_binding()
        for name, (output, value) in caches.items():
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(output, value)
        self._drafted = True  # the last run had heads in it
        self._bound: dict[str, Any] = {}  # the value that is bound, by name
        self._values: dict[tuple[str, tuple[int, ...]], Any] = {}  # values to use again, by name and shape
        self.begin()

    def begin(self) -> None:
        if self._sampling is not None:
            self._bind(self._sampling.constants())

    def run(
        self, known: Sequence[int], past: int, first: int, recent: np.ndarray | None, drafting: Drafting | None = None
    ) -> Verified:
        inputs: dict[str, np.ndarray] = {
            "known": np.asarray(known, np.int64),
            "first": np.array([first], np.int64),
            "past_length": np.array([past], np.int32),
        }
        if recent is not None:
            inputs["recent"] = recent
        size = len(known) - first + self.num_heads + 2
        outputs: dict[str, tuple[tuple[int, ...], type]] = {"result": ((size,), np.int64)}
        if self.num_heads:
            inputs |= self._of_heads(drafting)
            outputs["hidden"] = ((len(known) + self.num_heads, self.width), self._float)
        result, *hidden = self._run(inputs, outputs)
        accepted, proposed, *emitted = result.tolist()
        rows = hidden[0][: len(known) + proposed] if hidden else np.zeros((0, self.width), self._float)
        return Verified(accepted, proposed + len(known) - 1 - first, emitted[: len(known) - first + proposed], rows)

    @property
    def base_caches(self) -> Mapping[str, Any]:
        return self._base_caches

    def _of_heads(self, drafting: Drafting | None) -> dict[str, np.ndarray]:
        """Nothing where no head runs now and none ran before: the same is bound already."""
        if drafting is None and not self._drafted:
            return {}
        self._drafted = drafting is not None
        made = drafting or Drafting(0, np.zeros((1, self.width), self._float), [0], 0, 0)
        return {
            "num_drafts": np.array([made.count], np.int64),
            "verified": np.array([made.verified], np.int64),
            "min_confidence": np.array([made.min_confidence], np.float32),
            "window_hidden": made.hidden,
            "window_tokens": np.asarray(made.tokens, np.int64),
            "window_last": np.array([made.last], np.int32),
        }

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Small inputs are written where those of the same shape lay before: binding a value takes longer than a small node."""
        for name, array in inputs.items():
            value = self._values.get((name, array.shape))
            if value is not None:
                value.update_inplace(np.ascontiguousarray(array))
            elif array.size <= SMALL:
                value = self._values[name, array.shape] = device_array(array.copy(), "cpu")  # a value lies on its array
            else:
                value = device_array(array, "cpu")
            if self._bound.get(name) is not value:
                self._binding.bind_ortvalue_input(name, value)
                self._bound[name] = value

    def _outputs(self, outputs: Mapping[str, tuple[tuple[int, ...], type]]) -> list[Any]:
        """Where a run writes these outputs, by shape and type; each array is to be read before the next run."""
        values = []
        for name, (shape, kind) in outputs.items():
            value = self._values.get((name, shape))
            if value is None:
                value = self._make(list(shape), kind, "cpu", 0)
                if shape[0] <= SMALL:
                    self._values[name, shape] = value
            if self._bound.get(name) is not value:
                self._binding.bind_ortvalue_output(name, value)
                self._bound[name] = value
            values.append(value)
        return values

    def _run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[tuple[int, ...], type]]) -> list[np.ndarray]:
        with one_line("onnxruntime"):
            self._bind(inputs)
            values = self._outputs(outputs)
            self._session.run_with_iobinding(self._binding)
            return [value.numpy() for value in values]
