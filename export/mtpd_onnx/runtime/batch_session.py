"""`BatchSession`: runs of graphs/batch.py over lines of caches, for several texts or for one alone.
Called by runtime/batch.py.

One session and one copy of the weights, whatever is drafted and however it is sampled.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtpd_onnx.errors import one_line
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.decoder_session import Drafting, Verified
from mtpd_onnx.runtime.grown_memory import zeros_as_used
from mtpd_onnx.runtime.packing import Part, Shape, pack, unpack
from mtpd_onnx.runtime.runner import cache_shapes, check_inputs, device_array, device_zeros, float_type
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.sessions import import_onnxruntime

ON_HOST = ("reach", "window_reach", "num_drafts")  # sizes and conditions, which the host needs to enqueue what follows
SMALL, FEW = 64, 16  # numbers of an input, rows of an output, that are kept for the next run


class BatchSession:
    """Caches of `lines` texts [lines, kv heads, capacity, head_dim]. Nothing but these outlives a run.

    ValueError in one line where shapes do not fit the graph, or onnxruntime fails.
    """

    def __init__(self, session: Any, manifest: Manifest, provider: str, lines: int):
        self.session, self.lines, self.provider = session, lines, provider
        dims = manifest.dims
        self.num_heads, self.width = manifest.num_heads, dims["hidden_size"]
        self.shape = Shape(
            self.num_heads, dims["vocab_size"], self.width, float_type(manifest), manifest.capacity, manifest.whole
        )
        self.arrays: dict[str, np.ndarray] = {}  # what the caches on a CPU lie on: memory is taken as it is written
        self.caches: dict[str, tuple[str, Any]] = {}
        for name, (output, size) in cache_shapes(manifest, self.num_heads, lines).items():
            if provider == "cpu":
                self.arrays[name] = zeros_as_used(size, self.shape.kind)
                self.caches[name] = output, device_array(self.arrays[name], "cpu")
            else:
                self.caches[name] = output, device_zeros(size, manifest, provider)
        shapes = {name: (value.data_type(), value.shape()) for name, (_, value) in self.caches.items()}
        if self.num_heads:
            kind = "tensor(float16)" if self.shape.kind == np.float16 else "tensor(float)"
            shapes["window_hidden"] = (kind, [1, self.width])
        check_inputs(session, shapes)
        self._all = Bound(self, None)
        self._lone: dict[int, Bound] = {}

    def run(self, parts: Sequence[Part]) -> list[Verified]:
        """Of different lines. What hidden states they have is to be read before the next run."""
        if len(parts) == 1:
            line = parts[0].line
            if line not in self._lone:
                self._lone[line] = Bound(self, line)
            return self._lone[line].run(parts)
        return self._all.run(parts)


class Bound:
    """The session with the caches of one line, or of all, as inputs and outputs."""

    def __init__(self, batch: BatchSession, line: int | None):
        self._batch, self._lines = batch, batch.lines if line is None else 1
        self._binding = batch.session.io_binding()
        self._values: dict[tuple[str, tuple[int, ...]], Any] = {}  # values to use again, by name and shape
        self._arrays: dict[str, np.ndarray] = {}  # what the inputs are, by name
        self._bound: dict[str, Any] = {}  # the value that is bound, by name
        for name, (output, value) in batch.caches.items():
            if line is None:
                self._binding.bind_ortvalue_input(name, value)
                self._binding.bind_ortvalue_output(output, value)
                continue
            shape = [1, *value.shape()[1:]]
            place = value.data_ptr() + line * int(np.prod(shape)) * np.dtype(batch.shape.kind).itemsize
            where = (batch.provider, 0, batch.shape.kind, shape, place)
            self._binding.bind_input(name, *where)
            self._binding.bind_output(output, *where)

    def run(self, parts: Sequence[Part]) -> list[Verified]:
        batch = self._batch
        own = parts if self._lines > 1 else [_in_first_line(parts[0])]
        with one_line("onnxruntime"):
            self._bind(pack(own, self._lines, batch.shape))
            rows = sum(part.rows for part in own)
            asked = sum(part.rows - part.first for part in own)
            result = self._output("result", (2 * asked,), np.int64)
            hidden = self._output("hidden", (rows, batch.width), batch.shape.kind) if batch.num_heads else None
            batch.session.run_with_iobinding(self._binding)
            states = np.zeros((0, batch.width), np.float32) if hidden is None else hidden.numpy()
            return unpack(own, result.numpy(), states)

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        """On CPUs small inputs are written where those of the same shape lay before, and the very same ones not at all."""
        for name, array in inputs.items():
            if self._arrays.get(name) is array:
                continue
            self._arrays[name] = array
            place = "cpu" if name in ON_HOST else self._batch.provider
            small = place == "cpu" and array.size <= SMALL
            value = self._values.get((name, array.shape)) if small else None
            if value is None:
                value = device_array(array.copy() if small else array, place)  # a value lies on its array
                if small:
                    self._values[name, array.shape] = value
            elif array.size:
                value.update_inplace(np.ascontiguousarray(array))
            if self._bound.get(name) is not value:
                self._binding.bind_ortvalue_input(name, value)
                self._bound[name] = value

    def _output(self, name: str, shape: tuple[int, ...], kind: type) -> Any:
        value = self._values.get((name, shape))
        if value is None:
            value = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(list(shape), kind, "cpu", 0)
            if value.shape()[0] <= FEW:
                self._values[name, shape] = value
        if self._bound.get(name) is not value:
            self._binding.bind_ortvalue_output(name, value)
            self._bound[name] = value
        return value


def _in_first_line(part: Part) -> Part:
    """`part`, where a line has the graph for itself."""
    return part if part.line == 0 else Part(0, part.known, part.past, part.first, part.drafting, part.sampling, part.recent)


class RowSession:
    """One line of a BatchSession, as the session of a backend of one text."""

    def __init__(self, batch: BatchSession, line: int, sampling: SamplingState | None):
        self.batch, self.line, self._sampling = batch, line, sampling
        self.width = batch.width

    @property
    def base_caches(self) -> dict[str, np.ndarray]:
        """Keys and values of the base's layers, [1, kv heads, capacity, head_dim]."""
        lines = slice(self.line, self.line + 1)
        return {name: array[lines] for name, array in self.batch.arrays.items() if name.startswith("past_key_values.")}

    def begin(self) -> None:
        if self._sampling is not None:
            self._sampling.renew()

    def part(
        self, known: Sequence[int], past: int, first: int, recent: np.ndarray | None, drafting: Drafting | None = None
    ) -> Part:
        return Part(self.line, known, past, first, drafting, self._sampling, recent)

    def run(
        self, known: Sequence[int], past: int, first: int, recent: np.ndarray | None, drafting: Drafting | None = None
    ) -> Verified:
        return self.batch.run([self.part(known, past, first, recent, drafting)])[0]
