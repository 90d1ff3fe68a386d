"""Heads, adapters and bases as files on disk, for every runtime: no MLX here.
Called by loading, training, export, inspection and the hub."""
