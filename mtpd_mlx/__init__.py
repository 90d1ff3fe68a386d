"""MTP-D for MLX and onnxruntime. Importing this package imports nothing heavy: the portable decoder shares it."""

__version__ = "0.1.0"
