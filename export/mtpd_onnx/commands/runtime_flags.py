"""The flags that every decoding command shares: the folder and what it runs on."""

import argparse
from pathlib import Path
from typing import Any

from mtpd_onnx.runtime.sessions import PROVIDERS

# Fields of Sampling that exported graphs have built in (runtime/sampling_state.py refuses other values).
BUILT_IN = ("xtc_probability", "xtc_threshold", "repetition_context_size")


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder written by `mtpd export`")
    group = parser.add_argument_group("runtime")
    group.add_argument("--provider", choices=PROVIDERS, default="auto", help="auto: the one that runs the folder (default)")
    group.add_argument("--num-threads", type=int, metavar="N", help="CPU threads (default: onnxruntime's choice)")
    group.add_argument("--cuda-graph", action=argparse.BooleanOptionalAction, default=True, help="replay rounds as CUDA graphs")
    group.add_argument("--verify", action="store_true", help="check the sha256 of every file, weights included")


def runtime_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of open_folder."""
    return {
        "provider": args.provider,
        "num_threads": args.num_threads,
        "captured": args.cuda_graph,
        "verify": args.verify,
    }
