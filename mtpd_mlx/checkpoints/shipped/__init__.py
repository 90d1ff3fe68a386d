"""MTP heads as other projects store them inside a model's own checkpoint, and ours from and to them. numpy alone.

layouts.py: the layouts; detect.py: the heads that a checkpoint holds; convert.py: tensors; read.py, write.py: folders.
"""
