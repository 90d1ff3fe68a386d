"""`Runner`: runs of a graph whose state stays on the device; caches, tails and next inputs are bound onto inputs.
Called by the backends and sessions of runtime/.

A run of fixed shapes (a decoding round or step) is captured as a CUDA graph where the session allows it. It can be started
before the results of the one before are read: the device then goes on while the host looks at them.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtpd_onnx.errors import one_line
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.cuda_stream import Landing, Stream
from mtpd_onnx.runtime.sessions import import_onnxruntime

BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy has no such type
EAGER = "-1"  # the annotation of runs that are no CUDA graph
NUMPY_TYPES: dict[str, type] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": np.uint16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class Runner:
    """One session and its state on the device.

    state: input name -> (output name, value). The value is bound as input and output at once, so a run renews it in place.
    constants: inputs of the fixed run that no output renews.
    results: output name -> an array of its shape and type, what the host reads after a run. Where the output renews a state,
        the state's own value is read.
    captured: replay the fixed run as a CUDA graph (see `capture`), the session's number `graph`.
    shared: constants that others hold, too.
    stream: the CUDA stream the session runs on, where runs are not to be waited for; None: `start` waits.

    ValueError in one line where shapes do not fit the graph, and from any method where onnxruntime or the device fails.
    """

    def __init__(
        self,
        session: Any,
        provider: str,
        state: Mapping[str, tuple[str, Any]],
        *,
        constants: Mapping[str, np.ndarray],
        results: Mapping[str, np.ndarray],
        captured: bool,
        graph: int = 1,
        shared: Mapping[str, Any] | None = None,
        stream: Stream | None = None,
    ):
        self._session, self._provider = session, provider
        self._state = dict(state)
        self._constants = {name: device_array(value, provider) for name, value in constants.items()}
        self._constants |= dict(shared or {})
        values = {name: value for name, (_, value) in self._state.items()} | self._constants
        check_inputs(session, {name: (value.data_type(), value.shape()) for name, value in values.items()})
        renewed = dict(self._state.values())
        self._results = {name: renewed.get(name) or device_array(value, provider) for name, value in results.items()}
        self._options = run_options(str(graph) if captured else EAGER, wait=stream is None)
        self._eager = run_options(EAGER)
        self._stream, self._landings = stream, deque[Landing]()
        self._started: deque[Landing | list[np.ndarray]] = deque()
        self._fixed = session.io_binding()
        self._bind_state(self._fixed)
        for name, value in self._constants.items():
            self._fixed.bind_ortvalue_input(name, value)
        for name in self._results.keys() - renewed.keys():
            self._fixed.bind_ortvalue_output(name, self._results[name])

    @property
    def pending(self) -> int:
        """The number of runs that were started and whose results were not read yet."""
        return len(self._started)

    def start(self) -> None:
        """Starts one run from the state alone; `wait` gives its results."""
        with one_line("onnxruntime"):
            self._session.run_with_iobinding(self._fixed, self._options)
            if self._stream is None:
                self._started.append([np.array(value.numpy()) for value in self._results.values()])
                return
        landing = self._landings.popleft() if self._landings else Landing(list(self._results.values()), self._stream)
        landing.copy()
        self._started.append(landing)

    def wait(self) -> list[np.ndarray]:
        """Waits for the oldest run that was started; its results in the order of `results`."""
        done = self._started.popleft()
        if isinstance(done, list):
            return done
        self._landings.append(done)
        return done.arrays()

    def drain(self) -> int:
        """Waits for every run that was started and forgets the results; returns the number of these runs."""
        count = self.pending
        while self.pending:
            self.wait()
        return count

    def fixed(self) -> list[np.ndarray]:
        """One run from the state alone; the results in the order of `results`."""
        self.start()
        return self.wait()

    def free(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """One run of any shape (prefill): `inputs` come from the host instead of the state, `outputs` go to the host, in order.

        It renews the state like any run. Nothing may be pending.
        """
        assert not self.pending
        binding = self._session.io_binding()
        for name in outputs:  # bound first, so that they come first
            binding.bind_output(name, "cpu")
        self._bind_state(binding, skip=inputs)
        for name, value in self._constants.items():
            if name not in inputs:
                binding.bind_ortvalue_input(name, value)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        with one_line("onnxruntime"):
            self._session.run_with_iobinding(binding, self._eager)
            return [value.numpy() for value in binding.get_outputs()[: len(outputs)]]

    def capture(self, scratch: Mapping[str, np.ndarray]) -> None:
        """The first fixed run, which captures the CUDA graph and for that executes it several times, from what the state holds
        and `scratch`. At load, before anything is decoded; then all state must be zeroed (`clear`)."""
        for name, array in scratch.items():
            self.set(name, array)
        with one_line("capturing a CUDA graph (--no-cuda-graph decodes without)"):
            self.fixed()

    def clear(self) -> None:
        """Zeros all state."""
        for name, (_, value) in self._state.items():
            self.set(name, np.zeros(value.shape(), NUMPY_TYPES[value.data_type()]))

    def get(self, name: str) -> np.ndarray:
        """A copy of a state tensor on the host."""
        with one_line("onnxruntime"):
            return self._state[name][1].numpy()

    def set(self, name: str, array: np.ndarray) -> None:
        """Overwrites a state tensor or a constant in place (captured graphs know its address). Nothing may be pending.

        ValueError where the shape is not the tensor's.
        """
        assert not self.pending
        value = self._state[name][1] if name in self._state else self._constants[name]
        if list(array.shape) != list(value.shape()):
            raise ValueError(f"{name}: got shape {list(array.shape)}, expected {list(value.shape())}")
        with one_line("onnxruntime"):
            value.update_inplace(np.ascontiguousarray(array))

    def _bind_state(self, binding: Any, skip: Mapping[str, Any] | None = None) -> None:
        for name, (output, value) in self._state.items():
            if skip is None or name not in skip:
                binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(output, value)


def check_inputs(session: Any, shapes: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """ValueError where the graph takes other inputs than the manifest's numbers make; shapes: name -> (type, shape)."""
    inputs = {each.name: each for each in session.get_inputs()}
    for name, (kind, shape) in shapes.items():
        if name not in inputs:
            raise ValueError(f"manifest and graph differ: the graph has no input {name}")
        takes = inputs[name]
        free = [got if isinstance(size, str) else size for size, got in zip(takes.shape, shape, strict=False)]  # "S": any
        if (takes.type, len(takes.shape), free) != (kind, len(shape), list(shape)):
            wanted, got = f"{takes.type} {takes.shape}", f"{kind} {list(shape)}"
            raise ValueError(f"manifest and graph differ: {name} is {got} by the manifest, {wanted} in the graph")
    left = [name for name in inputs if name.startswith("past") and "." in name and name not in shapes]
    if left:
        raise ValueError(f"manifest and graph differ: the manifest leaves out {left[0]}")


