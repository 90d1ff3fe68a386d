"""Losses of the heads: by definition (the oracle), in closed form by rows, in chunks with their own backward pass."""
