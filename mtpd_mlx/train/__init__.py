"""Training runs: from options to a checkpoint, interrupted and resumed, on one device or several ranks."""
