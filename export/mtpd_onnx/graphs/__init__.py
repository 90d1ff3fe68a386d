"""The exported graphs and the modules that they are made of (docs/internals/onnx.md).
Called by export/export.py."""
