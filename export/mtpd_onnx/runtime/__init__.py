"""Exported folders on onnxruntime: sessions, device buffers, and a decoder for every layout.
Called by the commands of `mtpd-onnx`, `mtpd parity` and the demo."""
