"""What a model family is, for every runtime: read from a Hugging Face config.json, no runtime imported.

table.py: one line per family; dims.py: what both runtimes are built from; options/train.py: from config.json to dims;
layers.py: windows, rotation and experts of each layer; rotary.py: which rotary embedding.
"""
