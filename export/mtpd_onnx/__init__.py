"""The ONNX side: graphs, export, onnxruntime backends and the portable decoder CLI. Never imports MLX."""
