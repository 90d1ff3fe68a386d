"""The flags of sampling, made from the fields of Sampling."""

import argparse
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from mtpd_mlx.speculative.sampling import Sampling

HELP = {
    "temp": "temperature; 0 takes the most probable token",
    "top_p": "draw from the most probable tokens that together reach this probability; 0: off",
    "min_p": "draw only tokens at least this probable, relative to the most probable one; 0: off",
    "top_k": "draw from this many most probable tokens; 0: off",
    "repetition_penalty": "divide the logits of recent tokens by this (multiply those below 0); 1: off",
    "repetition_context_size": "recent tokens that the penalty looks at",
    "xtc_probability": "how often XTC leaves out all likely tokens but the least probable of them; 0: never",
    "xtc_threshold": "from which probability on XTC calls a token likely",
    "seed": "makes sampling repeatable",
}


def add_sampling_arguments(parser: argparse.ArgumentParser, hidden: Collection[str] = (), **defaults: Any) -> None:
    """--temp, --top-p and so on (names as in mlx_lm.generate); `defaults` replaces those of Sampling. hidden: fields that this
    runtime cannot change: help leaves them out, and their refusal is the runtime's."""
    group = parser.add_argument_group("sampling")
    for field in fields(Sampling):
        default = defaults.get(field.name, field.default)
        kind = int if field.name == "seed" else type(field.default)
        shown = "another text every time" if default is None else default  # only the seed has none
        text = argparse.SUPPRESS if field.name in hidden else f"{HELP[field.name]} (default: {shown})"
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, type=kind, default=default, metavar="N" if kind is int else "X", help=text)


def sampling_from(args: argparse.Namespace) -> Sampling:
    """ValueError in one line where a value is out of range."""
    return Sampling(**{field.name: getattr(args, field.name) for field in fields(Sampling)})
