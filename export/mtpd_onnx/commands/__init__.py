"""The subcommands of `mtpd-onnx`."""
