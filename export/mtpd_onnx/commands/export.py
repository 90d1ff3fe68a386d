"""mtpd-onnx export."""

from mtpd_onnx.export.export import add_export_arguments as add_arguments
from mtpd_onnx.export.export import run_export as run

__all__ = ["add_arguments", "run"]
