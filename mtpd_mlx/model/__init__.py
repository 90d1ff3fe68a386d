"""The base, the heads and their files on MLX.
Called by training, decoding and measuring."""
