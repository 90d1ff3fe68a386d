"""`mtpd export`: from a checkpoint to a folder that mtpd-onnx decodes."""
