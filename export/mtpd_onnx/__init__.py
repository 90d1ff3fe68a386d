"""The ONNX side: graphs, export, onnxruntime backends and the portable decoder CLI. Never imports MLX."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # as in mtpd_mlx
