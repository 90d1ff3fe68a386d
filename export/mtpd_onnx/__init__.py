"""The ONNX side: graphs, export, onnxruntime backends and `mtpd-onnx`. Never imports MLX.
Called by `mtpd export`, `mtpd parity` and the demo."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # as in mtpd_mlx
