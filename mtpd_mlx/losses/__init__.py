"""Losses of the heads: by definition (the oracle), in closed form by rows, in chunks with their own backward pass.
Called by train/step.py; `mtpd eval` uses cross_entropy."""
