"""onnxruntime-genai in a process of its own, timed beside us.
Called by `mtpd-onnx bench` and tools/benchmark."""
