#!/usr/bin/env python3
"""CE against MTP-D on one frozen base: the same steps, the same time, and the base's own text as data.

    python tools/experiments/prepare_text.py SOURCE DATA
    python tools/experiments/equal_time.py DATA OUT --seconds 45 --base-steps 9000

Trains a 30M Llama on DATA (kept in OUT/base), lets it write its own continuations (OUT/own.npz), then trains 4 heads per arm
and measures tau on the base's greedy continuations of held-out prompts. An arm of "equal time" gets as many steps as fit in
--seconds at its own median step time, measured before. What is done is not done again; OUT/results.json grows arm by arm.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.base import Base, load_base, new_base
from mtpd_mlx.checkpoint import save_base, versions
from mtpd_mlx.config import LossConfig, OptimConfig, RunConfig
from mtpd_mlx.data import Batch, DataConfig, PackedDataset, load_dataset
from mtpd_mlx.data.dataset import MixedDataset
from mtpd_mlx.distill import DistillConfig, picker
from mtpd_mlx.evaluate import measure, repetition
from mtpd_mlx.generation import Generation, generate_batch, generate_greedy
from mtpd_mlx.heads import init_heads
from mtpd_mlx.mlx_runtime import mx, on_cpu
from mtpd_mlx.objective import Model
from mtpd_mlx.prompts import encode_prompts
from mtpd_mlx.speculative.tokenizer import Tokenizer
from mtpd_mlx.train_step import Stepper, compute_dtype
from mtpd_mlx.trainer import Run

BASE = {
    "model_type": "llama",
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 1408,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}
TINY = BASE | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 2}
CE, MTPD, KL = LossConfig(loss="ce", alpha=(1.0,)), LossConfig(), LossConfig(loss="kl")
Arm = tuple[str, LossConfig, str, str, int]  # name, loss, data, budget, seed
ARMS: list[Arm] = [
    ("ce", CE, "corpus", "time", 0),
    ("mtpd", MTPD, "corpus", "time", 0),
    ("mtpd at the steps of ce", MTPD, "corpus", "steps", 0),
    ("mtpd on own text", MTPD, "mixed", "time", 0),
    ("ce on own text", CE, "mixed", "time", 0),
    ("ce, seed 1", CE, "corpus", "time", 1),
    ("mtpd, seed 1", MTPD, "corpus", "time", 1),
    ("kl", KL, "corpus", "time", 0),
]


def load_rows(data: Path, args: argparse.Namespace) -> tuple[PackedDataset, PackedDataset]:
    """Train and validation rows; tokenised once, into DATA/rows.npz."""
    file = data / "rows.npz"
    if not file.exists():
        splits = load_dataset(DataConfig((str(data),), max_seq_length=args.length), Tokenizer.from_folder(data / "tokenizer"))
        arrays = {}
        for name, part in (("train", splits.train), ("valid", splits.valid)):
            assert isinstance(part, PackedDataset)
            arrays |= {
                f"{name}.tokens": part.rows.tokens.astype(np.uint16),
                f"{name}.segments": part.rows.segments.astype(np.uint16),
            }
        np.savez(file, **arrays)
    stored = np.load(file)

    def dataset(name: str) -> PackedDataset:
        tokens, segments = (stored[f"{name}.{part}"].astype(np.int32) for part in ("tokens", "segments"))
        return PackedDataset(Batch(tokens, segments, segments > 0), args.batch_size, 0)

    return dataset("train"), dataset("valid")


def train(model: Model, loss: LossConfig, data: Any, valid: list[Batch], out: Path, iters: int, rate: float, seed: int) -> Run:
    """One run whose model keeps the parameters of its last step."""
    optim = OptimConfig(iters=iters, learning_rate=rate, warmup=min(100, iters // 4))
    run_cfg = RunConfig(str(out), seed=seed, steps_per_report=500, steps_per_eval=0, save_every=0)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(model, Stepper(model, loss, optim), data, valid, optim, run_cfg, save_best=lambda progress: None)
    run.run()
    return run


def get_base(out: Path, data: Path, train_set: PackedDataset, valid: list[Batch], args: argparse.Namespace) -> Base:
    if not (out / "base" / "config.json").exists():
        base = new_base(TINY if args.tiny else BASE, 0)
        model = Model(base, init_heads(base, 1, "postnorm", 0), joint=True)
        started = time.perf_counter()
        run = train(model, LossConfig(loss="ce", alpha=(0.0,)), train_set, valid, out / "base_run", args.base_steps, 2e-3, 0)
        seconds = time.perf_counter() - started
        print(
            f"base: {args.base_steps} steps in {seconds:.0f} s, valid loss {run.progress.best_eval['main_loss']:.4f}",
            flush=True,
        )
        save_base(out / "base", base, data / "tokenizer")
    base = load_base(str(out / "base"))
    base.model.set_dtype(compute_dtype(OptimConfig()))
    return base


def own_text(base: Base, train_set: PackedDataset, file: Path, args: argparse.Namespace) -> PackedDataset:
    """Rows [R, length]: the first 64 tokens of rows of the corpus, continued by the base (temperature 0.6)."""
    if not file.exists():
        pick, rows, started = picker(DistillConfig(temp=args.temperature)), [], time.perf_counter()
        for number in range(args.own_batches):
            mx.random.seed(number)
            chosen = train_set.rows.tokens[number * args.own_rows : (number + 1) * args.own_rows, :64].tolist()
            texts = generate_batch(base, chosen, args.length - 64, frozenset(), pick)
            rows += [prompt + text for prompt, text in zip(chosen, texts, strict=True)]
        print(f"own text: {len(rows)} rows in {time.perf_counter() - started:.0f} s", flush=True)
        np.savez(file, tokens=np.array(rows, np.uint16))
    tokens = np.load(file)["tokens"].astype(np.int32)
    return PackedDataset(Batch(tokens, np.ones_like(tokens), np.ones_like(tokens, dtype=bool)), args.batch_size, 0)


def step_seconds(base: Base, loss: LossConfig, data: Any, args: argparse.Namespace) -> float:
    """Median time of a step of this loss, after warming up."""
    stepper = Stepper(Model(base, init_heads(base, args.num_heads, "postnorm", 0), joint=False), loss, OptimConfig(iters=100))
    times = []
    for i in range(4 + args.calibration):
        started = time.perf_counter()
        stepper.step([data.batch(i)])
        times.append(time.perf_counter() - started)
    return statistics.median(times[4:])


def run_arm(
    base: Base, arm: Arm, corpus: PackedDataset, own: PackedDataset, steps: int, texts: list[Generation], valid: list[Batch],
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    name, loss, kind, _, seed = arm
    heads = init_heads(base, args.num_heads, "postnorm", seed)
    parts = [PackedDataset(part.rows, args.batch_size, seed) for part in (corpus, own)]
    data = MixedDataset(parts, (0.5, 0.5)) if kind == "mixed" else parts[0]
    folder = args.out / "arms" / name.replace(" ", "_")
    run = train(Model(base, heads, joint=False), loss, data, valid, folder, steps, 1e-3, seed)
    heads.set_dtype(base.dtype)
    heads.eval()
    return {"steps": steps, "seconds": run.progress.seconds, "valid": run.progress.best_eval} | measure(base, heads, texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=45, help="of training per arm of equal time")
    parser.add_argument("--base-steps", type=int, default=9000)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens per held-out prompt")
    parser.add_argument("--own-rows", type=int, default=512, help="rows of own text per batch")
    parser.add_argument("--own-batches", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.6, help="of the own text")
    parser.add_argument("--calibration", type=int, default=30, help="steps that a step time is the median of")
    parser.add_argument("--arms", type=int, default=len(ARMS), help="only the first arms")
    parser.add_argument("--stop-after", choices=["rows", "base", "own"], help="end after this part")
    parser.add_argument("--tiny", action="store_true", help="a toy base, to try the script")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    corpus, valid_set = load_rows(args.data, args)
    if args.stop_after == "rows":
        return
    valid = list(valid_set.iter_batches(args.batch_size))[:10]
    base = get_base(args.out, args.data, corpus, valid, args)
    if args.stop_after == "base":
        return
    own = own_text(base, corpus, args.out / "own.npz", args)
    if args.stop_after == "own":
        return
    tokenizer = Tokenizer.from_folder(args.data / "tokenizer")
    prompts = encode_prompts(args.data / "prompts.jsonl", tokenizer, 512, args.prompts)
    texts = generate_greedy(base, [p.tokens for p in prompts], args.max_tokens, tokenizer.eos_token_ids, batch_size=64)
    file = args.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    device = "cpu" if on_cpu() else mx.device_info()["device_name"]
    options = {k: v for k, v in vars(args).items() if isinstance(v, int | float)}
    results["conditions"] = options | {"device": device, "versions": versions(), "distinct4": repetition(texts)}
    seconds = {loss.loss: step_seconds(base, loss, corpus, args) for loss in (CE, MTPD, KL)}
    results["step_seconds"] = seconds
    print(f"seconds per step: {seconds}", flush=True)
    for arm in ARMS[: args.arms]:
        if arm[0] not in results:
            steps = int(args.seconds / seconds["ce" if arm[3] == "steps" else arm[1].loss])
            results[arm[0]] = run_arm(base, arm, corpus, own, steps, texts, valid, args)
            file.write_text(json.dumps(results, indent=2))
        print(describe(arm[0], results[arm[0]]), flush=True)


def describe(name: str, r: dict[str, Any]) -> str:
    car = " ".join(f"{c:.3f}" for c in r["car"])
    return f"{name}: {r['steps']} steps {r['seconds']:.0f} s, tau {r['tau']:.3f} (new {r['novel']['tau']:.3f}) CAR {car}"


if __name__ == "__main__":
    main()
