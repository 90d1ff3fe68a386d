"""What training heads costs: steps of the fused MTP-D loss against CE, the naive loss and mlx-lm's LoRA trainer.

    python -m tools.bench_train --quick --json                    # CPU, the bundled model, under 2 minutes
    python -m tools.bench_train --dims qwen3-0.6b --json          # a GPU: random weights, d1024, V151936, K=4, T=2048, B=4

Arms run interleaved in one process; times are medians, ratios medians over rounds. `naive` is the loss by automatic
differentiation over whole [B, T, V] logits of every head (mtpd_mlx/losses/definitions.py), in the same compiled step. Loss
memory is the peak over the loss's own inputs. In a whole step base and heads cost the same in every arm and dilute the ratios:
those of the loss alone stand beside them, and `speedup_bound`, what a loss that takes no time would gain over naive. Run it
from the repository root.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mtpd_mlx.data import Batch
from mtpd_mlx.losses.chunked import CHUNK_BYTES, Rows
from mtpd_mlx.losses.definitions import heads_objective
from mtpd_mlx.losses.objective import Model, shift_right
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.heads import init_heads, shift_left
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import bound_queue, mx, nn, on_cpu
from mtpd_mlx.options.train import LOSSES, OPTIMIZERS, LossConfig, OptimConfig
from mtpd_mlx.train.step import Stepper, cast, compute_dtype
from tools.paths import DEMO
from tools.random_model import DIMS

Go = Callable[[], tuple[int, float]]  # peak memory [bytes] and time [s] of one go
PEAK_FLOPS = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12}  # dense bf16, data sheets


def text(vocab_size: int, rows: int, length: int, seed: int) -> Batch:
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (rows, length)).astype(np.int32)
    return Batch(tokens, np.ones_like(tokens), np.ones_like(tokens, dtype=bool))


def make_base(dims: str | None, bits: int | None) -> Base:
    dtype = compute_dtype(OptimConfig())
    if dims is None:
        return load_base(str(DEMO / "base"), dequantize=True, dtype=dtype)
    base = new_base(DIMS[dims], 0)
    base.model.set_dtype(dtype)
    if bits:
        nn.quantize(base.model, 64, bits)
        mx.eval(base.model.parameters())
    return base


class NaiveStepper(Stepper):
    """The same step with the loss by automatic differentiation over all logits."""

    def _compile(self) -> None:
        params, captured = self.params, self.state

        def loss_fn(values: dict, tokens: mx.array, masks: mx.array, scale: mx.array) -> mx.array:
            self.model.bind(cast(values, self.dtype))
            main, states = self.model.states(tokens)
            logits = [self.model.base.logits(s) for s in states]
            masks = masks.astype(mx.float32)
            return heads_objective(self.fused.cfg, logits, self.model.base.logits(main), tokens, masks, scale)[0]

        def step(tokens: mx.array, masks: mx.array, scale: mx.array) -> tuple:
            loss, gradients = mx.value_and_grad(loss_fn)(params, tokens, masks, scale)
            params.update(self.optimizer.apply_gradients(gradients, params))
            return loss, mx.array(0.0), mx.array(True)

        self._whole = mx.compile(step, inputs=captured, outputs=captured)


def new_stepper(base: Base, args: argparse.Namespace, loss: str, kind: type[Stepper] = Stepper) -> Stepper:
    heads = init_heads(base, args.num_heads, "postnorm", 0)
    if args.draft_vocab:
        heads.draft_among(
            mx.arange(0, base.vocab_size, base.vocab_size // args.draft_vocab, dtype=mx.int32)[: args.draft_vocab]
        )
    model = Model(base, heads, joint=False)
    return kind(model, LossConfig(loss=loss, top_n=args.top_n), OptimConfig(iters=1000, warmup=0, optimizer=args.optimizer))


def time_steps(steppers: dict[str, Stepper], args: argparse.Namespace, rows: int, loss: Go | None = None) -> dict[str, Any]:
    """Interleaved medians [s] and peak memory [bytes] of one step of each arm; an arm that does not fit says why. `loss`: the
    loss alone, once a round too (`loss_times_s`)."""
    vocab = next(iter(steppers.values())).model.base.vocab_size
    times: dict[str, list[float]] = {name: [] for name in steppers}
    alone: list[float] = []
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for i in range(-args.warmup, args.repeats):
        for name, stepper in steppers.items():
            if name in failed:
                continue
            batch = text(vocab, rows, args.length, i + args.warmup)
            mx.clear_cache()
            mx.reset_peak_memory()
            try:
                start = time.perf_counter()
                stepper.step([batch])
                seconds = time.perf_counter() - start
            except RuntimeError as error:  # out of memory
                failed[name] = str(error).splitlines()[0]
                continue
            if i >= 0:
                times[name].append(seconds)
                peaks[name] = mx.get_peak_memory()
            print(f"  {name} {seconds:.3f} s", file=sys.stderr)
        if loss is not None:
            alone.append(loss()[1])
    figures: dict[str, Any] = {"loss_times_s": alone[args.warmup :]} if loss is not None else {}
    return figures | {
        name: {"failed": failed[name]}
        if name in failed
        else {
            "times_s": times[name],
            "step_s": statistics.median(times[name]),
            "tokens_per_s": rows * args.length / statistics.median(times[name]),
            "peak_gb": peaks[name] / 1e9,
        }
        for name in steppers
    }


def ratio(over: dict[str, Any], under: dict[str, Any]) -> float:
    """Of two arms of one interleaved run: the median over rounds, so that a machine that others use counts less."""
    return statistics.median(a / b for a, b in zip(over["times_s"], under["times_s"], strict=True))


def loss_alone(base: Base, args: argparse.Namespace, rows: int, num_heads: int, kind: str, loss: str) -> Go:
    """One go: peak memory over its inputs [bytes] and time [s] of value and gradient of the loss; kind: fused or naive."""
    model = Model(base, init_heads(base, num_heads, "postnorm", 0), joint=False)
    cfg, n = LossConfig(loss=loss, top_n=args.top_n), rows * args.length
    fused = model.fused_loss(cfg)
    hidden = [mx.random.normal((rows, args.length, base.hidden_size)).astype(base.dtype) for _ in range(num_heads + 1)]
    tokens = mx.array(text(base.vocab_size, rows, args.length, 0).tokens)
    masks, scale = mx.ones((num_heads + 1, rows, args.length)), mx.full((num_heads + 1,), 1.0 / n)

    def ours(states: list[mx.array]) -> mx.array:
        aligned = [shift_right(s, k).reshape(n, -1) for k, s in enumerate(states, start=1)]
        weights = mx.concatenate([mx.zeros((1, n)), mx.full((num_heads, n), 1.0 / n)])
        data = Rows(shift_left(tokens, 1).reshape(-1), weights, hidden[0].reshape(n, -1), aligned)
        return fused(model.output_head(), None, data).loss

    def naive(states: list[mx.array]) -> mx.array:
        logits = [base.logits(s) for s in states]
        return heads_objective(cfg, logits, base.logits(hidden[0]), tokens, masks, scale)[0]

    step = mx.compile(mx.value_and_grad(ours if kind == "fused" else naive))

    def go() -> tuple[int, float]:
        mx.eval(hidden, tokens, masks, scale)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        start = time.perf_counter()
        mx.eval(step(hidden[1:]))
        return mx.get_peak_memory() - before, time.perf_counter() - start

    return go


def losses_alone(base: Base, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """At --naive-rows of fused (MTP-D and CE) and naive; of the fused loss at the whole batch, with K heads and with twice as
    many. Interleaved."""
    cases = {
        "fused": (args.naive_rows, args.num_heads, "fused", "mtpd"),
        "fused_ce": (args.naive_rows, args.num_heads, "fused", "ce"),
        "naive": (args.naive_rows, args.num_heads, "naive", "mtpd"),
        "fused_whole_batch": (args.batch_size, args.num_heads, "fused", "mtpd"),
        "fused_whole_batch_2k": (args.batch_size, 2 * args.num_heads, "fused", "mtpd"),
    }
    arms = {name: loss_alone(base, args, *case) for name, case in cases.items()}
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in cases}
    for _ in range(1 + args.repeats):
        for name in list(arms):
            try:
                found[name].append(arms[name]())
                print(f"  loss alone, {name}: {found[name][-1][1]:.3f} s", file=sys.stderr)
            except RuntimeError as error:  # out of memory
                print(f"  {name}: {str(error).splitlines()[0]}", file=sys.stderr)
                del arms[name], found[name]
    figures = {}
    for name, goes in found.items():
        times = [seconds for _, seconds in goes[1:]]  # the first one compiles
        peak = max(peak for peak, _ in goes)
        figures[name] = {"peak_mb": peak / 1e6, "seconds": statistics.median(times), "times_s": times}
    return figures


def flops_per_token(base: Base, num_heads: int, vocab_size: int) -> float:
    """Products of a heads-mode step (attention scores left out): the base forward, heads and output heads forward and back."""
    from mlx.utils import tree_flatten

    def matrices(module: nn.Module) -> int:
        return sum(w.size for name, w in tree_flatten(module.parameters()) if w.ndim == 2)

    trunk = sum(matrices(layer) for layer in base.layers)
    head = matrices(base.layers[-1]) + 2 * base.hidden_size**2
    output = base.hidden_size * vocab_size
    return 2.0 * (trunk + 3 * num_heads * head + output + 2 * num_heads * output)


def lora_tokens_per_s(base: Base, args: argparse.Namespace, iters: int = 12) -> float:
    """mlx-lm's own LoRA trainer with its own defaults on the same base, batch and length; its own tokens per second."""
    from mlx_lm.lora import CONFIG_DEFAULTS
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    speeds: list[float] = []

    class Listen(TrainingCallback):
        def on_train_loss_report(self, train_info: dict) -> None:
            speeds.append(train_info["tokens_per_second"])

    model = base.model
    model.freeze()
    layers = min(CONFIG_DEFAULTS["num_layers"], len(base.layers))
    linear_to_lora_layers(model, layers, CONFIG_DEFAULTS["lora_parameters"])
    data = [(text(base.vocab_size, 1, args.length, s).tokens[0].tolist(), 0) for s in range(args.batch_size * 4)]
    options = TrainingArgs(
        batch_size=args.batch_size,
        iters=iters,
        steps_per_report=2,
        steps_per_save=10**9,
        max_seq_length=args.length,
        adapter_file="/dev/null",
    )
    from mtpd_mlx.model.runtime import optim

    train(model, optim.Adam(1e-5), data, None, options, training_callback=Listen())
    return statistics.median(speeds[1:])


