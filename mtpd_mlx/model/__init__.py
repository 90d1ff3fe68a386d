"""The base, the heads and their files on MLX."""
