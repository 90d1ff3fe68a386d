"""The speculative decoder: protocols, acceptance, loop, choice of drafts, statistics. No MLX, no onnxruntime.
Called by both runtimes."""
