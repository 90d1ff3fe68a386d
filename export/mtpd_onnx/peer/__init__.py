"""onnxruntime-genai timed beside us, in a process of its own."""
