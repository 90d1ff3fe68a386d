"""The peer, onnxruntime-genai: build it, carry it without its weights, fill it where it is timed (tools/benchmark).

    python -m tools.genai_peer build MODEL PEER --precision fp16 --provider cuda     # needs torch and transformers
    python -m tools.genai_peer skeleton PEER MODEL SKELETON                          # needs onnx
    python -m tools.genai_peer fill SKELETON MODEL PEER                              # needs numpy

MODEL is a Hugging Face folder. Run it from the repository root. What `fill` writes is byte for byte what `build` wrote.
"""

import argparse
import sys
import time
from pathlib import Path

from tools.genai_peer.build import build
from tools.genai_peer.fill import fill
from tools.genai_peer.skeleton import make_skeleton


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.genai_peer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add = commands.add_parser("build", help="run onnxruntime-genai's model builder").add_argument
    add("model", type=Path)
    add("out", type=Path)
    add("--precision", choices=("fp32", "fp16", "int4", "int8"), default="fp32", help="default: %(default)s")
    add("--provider", choices=("cpu", "cuda"), default="cpu", help="cuda: with CUDA graphs (default: %(default)s)")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="an extra option of the builder (repeatable)")
    add = commands.add_parser("skeleton", help="a built folder without its weights").add_argument
    add("folder", type=Path)
    add("model", type=Path, help="what it was built from (its config.json is enough)")
    add("out", type=Path)
    add = commands.add_parser("fill", help="a skeleton with the weights of a Hugging Face folder").add_argument
    add("skeleton", type=Path)
    add("model", type=Path)
    add("out", type=Path)
    add("--threads", type=int, help="default: all cores")
    args = parser.parse_args()
    try:
        return run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"genai_peer {args.command}: error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    if args.command == "build":
        graphs = ["enable_cuda_graph=1"] if args.provider == "cuda" else []
        build(args.model, args.out, args.precision, args.provider, [*graphs, *args.option])
        size = sum(file.stat().st_size for file in args.out.iterdir())
    elif args.command == "skeleton":
        size = make_skeleton(args.folder, args.model, args.out)
    else:
        size = fill(args.skeleton, args.model, args.out, args.threads)
    print(f"{args.out}: {size / 1e6:.2f} MB in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
