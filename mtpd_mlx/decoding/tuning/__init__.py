"""The plan and number of drafts that are fastest on this machine: measured, predicted, stored.
Called by decoding/open.py, `mtpd tune` and `mtpd probe`."""
