"""Exported folders on onnxruntime: sessions, device buffers, and a decoder for every layout."""
