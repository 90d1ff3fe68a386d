"""MTP heads that models ship inside their own checkpoint: from these to ours, and back. numpy alone.
Called by `mtpd import-heads`, `mtpd export-heads` and inspection.

layouts.py: the layouts; detect.py: the heads that a checkpoint holds; convert.py: tensors; read.py, write.py: folders.
"""
