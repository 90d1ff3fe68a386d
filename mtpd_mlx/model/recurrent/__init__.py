"""Recurrent layers whose state can be taken back: cache.py holds the state, mixers.py the layers that use it.
Called by model/base.py and decoding/."""
