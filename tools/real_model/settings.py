"""The figures of the recipe, by size. `shipped` made the heads in mtpd_mlx/assets.
Called by real_model/__main__.py and prompts.py."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Own:
    """Text that the base writes. `share`: of the prompts; `temp` 0: greedy; `max_tokens`: new tokens of a text, at most."""

    name: str
    share: float
    temp: float
    max_tokens: int


@dataclass(frozen=True)
class Training:
    """`iters` optimiser steps at a peak `rate`. warmup, min_lr_ratio: None for the defaults of mtpd train. shares: of the parts
    of the own text, in their order (empty: by size). rows: of a step, None for the size's."""

    iters: int
    rate: float
    seed: int
    loss: str = "kl"
    warmup: int | None = None
    min_lr_ratio: float | None = None
    shares: tuple[float, ...] = ()
    rows: int | None = None


@dataclass(frozen=True)
class Size:
    """own: what is written, each part from a random share of the prompts, at most `prompts` of at most prompt_tokens.
    trainings: of the heads, each from the heads of the one before; longer: of heads 5..8. rows x row_tokens: a step.
    eval_prompts: of every set. keep: of mtpd train."""

    own: tuple[Own, ...]
    prompts: int | None
    prompt_tokens: int
    valid_share: float
    rows: int
    row_tokens: int
    trainings: tuple[Training, ...]
    longer: Training
    steps_per_eval: int
    save_every: int
    eval_prompts: int
    eval_tokens: int
    keep: str = "tau"


SIZES = {
    "shipped": Size(
        own=(
            Own("greedy", 0.69, 0.0, 256),
            Own("t06", 0.18, 0.6, 320),
            Own("t07", 0.18, 0.7, 320),
            Own("t08", 0.18, 0.8, 320),
            Own("t10", 0.06, 1.0, 320),
        ),
        prompts=None,
        prompt_tokens=320,
        valid_share=0.005,
        rows=16,
        row_tokens=1024,
        trainings=(
            Training(2000, 5.333e-3, 0),
            Training(7100, 4e-3, 1),
            Training(10_600, 4e-3, 3, "mtpd", 100, 0.0, (0.61, 0.11, 0.11, 0.12, 0.05)),
            Training(2900, 2.5e-3, 5, "mtpd", 100, 0.0, (0.61, 0.11, 0.11, 0.12, 0.05), rows=64),
        ),
        longer=Training(1700, 1.778e-3, 0),
        steps_per_eval=500,
        save_every=200,
        eval_prompts=40,
        eval_tokens=128,
    ),
    "small": Size(  # a tenth of the text and of the steps
        own=(Own("greedy", 0.5, 0.0, 192), Own("t07", 0.5, 0.7, 192)),
        prompts=20_000,
        prompt_tokens=320,
        valid_share=0.02,
        rows=16,
        row_tokens=512,
        trainings=(
            Training(200, 5.333e-3, 0),
            Training(700, 4e-3, 1),
            Training(1000, 4e-3, 3, "mtpd", 50, 0.0, (0.6, 0.4)),
        ),
        longer=Training(200, 1.778e-3, 0),
        steps_per_eval=100,
        save_every=50,
        eval_prompts=16,
        eval_tokens=128,
    ),
    "tiny": Size(  # a rehearsal, on a CPU
        own=(Own("greedy", 1.0, 0.0, 24), Own("t07", 0.5, 0.7, 24)),
        prompts=32,
        prompt_tokens=96,
        valid_share=0.2,
        rows=2,
        row_tokens=64,
        trainings=(Training(4, 1e-3, 0), Training(4, 1e-3, 3, "mtpd", 1, 0.0, (0.6, 0.4), rows=4)),
        longer=Training(2, 5e-4, 0),
        steps_per_eval=2,
        save_every=2,
        eval_prompts=2,
        eval_tokens=16,
        keep="loss",  # so few steps seldom move tau
    ),
}
