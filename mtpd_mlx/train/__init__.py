"""Training runs: from options to a checkpoint, interrupted and resumed, on one device or several ranks.
Called by `mtpd train`, `extend`, `refit`, the demo and api.py."""
