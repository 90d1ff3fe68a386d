"""mtpd export: the same as `mtpd-onnx export` (neither needs MLX)."""

from mtpd_onnx.commands.export import OPTIONS, run

__all__ = ["OPTIONS", "run"]
