"""Load on servers, ours and others', and requests as they should not be.

    python -m tools.bench_serve OUT --onnx FOLDER --mlx CHECKPOINT --mlx-lm MODEL --prompts FILE ... --clients 1 4 16
    python -m tools.bench_serve OUT --server NAME=http://127.0.0.1:8080 --server "NAME=COMMAND --port {port}" --prompts FILE ...
    python -m tools.bench_serve OUT --onnx FOLDER --prompts FILE ... --faults 10000
    python -m tools.bench_serve OUT --onnx FOLDER --prompts FILE ... --kills 20

The servers take turns: for every repeat and number of clients each gets the same prompts, which are new ones as long as there
are any. They are asked as OpenAI's clients ask, streamed; tokens are counted by the server. OUT/load.json holds figures and
conditions, OUT/*.log what servers said. On Linux CPUs mlx_lm.server is given the BLAS that mtpd loads: the one in its wheel is
fifty times slower (`--env NAME LD_PRELOAD=` leaves it that one). Where other programs want the processors, too, tokens for a
second of the server's processor time say more than tokens per second.

With --faults the same prompts are asked among requests that are wrong (faults.py), of each server in turn; the exit status is 1
where one did not stand it. Run it from the repository root.
"""

import argparse
import asyncio
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.text.prompts import read_prompts
from tools.bench_serve.endurance import endure
from tools.bench_serve.kills import survive
from tools.bench_serve.load import Load, ask, load, streamed
from tools.bench_serve.report import Loads, describe, summary
from tools.bench_serve.servers import (
    Server,
    Wanted,
    of_mlx,
    of_mlx_lm,
    of_onnx,
    of_words,
    started,
    with_environments,
    with_models,
)
from tools.benchmark.conditions import conditions

