"""mtpd info: mtpd inspect under the name that says nothing is downloaded."""

from mtpd_mlx.commands.inspect import add_arguments, run

__all__ = ["add_arguments", "run"]
