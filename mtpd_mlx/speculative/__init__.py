"""The speculative decoder: protocol, acceptance, loop, statistics and text front end. No MLX, no onnxruntime."""
