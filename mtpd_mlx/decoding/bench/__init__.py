"""Timing plain, speculative and stock decoding side by side."""
