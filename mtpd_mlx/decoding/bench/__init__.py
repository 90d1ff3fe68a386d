"""Timing of plain, speculative and stock decoding side by side.
Called by `mtpd bench`."""
