"""MTP heads as other projects store them inside a model's own checkpoint, and ours from and to them. numpy alone.

names.py: the layouts; detect.py: what a checkpoint holds; convert.py: tensors; importing.py, exporting.py: folders.
"""
