"""What runs leave behind to be taken up again, made on a tiny base, and its loaders: as fuzzing.targets has models'."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make_state(root: Path, base: Path) -> dict[str, Path]:
    """An interrupted run of `mtpd train`, a cache and an interrupted `mtpd distill-data`, in folders of `root`."""
    from mtpd_mlx.data.own_folder import CONFIG_NAME, PART_NAME
    from mtpd_mlx.data.own_text import load_work
    from mtpd_mlx.model.load_save import versions
    from mtpd_mlx.options.distill import DistillConfig
    from mtpd_mlx.options.schema import as_dict

    root.mkdir(parents=True, exist_ok=True)
    (root / "text.jsonl").write_text('{"text": "abcdefgh ijklm nopq"}\n' * 12)
    train(root / "run", base, root / "text.jsonl")
    cache(root / "cache", base, root / "text.jsonl")
    cfg = DistillConfig(model=str(base), prompts=str(root / "text.jsonl"), out=str(root / "own"), max_tokens=4)
    work = load_work(cfg)
    (root / "own").mkdir()
    settings = {"options": as_dict(cfg), "base": work.base.fingerprint, "versions": versions()}
    (root / "own" / CONFIG_NAME).write_text(json.dumps(settings))
    rows = [{"row": i, "prompt": "a", "completion": "b", "tokens": [*work.prompts[i], 3], "prompt_tokens": len(work.prompts[i])}
            for i in range(3)]  # fmt: skip
    (root / "own" / PART_NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: root / name for name in ("run", "cache", "own")}


def stepper() -> Any:
    from tiny import LLAMA

    from mtpd_mlx.losses.objective import Model
    from mtpd_mlx.model.heads import init_heads
    from mtpd_mlx.model.new_base import new_base
    from mtpd_mlx.options.train import LossConfig, OptimConfig
    from mtpd_mlx.train.step import Stepper

    base = new_base(LLAMA, 0)
    return Stepper(Model(base, init_heads(base, 1, "postnorm", 0), False), LossConfig(), OptimConfig(iters=4, warmup=0))


def loop(out: Path) -> Any:
    """The training loop of `train` below, which goes on in `out`."""
    from tiny import cycle_batch

    from mtpd_mlx.options.train import OptimConfig, RunConfig
    from mtpd_mlx.train.loop import Run

    class Rows:
        def batch(self, step: int) -> Any:
            if step == 2:
                raise KeyboardInterrupt
            return cycle_batch(2, 12, step)

    made = stepper()
    cfg = RunConfig(out=str(out), steps_per_report=1)
    return Run(made.model, made, Rows(), [cycle_batch(2, 12, 9)], OptimConfig(iters=4), cfg, lambda progress: None)


def train(out: Path, base: Path, data: Path) -> None:
    from mtpd_mlx.options.train import TrainOptions
    from mtpd_mlx.train.folder import begin

    out.mkdir()
    options = TrainOptions.build({"model": str(base), "data": str(data), "out": str(out)}, {})
    begin(out, options.to_dict(), {"train_rows": "a", "valid_rows": "b", "base_weights": "c"})
    try:
        loop(out).run()
    except KeyboardInterrupt:
        return
    raise AssertionError("the loop was to be interrupted")


def cache(out: Path, base: Path, data: Path) -> None:
    from mtpd_mlx.teacher_cache.job import CacheOptions, prepare
    from mtpd_mlx.teacher_cache.writer import write_cache

    values = {"model": str(base), "data": str(data), "out": str(out), "max_seq_length": 12, "batch_size": 2, "top_n": 3}
    write_cache(prepare(CacheOptions.build(values, {})))


def state_targets(state: dict[str, Path]) -> dict[str, tuple[Path, str, Callable[[Path], Any]]]:
    """name -> (folder to damage, file in it, loader of the folder)."""
    from mtpd_mlx.data.own_folder import PART_NAME, finished, resumed_config
    from mtpd_mlx.data.own_text import encode
    from mtpd_mlx.options.distill import DistillConfig
    from mtpd_mlx.teacher_cache.job import resumed_options as resumed_cache
    from mtpd_mlx.teacher_cache.reader import CachedDataset
    from mtpd_mlx.text.tokenizer import Tokenizer
    from mtpd_mlx.train.folder import check_identity, resumed_options

    cfg = DistillConfig(**json.loads((state["own"] / "distill_config.json").read_text())["options"])
    prompts = encode(Path(cfg.prompts), Tokenizer.from_folder(Path(cfg.model)), cfg)

    def options(folder: Path) -> None:
        resumed_options({}, {"out": str(folder)})
        check_identity(folder, {"train_rows": "a", "base_weights": "c"})

    def resume(folder: Path) -> None:
        loop(folder).resume()

    def rows(folder: Path) -> None:
        for _ in CachedDataset(folder, "train", 2, 0).iter_batches(2):
            pass

    return {
        "run, options": (state["run"], "train_options.json", options),
        "run, progress": (state["run"], "resume-2/progress.json", resume),
        "run, parameters": (state["run"], "resume-2/params.safetensors", resume),
        "run, optimiser": (state["run"], "resume-2/optimizer.safetensors", resume),
        "run, log": (state["run"], "train_log.jsonl", resume),
        "cache, read": (state["cache"], "cache.json", rows),
        "cache, resumed": (state["cache"], "cache.json", lambda folder: resumed_cache({}, {"out": str(folder)})),
        "distilled, options": (state["own"], "distill_config.json", lambda folder: resumed_config({}, {"out": str(folder)})),
        "distilled, rows": (state["own"], PART_NAME, lambda folder: list(finished(folder / PART_NAME, prompts))),
    }
