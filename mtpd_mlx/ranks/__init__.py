"""The ranks of one run, as mlx.launch starts them: sums, one writer, stopping together.
Called by training and `mtpd distill-data`."""
