"""From a checkpoint to a folder that mtpd-onnx decodes.
Called by `mtpd export` and `mtpd-onnx export`."""
