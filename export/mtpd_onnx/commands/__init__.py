"""The subcommands of `mtpd-onnx`, one module each (their protocol: mtpd_mlx/options/command_line.py).
Called by mtpd_onnx/cli.py."""