def run(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Fills `result` part by part."""
    base = make_base(args.dims, args.bits)
    result |= {
        "device": str(mx.default_device()) if on_cpu() else mx.device_info()["device_name"],
        "shape": {k: getattr(args, k) for k in ("batch_size", "length", "num_heads", "top_n", "bits", "optimizer")}
        | {"hidden_size": base.hidden_size, "vocab_size": base.vocab_size, "dims": args.dims or "demo model"},
    }
    if not args.steps_only:
        alone = result["loss_alone"] = losses_alone(base, args)
        result["loss_ratio_mtpd_ce"] = ratio(alone["fused"], alone["fused_ce"])
        if "naive" in alone:
            result["memory_ratio_naive"] = alone["naive"]["peak_mb"] / alone["fused"]["peak_mb"]
            result["loss_speedup_over_naive"] = ratio(alone["naive"], alone["fused"])
    arms = {loss: new_stepper(base, args, loss) for loss in ("ce", "mtpd", args.loss) if loss}
    result["steps"] = time_steps(arms, args, args.batch_size)
    mtpd, ce = result["steps"]["mtpd"], result["steps"]["ce"]
    result["step_ratio_mtpd_ce"] = ratio(mtpd, ce)
    if args.steps_only:
        return
    small = {"mtpd": arms["mtpd"], "naive": new_stepper(base, args, "mtpd", NaiveStepper)}
    loss = loss_alone(base, args, args.naive_rows, args.num_heads, "fused", "mtpd")
    result["against_naive"] = time_steps(small, args, args.naive_rows, loss) | {"rows": args.naive_rows}
    naive, ours = result["against_naive"]["naive"], result["against_naive"]["mtpd"]
    losses = result["against_naive"]["loss_times_s"]
    result["loss_share_of_step"] = statistics.median(a / b for a, b in zip(losses, ours["times_s"], strict=True))
    if "failed" not in naive:
        result["speedup_over_naive"] = ratio(naive, ours)
        rounds = zip(naive["times_s"], ours["times_s"], losses, strict=True)
        result["speedup_bound"] = statistics.median(n / max(o - part, 1e-9) for n, o, part in rounds)
    flops = flops_per_token(base, args.num_heads, base.vocab_size) * mtpd["tokens_per_s"]
    result["model_tflops"] = flops / 1e12
    for name, peak in PEAK_FLOPS.items():
        if name in result["device"]:
            result["model_flops_utilisation"] = flops / peak
    if args.lora:
        del arms, small
        mx.clear_cache()
        result["lora_tokens_per_s"] = lora_tokens_per_s(base, args)
        result["heads_over_lora"] = mtpd["tokens_per_s"] / result["lora_tokens_per_s"]


def main() -> int:
    bound_queue()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", choices=sorted(DIMS), help="random weights of these dims instead of the bundled model")
    parser.add_argument("--bits", type=int, help="quantise the random base (group 64)")
    parser.add_argument("--batch-size", type=int, help="rows (default: 4)")
    parser.add_argument("--length", type=int, help="tokens per row (default: 128, with --dims 2048)")
    parser.add_argument("--naive-rows", type=int, help="rows at which the naive loss is compared (default: as --batch-size)")
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--top-n", type=int, default=LossConfig.top_n)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--draft-vocab", type=int, help="heads draft among so many tokens (evenly spread ones)")
    parser.add_argument("--loss", choices=LOSSES[2:], help="the steps of this loss too")
    parser.add_argument("--steps-only", action="store_true", help="only the steps of CE, MTP-D and --loss")
    parser.add_argument("--chunk-mb", type=int, help="size of one block of logits in the fused loss")
    parser.add_argument("--lora", action="store_true", help="also run mlx-lm's LoRA trainer")
    parser.add_argument("--quick", action="store_true", help="the bundled model, few repeats")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.repeats = 5 if args.quick else args.repeats
    args.batch_size = args.batch_size or 4
    args.length = args.length or (2048 if args.dims else 128)
    args.naive_rows = args.naive_rows or args.batch_size
    if args.chunk_mb:
        CHUNK_BYTES.update(dict.fromkeys(CHUNK_BYTES, args.chunk_mb << 20))
    result: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        run(args, result)
    except KeyboardInterrupt:
        status = 130
        print("bench_train: stopped; the parts that were done:", file=sys.stderr)
    if args.json:
        print(json.dumps(result, indent=2))
        return status
    ratios = ["step_ratio_mtpd_ce", "loss_ratio_mtpd_ce", "speedup_over_naive", "loss_speedup_over_naive", "speedup_bound"]
    for name in (*ratios, "loss_share_of_step", "memory_ratio_naive", "heads_over_lora"):
        if name in result:
            print(f"{name}: {result[name]:.2f}")
    for name, arm in result.get("steps", {}).items():
        print(f"{name}: {arm['step_s']:.3f} s a step, {arm['tokens_per_s']:.0f} tokens/s, peak {arm['peak_gb']:.2f} GB")
    return status


if __name__ == "__main__":
    sys.exit(main())
