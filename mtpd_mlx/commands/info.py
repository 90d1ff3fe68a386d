"""mtpd info: mtpd inspect under the name that says nothing is downloaded."""

from mtpd_mlx.commands.inspect import OPTIONS, run

__all__ = ["OPTIONS", "run"]
