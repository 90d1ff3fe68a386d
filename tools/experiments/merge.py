#!/usr/bin/env python3
"""One results file out of several of one setting: arms that ran side by side, on several GPUs, each call with its own OUT.

    python -m tools.experiments.merge docs/results/NAME.json OUT1/results.json OUT2/results.json ..

The files must agree on setting, options, data and device; an arm that several hold is taken from the first. Arms come in the
order of tools/experiments/arms.py. Run it from the repository root.
"""

import argparse
from pathlib import Path
from typing import Any

from tools.experiments.arms import all_arms
from tools.experiments.results_file import read_results, write_results
from tools.experiments.settings import setting

SAME = ("setting", "options", "data", "device", "versions")


def merged(files: list[Path]) -> dict[str, Any]:
    """ValueError in one line where two files were made under other conditions."""
    first, arms = read_results(files[0]), dict[str, Any]()
    for file in files:
        content = read_results(file)
        for name in SAME:
            if content[name] != first[name]:
                raise ValueError(f"{file}: {name}: got {content[name]}, expected {first[name]} as in {files[0]}")
        arms = content["arms"] | arms
    known = [arm.key for arm in all_arms(setting(first["setting"], []))]
    places = {key: place for place, key in enumerate(known)}
    return first | {"arms": dict(sorted(arms.items(), key=lambda item: places.get(item[0], len(places))))}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args(argv)
    try:
        content = merged(args.files)
    except ValueError as error:
        parser.error(str(error))
    write_results(args.target, content)
    print(f"{args.target}: {len(content['arms'])} arms of {len(args.files)} files")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
