#!/usr/bin/env python3
"""What taking drafts back costs over hybrid bases: a round of K drafts over a plain step, at published dims.

    python -m tools.bench_rollback lfm2.5-1.2b qwen3.5-4b --drafts 4 --draft-vocab 16384 --json OUT
    python -m tools.bench_rollback lfm2.5-1.2b --tiny           # the same code in seconds, on any device

Weights are random, so every draft is wrong and each round takes all of them back. Per plan: a plain step; a round; a pass over
K + 1 tokens of which one stays, without heads. All over the fastest plain step, interleaved, medians.

Run it from the repository root.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.paths import ROOT

PUBLISHED = ROOT / "tests" / "inspection" / "published"
PLANS = ("growing", "fixed", "fixed+compiled", "fixed+compiled+scatter")
LONGEST = 256  # positions behind the prompt of passes over fixed buffers
TINY = {"hidden_size": 64, "intermediate_size": 96, "block_ff_dim": 96, "num_hidden_layers": 4, "vocab_size": 512}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2}
TINY |= {"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "full_attention_interval": 2}


def config_of(name: str, tiny: bool) -> dict[str, Any]:
    from mtpd_mlx.families.multimodal import text_config

    config = text_config(json.loads((PUBLISHED / f"{name}.json").read_text()))
    if not tiny:
        return config
    kinds = [kind for kind in config.get("layer_types", ()) if kind != "full_attention"][:3]
    layers = {"layer_types": [*kinds, "full_attention"]} if kinds else {}
    return config | {k: v for k, v in TINY.items() if k in config} | layers


def models(name: str, args: argparse.Namespace) -> tuple[Any, Any]:
    """A base of random weights, and K heads that share theirs."""
    from mtpd_mlx.decoding.tuning.costs import repeated_heads
    from mtpd_mlx.model.compute import cast
    from mtpd_mlx.model.new_base import new_base
    from mtpd_mlx.model.runtime import mx

    base = new_base(config_of(name, args.tiny), seed=0)
    cast(base.model, getattr(mx, args.dtype))
    mx.eval(base.model.parameters())
    mx.clear_cache()
    heads = repeated_heads(base, args.drafts)
    if args.draft_vocab:
        heads.draft_among(mx.arange(min(args.draft_vocab, base.vocab_size), dtype=mx.int32))
    mx.eval(heads.parameters())
    return base, heads


def step_of(backend: Any, prompt: list[int]) -> Callable[[], None]:
    """One round (without drafts: one step) of a text that goes on."""
    from mtpd_mlx.decoding.tuning.calibrate import advance

    token = [backend.prefill(prompt)]

    def step() -> None:
        if backend.length + 2 * (1 + backend.num_draft_tokens) > backend.capacity:
            backend.rewind_to(0)
            token[0] = backend.prefill(prompt)
        token[0] = advance(backend, token[0])

    return step


def pass_of(base: Any, prompt: list[int], plan: Any, width: int) -> Callable[[], None]:
    """A pass over `width` tokens of which one stays, with their argmax, read by the host."""
    from mtpd_mlx.decoding.fixed_buffers import Layers, kept, to_buffers
    from mtpd_mlx.decoding.fixed_cache import Span, bucket
    from mtpd_mlx.decoding.rewind import begin
    from mtpd_mlx.decoding.row_by_row import whole_pass
    from mtpd_mlx.model.runtime import mx

    run, caches, layers = whole_pass(base), base.make_cache(), Layers(base, 0)
    mx.eval(base.trunk(mx.array([prompt]), caches))
    length = [len(prompt)]
    tokens = mx.array([prompt[:width]])

    def growing() -> None:
        verified = begin(caches, width)
        mx.eval(mx.argmax(run(tokens, caches)[2], axis=-1))
        verified.commit(1)
        length[0] += 1

    def graph(tokens: mx.array, start: mx.array, held: list[Any]) -> tuple[mx.array, list[Any]]:
        used = layers.caches(held, Span(start), plan.write)
        return mx.argmax(run(tokens, used)[2], axis=-1), kept(used, mx.array(0, mx.int32))

    if plan.cache == "growing":
        return growing
    buffers = [to_buffers(caches, length[0], bucket(length[0] + LONGEST))]
    call = mx.compile(graph) if plan.compiled else graph

    def fixed() -> None:
        held = buffers.pop()
        best, after = call(tokens, mx.array(length[0], mx.int32), held)
        del held
        buffers.append(after)
        mx.eval(best, after)
        length[0] = len(prompt) + (length[0] + 1 - len(prompt)) % (LONGEST - width)

    return fixed


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    from mtpd_mlx.decoding.open import open_decoder
    from mtpd_mlx.decoding.tuning.plan import Plan
    from mtpd_mlx.model.runtime import mx
    from mtpd_mlx.options.decode import DecodingConfig

    base, heads = models(name, args)
    prompt = np.random.default_rng(0).integers(1, base.vocab_size, args.context).tolist()
    arms: dict[str, Callable[[], None]] = {}
    for plan in args.plans:
        how = DecodingConfig(plan=plan)
        makers: dict[str, Callable[[], Callable[[], None]]] = {
            f"plain {plan}": lambda how=how: step_of(open_decoder(base, None, how, capacity=args.context + 4096), prompt),
            f"round {plan}": lambda how=how: step_of(open_decoder(base, heads, how, capacity=args.context + 4096), prompt),
            f"verify {plan}": lambda plan=plan: pass_of(base, prompt, Plan.parse(plan), args.drafts + 1),
        }
        for arm, make in makers.items():
            try:
                arms[arm] = make()
                arms[arm]()
            except (RuntimeError, ValueError) as error:
                arms.pop(arm, None)
                print(f"{name}: {arm} fails here: {str(error).splitlines()[0]}", file=sys.stderr)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(1 + args.repeats):
        for arm, step in arms.items():
            step()
            mx.synchronize()
            began = time.perf_counter()
            for _ in range(args.calls):
                step()
            mx.synchronize()
            if turn:
                times[arm].append((time.perf_counter() - began) / args.calls)
    medians = {arm: 1e3 * statistics.median(seconds) for arm, seconds in times.items()}
    return {"model": name, "parameters": sum(w.size for w in _weights(base)), "ms": medians}


def _weights(base: Any) -> list[Any]:
    from mtpd_mlx.model.load_save import flatten

    return list(flatten(base.model).values())


def report(found: dict[str, Any], args: argparse.Namespace) -> str:
    ms = found["ms"]
    plain = min(time for arm, time in ms.items() if arm.startswith("plain"))
    lines = [f"{found['model']}: {found['parameters'] / 1e9:.2f}B parameters, {args.dtype}, fastest plain step {plain:.2f} ms"]
    lines += [f"  {arm:<32} {time:8.2f} ms  {time / plain:5.2f}x plain" for arm, time in ms.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=sorted(file.stem for file in PUBLISHED.glob("*.json")))
    parser.add_argument("--drafts", type=int, default=4, help="K (default: %(default)s)")
    parser.add_argument(
        "--draft-vocab", type=int, default=16384, help="heads draft among so many, 0: all (default: %(default)s)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--context", type=int, default=256, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=10, help="of each timing (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each arm (default: %(default)s)")
    parser.add_argument("--plans", nargs="+", default=list(PLANS), help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="the same layers, tiny")
    parser.add_argument("--json", type=Path, help="file to append a line of each model to")
    args = parser.parse_args()
    from mtpd_mlx.model.runtime import mx

    for name in args.models:
        found = measure(name, args)
        print(report(found, args), flush=True)
        if args.json is not None:
            options = {k: v for k, v in vars(args).items() if k not in ("json", "models")}
            where = {"device": str(mx.default_device()), "mlx": mx.__version__, "machine": platform.machine()}
            with args.json.open("a") as file:
                file.write(json.dumps(found | {"options": options} | where) + "\n")
        mx.clear_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
