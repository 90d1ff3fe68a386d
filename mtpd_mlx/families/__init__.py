"""Model families, read from a Hugging Face config.json. No runtime is imported.
Called by loading, export, inspection and checkpoints.

table.py: one line per family; dims.py: what both runtimes are built from; options/train.py: from config.json to dims;
layers.py: windows, rotation and experts of each layer; rotary.py: which rotary embedding.
"""
