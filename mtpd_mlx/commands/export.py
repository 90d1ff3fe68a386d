"""mtpd export: the same as `mtpd-onnx export` (neither needs MLX)."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mtpd_onnx.export import add_export_arguments

    add_export_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mtpd_onnx.export import run_export

    return run_export(args)
