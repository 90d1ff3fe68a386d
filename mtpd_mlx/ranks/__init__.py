"""The ranks of one run, as mlx.launch starts them: what they share, and how they stop together."""
