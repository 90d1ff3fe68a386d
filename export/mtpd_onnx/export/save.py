"""`WeightsFile`, `save_graph`: one weights file for all graphs of a folder, written tensor by tensor.
Called by export/export.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from mtpd_onnx.manifest import WEIGHTS_NAME

ALIGNMENT = 4096
INLINE_BYTES = 1024


class WeightsFile:
    """External data shared by several graphs; a tensor named twice is stored once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._places: dict[str, ir.ExternalTensor] = {}
        (folder / WEIGHTS_NAME).touch()

    def place(self, value: ir.Value, load: Callable[[str, tuple[int, ...]], np.ndarray]) -> ir.ExternalTensor:
        """Writes the tensor of the initializer `value` unless it is there already."""
        assert value.name is not None and value.shape is not None and value.dtype is not None
        if value.name not in self._places:
            shape = tuple(int(d) for d in value.shape)  # type: ignore[arg-type]
            array = value.const_value.numpy() if value.const_value is not None else load(value.name, shape)
            data = np.ascontiguousarray(array.astype(value.dtype.numpy())).tobytes()
            with (self.folder / WEIGHTS_NAME).open("ab") as f:
                offset = -(-f.tell() // ALIGNMENT) * ALIGNMENT
                f.write(b"\0" * (offset - f.tell()))
                f.write(data)
            self._places[value.name] = ir.ExternalTensor(
                WEIGHTS_NAME,
                offset,
                len(data),
                value.dtype,
                shape=ir.Shape(shape),
                name=value.name,
                base_dir=self.folder,
            )
        return self._places[value.name]

    def table(self) -> dict[str, list[Any]]:
        """name -> [type, as ONNX names it; shape; first byte]."""
        return {
            name: [place.dtype.name, [int(n) for n in place.shape], place.offset]  # type: ignore[arg-type]
            for name, place in self._places.items()
        }


def save_graph(model: ir.Model, file: Path, weights: WeightsFile, load: Callable[[str, tuple[int, ...]], np.ndarray]) -> int:
    """Drops unused initializers, moves the others to the weights file, writes `file`, then checks it. Returns the bytes that
    a run reads of them: all but those from which only rows are gathered."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
        elif value.const_value is None or value.const_value.nbytes > INLINE_BYTES:
            value.const_value = weights.place(value, load)
    ir.save(model, file)
    check_graph(file)
    return sum(_bytes_read(value) for value in graph.initializers.values() if not _gathered(value))


def _bytes_read(value: ir.Value) -> int:
    """Integers that are cast are unpacked when the session opens: runs read float32."""
    assert value.const_value is not None
    unpacked = value.dtype == ir.DataType.UINT8 and any(use.node.op_type == "Cast" for use in value.uses())
    return value.const_value.nbytes * (4 if unpacked else 1)


def _gathered(value: ir.Value) -> bool:
    return all(use.node.op_type.startswith("Gather") and use.idx == 0 for use in value.uses())


def check_graph(file: Path) -> None:
    """onnx.checker by path (so that models over 2 GB work) and shape inference; ValueError names the file."""
    try:
        onnx.checker.check_model(str(file), full_check=False)
        onnx.shape_inference.infer_shapes(onnx.load(str(file), load_external_data=False), check_type=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"{file}: the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error
