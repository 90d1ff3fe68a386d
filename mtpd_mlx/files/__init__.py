"""The disk: atomic replacement of files and groups of files, safetensors, JSON, locks, hub ids. numpy alone.
Called by everything that reads or writes a folder."""
