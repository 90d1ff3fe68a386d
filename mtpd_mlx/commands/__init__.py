"""The subcommands of `mtpd`, one module each (its protocol: options/command_line.py).
Called by mtpd_mlx/cli.py."""
