"""`mtpd distill-data`: the base's own answers to prompts, as training data.
Called by mtpd_mlx/cli.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from mtpd_mlx.options.distill import DistillConfig
from mtpd_mlx.options.schema import Given, build

if TYPE_CHECKING:
    from mtpd_mlx.ranks.world import World

FILE_OPTIONS = (DistillConfig,)
EXAMPLES = (
    "mtpd distill-data --model Qwen/Qwen3-0.6B --prompts prompts.jsonl --out own",
    "mlx.launch -n 4 mtpd distill-data --model Qwen/Qwen3-0.6B --prompts prompts.jsonl --out own",
    "mtpd train --model Qwen/Qwen3-0.6B --data own --out heads",
)


def run(given: Given) -> int:
    from mtpd_mlx.data.own_folder import resumed_config
    from mtpd_mlx.data.own_text import distill, load_work
    from mtpd_mlx.files.lock import check_unlocked
    from mtpd_mlx.ranks.watch import stop_clearly
    from mtpd_mlx.ranks.world import World

    cfg = resumed_config(given.file, given.flags) if given.resume else build((DistillConfig,), given.file, given.flags)[0]
    world = World.launched()
    launch = "" if world.size == 1 else f"mlx.launch -n {world.size} "
    again = f"continue with: {launch}mtpd distill-data --resume --out {quote(cfg.out)}"
    world.from_lead(lambda: check_unlocked(Path(cfg.out)))
    with stop_clearly(world, again):
        work = load_work(cfg)
        with progress(len(work.prompts), world) as show:
            try:
                counts = distill(work, world, show)
            except KeyboardInterrupt:
                print(f"interrupted; {again}")
                raise
    if world.leads:
        print(", ".join(f"{name}: {count} rows" for name, count in counts.items()) + f" -> {cfg.out}")
    return 0


@contextmanager
def progress(prompts: int, world: "World") -> Iterator[Callable[[int, int], None]]:
    """A bar of what rank 0 has done; of several ranks, its share."""
    from tqdm import tqdm

    made = 0
    name = None if world.size == 1 else f"rank 0 of {world.size}"
    quiet = None if world.leads else True  # None: where there is a terminal
    with tqdm(total=-(-prompts // world.size), unit="prompt", desc=name, dynamic_ncols=True, disable=quiet) as bar:

        def show(prompts: int, tokens: int) -> None:
            nonlocal made
            made += tokens
            bar.update(prompts)
            bar.set_postfix_str(f"{made} tokens, {made / max(bar.format_dict['elapsed'], 1e-9):.0f} tok/s")

        yield show
