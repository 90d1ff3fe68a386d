"""`mtpd info`: `mtpd inspect` under the name that says that nothing is downloaded.
Called by mtpd_mlx/cli.py."""

from mtpd_mlx.commands.inspect import OPTIONS, run

__all__ = ["OPTIONS", "run"]
