"""`SharedWeights`: one copy of a folder's weights on a device, which several sessions read.
Called by runtime/open_device.py."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_onnx.manifest import WEIGHTS_NAME, Manifest
from mtpd_onnx.runtime.runner import BFLOAT16, device_array
from mtpd_onnx.runtime.sessions import import_onnxruntime

# By ONNX's names; bfloat16, which numpy lacks, by its bits.
KINDS: dict[str, Any] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "BFLOAT16": np.uint16,
    "INT64": np.int64,
    "INT32": np.int32,
    "UINT8": np.uint8,
}


class SharedWeights:
    """`values`: initializers by name, for open_session. They must outlive the sessions. ValueError in one line where the
    manifest's table does not fit the file, or the device has no room."""

    def __init__(self, folder: Path, manifest: Manifest, provider: str):
        self.values: dict[str, Any] = {}
        self._owners: list[Any] = []
        file = np.memmap(folder / WEIGHTS_NAME, np.uint8, "r")
        for name, (kind, shape, start) in manifest.tensors.items():
            dtype = np.dtype(KINDS[kind])
            size = math.prod(shape) * dtype.itemsize
            if not 0 <= start <= file.size - size:
                raise ValueError(f"{folder}: {WEIGHTS_NAME}: {name} ends at byte {start + size}, the file at {file.size}")
            array = np.array(file[start : start + size]).view(dtype).reshape(shape)
            self.values[name] = self._placed(array, kind, provider)

    def _placed(self, array: np.ndarray, kind: str, provider: str) -> Any:
        """onnxruntime takes only values that do not own their memory: on a device, a view of one that does."""
        if provider == "cpu":
            self._owners.append(array)
            return device_array(array, provider)
        ort = import_onnxruntime()
        if kind == "BFLOAT16":
            owner = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), BFLOAT16, provider, 0)
            owner.update_inplace(array)
        else:
            owner = device_array(array, provider)
        self._owners.append(owner)
        return ort.OrtValue.from_dlpack(owner)
