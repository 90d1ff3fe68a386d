"""`mtpd export`: the same command as `mtpd-onnx export`. Neither needs MLX.
Called by mtpd_mlx/cli.py."""

from mtpd_onnx.commands.export import OPTIONS, run

EXAMPLES = ("mtpd export heads --out onnx", "mtpd export heads --out onnx-gpu --precision fp16")
__all__ = ["OPTIONS", "run"]
