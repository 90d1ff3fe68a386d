"""mtpd export: the same as `mtpd-onnx export` (neither needs MLX)."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mtpd_onnx.cli import import_command  # it says what to install

    import_command("export").add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from mtpd_onnx.export.export import run_export

    return run_export(args)
