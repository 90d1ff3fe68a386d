"""Reports about a model, checkpoint or folder, from small files and tensor headers. No weights are read.
Called by `mtpd inspect`, `pull`, `push` and `probe`."""
