"""mtpd export: the same as `mtpd-onnx export` (neither needs MLX)."""

from mtpd_onnx.commands.export import OPTIONS, run

EXAMPLES = ("mtpd export heads --out onnx", "mtpd export heads --out onnx-gpu --precision fp16")
__all__ = ["OPTIONS", "run"]
