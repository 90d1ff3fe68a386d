"""`mtpd demo`: the real model and the bundled one, trained, extended, exported, decoded and reported.
Called by `mtpd demo` and `make demo`."""