RESULT, FAULTS, KILLS = "load.json", "faults.json", "kills.json"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench_serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path, help="folder of the results")
    add("--server", action="append", default=[], metavar="NAME=...", help="an http:// address, or a command with {port}")
    add("--onnx", type=Path, nargs="+", default=[], metavar="FOLDER", help="folders for mtpd-onnx serve")
    add("--mlx", nargs="+", default=[], metavar="CHECKPOINT", help="for mtpd serve")
    add("--mlx-lm", nargs="+", default=[], metavar="MODEL", help="for mlx_lm.server")
    add("--env", nargs=2, action="append", default=[], metavar=("NAME", "VARIABLE=VALUE"), help="starts that server with it")
    add("--model", nargs=2, action="append", default=[], metavar=("NAME", "MODEL"), help="what requests to that server name")
    add("--prompts", type=Path, nargs="+", required=True, metavar="FILE", help="prompt sets, mixed")
    add("--completions", action="store_true", help="ask /v1/completions: for models without a chat template")
    add("--clients", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="at once (default: 1 4 16)")
    add("--per-client", type=int, default=2, metavar="N", help="requests of each client (default: %(default)s)")
    add("--max-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    add("--repeats", type=int, default=3, metavar="N", help="default: %(default)s")
    add("--temperature", type=float, default=0.0, help="default: %(default)s")
    add("--top-p", type=float, help="with --temperature")
    add("--reference", metavar="NAME", help="the server that all are held against (default: the last one)")
    add("--faults", type=int, metavar="N", help="so many requests, most of them wrong, instead of the load")
    add("--kills", type=int, metavar="N", help="kill each server (SIGKILL) N times while it answers, instead of the load")
    add("--seed", type=int, default=0, help="of --faults and --kills")
    add(
        "--too-long", type=int, default=50_000, metavar="WORDS", help="of a prompt that no context holds (default: %(default)s)"
    )
    args = parser.parse_args(words)
    for name in ("clients", "per_client", "max_tokens", "repeats", "faults", "kills", "too_long"):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                parser.error(f"--{name.replace('_', '-')}: got {value}, expected at least 1")
    return args


def wanted_of(args: argparse.Namespace) -> list[Wanted]:
    found = [of_words(words) for words in args.server]
    found += [of_onnx(folder) for folder in args.onnx]
    found += [of_mlx(checkpoint) for checkpoint in args.mlx]
    found += [of_mlx_lm(model) for model in args.mlx_lm]
    names = [each.name for each in found]
    if not found:
        raise ValueError("no servers: give --server, --onnx, --mlx or --mlx-lm")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two servers are called {twice[0]!r}: name them with --server")
    if args.reference is not None and args.reference not in names:
        raise ValueError(f"--reference: got {args.reference!r}, expected one of: {', '.join(names)}")
    return with_models(with_environments(found, args.env), args.model)


def asked_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """{"messages": ...} or {"prompt": ...} of every prompt, one of each file after the other."""
    sets = [read_prompts(file) for file in args.prompts]
    mixed = [each[i] for i in range(max(map(len, sets))) for each in sets if i < len(each)]
    if args.completions:
        return [{"prompt": prompt.text} for prompt in mixed if prompt.text]
    return [{"messages": prompt.messages or [{"role": "user", "content": prompt.text}]} for prompt in mixed]


async def measure(servers: list[Server], prompts: list[dict[str, Any]], args: argparse.Namespace) -> Loads:
    """Every server under every number of clients, one after the other, `repeats` times."""
    found = defaultdict[str, dict[int, list[Load]]](lambda: defaultdict(list))
    options: dict[str, Any] = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    if args.top_p is not None:
        options["top_p"] = args.top_p
    for server in servers:
        warm = await ask(server.url, streamed(prompts[-1], options | {"model": server.model}))
        if warm.error:
            raise ValueError(f"{server.name}: {warm.error}")
    place = 0
    for repeat in range(args.repeats):
        for clients in args.clients:
            count = clients * args.per_client
            chosen = [prompts[(place + i) % len(prompts)] for i in range(count)]
            place += count
            for server in servers:
                bodies = [streamed(each, options | {"model": server.model}) for each in chosen]
                before = server.cpu_seconds()
                result = await load(server.url, clients, bodies)
                if before is not None and (after := server.cpu_seconds()) is not None:
                    result.cpu = after - before
                found[server.name][clients].append(result)
                tokens = sum(each.tokens for each in result.asked)
                said = f"{tokens} tokens, {tokens / result.seconds:.1f}/s"
                print(f"repeat {repeat + 1}, {clients} clients, {server.name}: {said}", file=sys.stderr, flush=True)
    if place > len(prompts):
        print(f"prompts came again: {place} were asked, the sets have {len(prompts)}", file=sys.stderr)
    return found


async def run(args: argparse.Namespace) -> int:
    wanted, prompts = wanted_of(args), asked_of(args)
    if args.kills:
        if fixed := [each.name for each in wanted if not each.command]:
            raise ValueError(f"--kills: {fixed[0]} was not started here")
        ends = [await survive(each, prompts, args.kills, args.seed, args.out) for each in wanted]
        write_json(args.out / KILLS, {"conditions": conditions(), "servers": ends})
        return int(any(each["failed"] for each in ends))
    async with started(wanted, args.out) as servers:
        if args.faults:
            wrong = (args.faults, max(args.clients), args.seed, args.too_long)
            told = [await endure(server, prompts, *wrong) for server in servers]
            write_json(args.out / FAULTS, {"conditions": conditions(), "servers": told})
            return int(any(each["failed"] for each in told))
        before = conditions()
        found = summary(await measure(servers, prompts, args), args.reference or servers[-1].name)
        found["blas"] = {server.name: server.blas() for server in servers}
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "faults", "kills", "seed")}
    write_json(args.out / RESULT, found | {"settings": words_of(settings), "conditions": before})
    print(describe(found))
    return int(any(cell["errors"] for cells in found["servers"].values() for cell in cells.values()))


def words_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Paths as text."""

    def plain(value: Any) -> Any:
        return [plain(each) for each in value] if isinstance(value, list) else str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in settings.items()}


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers that were started here end, too
    try:
        return asyncio.run(run(parse()))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
