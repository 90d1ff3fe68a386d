#!/usr/bin/env python3
"""Damages files many times over and loads them: a loader may accept a file or refuse it in one line, nothing else.

    python -m tools.fuzz_loaders [--count 2000] [--first 0]

Prints counts per loader; the seed of whatever went wrong repeats it. Run it from the repository root.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tools.paths import ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged files per loader (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "security")]
    from fuzzing import attack, targets
    from mtpd_onnx.export.export import export_checkpoint
    from state_files import make_state, state_targets
    from tiny import write_base, write_checkpoint

    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        base = write_base(root / "base")
        checkpoint = write_checkpoint(root / "heads", base, num_heads=1, draft_tokens=[1, 5, 9])
        export_checkpoint(checkpoint, root / "onnx")
        every = targets(base, checkpoint, root / "onnx") | state_targets(make_state(root / "state", base))
        for name, (folder, file, load) in every.items():
            counts: Counter[str] = Counter()
            started = time.perf_counter()
            for seed in range(args.first, args.first + args.count):
                try:
                    counts[attack(folder, file, load, seed, root / "copies" / name)] += 1
                except AssertionError as error:
                    counts["WRONG"] += 1
                    if counts["WRONG"] <= 5:
                        print(f"  {name}: {error}")
            wrong += counts["WRONG"]
            seconds = time.perf_counter() - started
            print(f"{name}: {', '.join(f'{v} {k}' for k, v in sorted(counts.items()))} in {seconds:.0f} s", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
