"""Acceptance of heads on the base's own text, and agreement of the two runtimes.
Called by `mtpd eval`, `parity`, `verify`, `probe`, `bench` and the demo."""