def run_options(graph_id: str, wait: bool = True) -> Any:
    """RunOptions of a run that is captured as CUDA graph `graph_id` (EAGER: not); `wait`: until the device is done."""
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    if not wait:
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def device_array(array: np.ndarray, provider: str) -> Any:
    """An OrtValue on the provider's device with a copy of `array`. ValueError where there is no room for it."""
    with one_line(f"{array.nbytes / 1e6:.1f} MB on {provider}"):
        return import_onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), provider, 0)


def device_zeros(shape: Sequence[int], manifest: Manifest, provider: str) -> Any:
    """An OrtValue of zeros in the folder's activation type. ValueError where there is no room for it."""
    if manifest.activations == "bf16":
        array = np.zeros(shape, np.uint16)
        with one_line(f"{array.nbytes / 1e6:.1f} MB on {provider}"):
            value = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(list(shape), BFLOAT16, provider, 0)
            value.update_inplace(array)  # fresh memory may hold NaN, which a mask does not stop
        return value
    return device_array(np.zeros(shape, float_type(manifest)), provider)


def float_type(manifest: Manifest) -> type:
    """numpy's type for the folder's activations (bfloat16, which numpy lacks, is handled by device_zeros)."""
    return np.float16 if manifest.activations == "fp16" else np.float32


def cache_shapes(manifest: Manifest, num_heads: int, batch_size: int = 1) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Input name -> output name and shape of the caches of the base's layers and of `num_heads` heads: keys and values
    [batch_size, kv heads, capacity, head_dim], or histories [batch_size, 1, capacity, channels]."""
    stems = [(f"past_key_values.{i}", f"present.{i}") for i in range(manifest.dims["num_layers"])]
    stems += [(f"past_mtp.{k}", f"present_mtp.{k}") for k in range(num_heads)]
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for i, (past, present) in enumerate(stems):
        for part, (heads, length, size) in manifest.kept(i).items():
            found[f"{past}.{part}"] = f"{present}.{part}", (batch_size, heads, length or manifest.capacity, size)
    return found


def cache_state(manifest: Manifest, provider: str, num_heads: int) -> dict[str, tuple[str, Any]]:
    """Caches of one text, zeroed, as Runner takes them."""
    shapes = cache_shapes(manifest, num_heads).items()
    state = {name: (output, device_zeros(shape, manifest, provider)) for name, (output, shape) in shapes}
    if manifest.reach is not None:
        state["past_key_values.anchor"] = ("present.anchor", device_array(np.zeros(1, np.int64), provider))
    return state
