"""Decoding with MLX: plain and speculative rounds as lazy graphs (docs/internals/decoding.md)."""
