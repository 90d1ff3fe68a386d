"""Runs a graph whose state stays on the device: caches, tails and the next inputs are outputs bound onto inputs.

A run of fixed shapes (a decoding round or step) is captured as a CUDA graph where the session allows it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtpd_onnx.manifest import Manifest
from mtpd_onnx.sessions import import_onnxruntime

BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy has no such type
EAGER, CAPTURED = "-1", "1"  # CUDA graph annotations


class Runner:
    """One session and its state.

    state: input -> (output, value); `value` is input and output at once. constants: inputs of the fixed run that no
    output renews. results: output -> value, what the host reads. ValueError where a shape does not fit.
    """

    def __init__(
        self,
        session: Any,
        provider: str,
        state: Mapping[str, tuple[str, Any]],
        constants: Mapping[str, np.ndarray],
        results: Mapping[str, np.ndarray],
        captured: bool,
    ):
        self._session, self._provider = session, provider
        self._state = dict(state)
        self._constants = {name: device_array(value, provider) for name, value in constants.items()}
        self._results = {name: device_array(value, provider) for name, value in results.items()}
        self._options = run_options(CAPTURED if captured else EAGER)
        self._eager = run_options(EAGER)
        self._fixed = session.io_binding()
        self._bind_state(self._fixed)
        for name, value in self._constants.items():
            self._fixed.bind_ortvalue_input(name, value)
        for name, value in self._results.items():
            self._fixed.bind_ortvalue_output(name, value)

    def fixed(self) -> list[np.ndarray]:
        """One run from the state alone; the results, in their order."""
        self._session.run_with_iobinding(self._fixed, self._options)
        return [value.numpy() for value in self._results.values()]

    def free(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """One run of any shape: `inputs` from the host instead of the state, `outputs` to the host."""
        binding = self._session.io_binding()
        for name in outputs:  # bound first, so that they come first
            binding.bind_output(name, "cpu")
        self._bind_state(binding, skip=inputs)
        for name, value in self._constants.items():
            if name not in inputs:
                binding.bind_ortvalue_input(name, value)
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        self._session.run_with_iobinding(binding, self._eager)
        return [value.numpy() for value in binding.get_outputs()[: len(outputs)]]

    def set(self, name: str, array: np.ndarray) -> None:
        """Overwrites a state tensor or a constant in place (captured graphs know its address)."""
        value = self._state[name][1] if name in self._state else self._constants[name]
        if list(array.shape) != list(value.shape()):
            raise ValueError(f"{name}: got shape {list(array.shape)}, expected {list(value.shape())}")
        value.update_inplace(np.ascontiguousarray(array))

    def _bind_state(self, binding: Any, skip: Mapping[str, Any] | None = None) -> None:
        for name, (output, value) in self._state.items():
            if skip is None or name not in skip:
                binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(output, value)


def run_options(graph_id: str) -> Any:
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options


def device_array(array: np.ndarray, provider: str) -> Any:
    return import_onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), provider, 0)


def device_zeros(shape: Sequence[int], manifest: Manifest, provider: str) -> Any:
    """Zeros of the folder's activation type."""
    if manifest.activations == "bf16":
        value = import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(list(shape), BFLOAT16, provider, 0)
        value.update_inplace(np.zeros(shape, np.uint16))  # fresh memory may hold NaN, which a mask does not stop
        return value
    return device_array(np.zeros(shape, float_type(manifest)), provider)


def float_type(manifest: Manifest) -> type:
    return np.float16 if manifest.activations == "fp16" else np.float32


def cache_state(manifest: Manifest, provider: str, num_heads: int, batch_size: int = 1) -> dict[str, tuple[str, Any]]:
    """The caches of the base's layers and of `num_heads` heads, zeroed."""
    shape = (batch_size, manifest.dims["num_kv_heads"], manifest.capacity, manifest.dims["head_dim"])
    stems = [(f"past_key_values.{i}", f"present.{i}") for i in range(manifest.dims["num_layers"])]
    stems += [(f"past_mtp.{k}", f"present_mtp.{k}") for k in range(num_heads)]
    return {
        f"{past}.{part}": (f"{present}.{part}", device_zeros(shape, manifest, provider))
        for past, present in stems
        for part in ("key", "value")
    }
