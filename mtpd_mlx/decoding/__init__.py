"""Decoding with MLX: plain and speculative rounds as lazy graphs (docs/internals/decoding.md).
Called by the commands that decode, the server and api.py."""
