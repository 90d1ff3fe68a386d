"""`append`, `read`: the runs of a benchmark in a JSONL file, one object per text, so that a killed benchmark goes on.
Called by benchmark/__main__.py and report.py.

A run is {"set", "prompt", "repeat", "arm", "session", "tokens", "prefill_seconds", "decode_seconds", "memory", ...}. `session`
counts how often the benchmark was started: ratios are taken between runs of the same one.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]
Key = tuple[str, int, int, str]  # set, prompt, repeat, arm
FILE = "runs.jsonl"


def read(folder: Path) -> list[Run]:
    """Those of whole lines: the last one may have been cut by a kill. ValueError for another damaged line."""
    file = folder / FILE
    if not file.is_file():
        return []
    *lines, rest = file.read_text().split("\n")
    runs = []
    for number, line in enumerate(lines, 1):
        try:
            runs.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: not a JSON object") from error
    if rest:
        with file.open("r+") as f:
            f.truncate(len("\n".join([*lines, ""]).encode()))
    return runs


def key(run: Run) -> Key:
    return run["set"], run["prompt"], run["repeat"], run["arm"]


def append(folder: Path, run: Run) -> None:
    with (folder / FILE).open("a") as f:
        f.write(json.dumps(run) + "\n")


def order(sets: dict[str, int], arms: Sequence[str], repeats: int) -> Iterator[Key]:
    """Round robin: every arm decodes a prompt before the next one begins, and another arm is first each time. `sets`: their
    numbers of prompts."""
    turn = 0
    for repeat in range(repeats):
        for name, prompts in sets.items():
            for prompt in range(prompts):
                first = turn % len(arms)
                for arm in (*arms[first:], *arms[:first]):
                    yield name, prompt, repeat, arm
                turn += 1


def measure(
    folder: Path,
    sets: dict[str, list[list[int]]],
    arms: dict[str, Callable[[list[int], int], Run]],
    max_tokens: int,
    repeats: int,
    see: Callable[[], None] = lambda: None,
) -> list[Run]:
    """Makes the runs that the file does not hold yet, and returns all that were asked for. An arm's first text in a session is
    decoded twice, and counted once."""
    known = {key(run): run for run in read(folder)}
    session = 1 + max((run["session"] for run in known.values()), default=0)
    warm: set[str] = set()
    wanted = list(order({name: len(prompts) for name, prompts in sets.items()}, list(arms), repeats))
    for name, prompt, repeat, arm in wanted:
        if (name, prompt, repeat, arm) in known:
            continue
        tokens = sets[name][prompt]
        if arm not in warm:
            warm.add(arm)
            arms[arm](tokens, min(max_tokens, 16))
        run = {"set": name, "prompt": prompt, "repeat": repeat, "arm": arm, "session": session}
        run |= arms[arm](tokens, max_tokens)
        append(folder, run)
        known[key(run)] = run
        see()
    return [known[k] for k in wanted]
