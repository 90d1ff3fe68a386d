"""`Claim`: the paper's figures beside ours, with their certainty (arXiv 2603.23911 has no code).
Called by tools/experiments/pages.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.experiments.findings import (
    FIRST,
    FREE,
    FREE_MEAN,
    SAID_FIRST,
    SAID_FREE,
    SAID_FREE_MEAN,
    WAYS,
    Run,
    greedy,
    joint_effect,
    one_head_tau,
    speed_ratios,
    tau_ratios,
)

SCALE = (
    "The paper's figures are of a dense 2B model trained on 350B tokens of FineWeb-Edu and measured on AGIEval-en; ours of "
    "models of 1M, 30M and 107M parameters on 25M to 46M tokens from scratch (1M: .5M; a base alone up to 82M), measured on "
    "text that these models continue, greedily, for prompts of seven sets. Signs and orders of magnitude can be compared. "
    "Whether MTP-D adds the losses of its heads up or takes their mean (as DeepSeek-V3, whose cascade it uses, does) is not "
    "known to us; both are measured."
)
EVERY_WAY = ((FIRST, SAID_FIRST), *WAYS)


@dataclass(frozen=True)
class Claim:
    """ours(run): our figure in words, None where nothing was measured; why: how the two may differ, beside the scale."""

    figure: str
    claimed: str
    ours: Callable[[Run], str | None]
    why: str


def car_and_ar(heads: int) -> Callable[[Run], str | None]:
    def ours(run: Run) -> str | None:
        ce = run.get(f"joint{heads}-ce")
        ways = [f"{said} {both(e)}" for of, said in EVERY_WAY if (e := run.get(f"joint{heads}-{of}")) is not None]
        return f"{both(ce)} -> {', '.join(ways)} (CAR/AR, seed 0)" if ce is not None and ways else None

    def both(entry: dict[str, Any]) -> str:
        return f"{100 * greedy(entry)['car'][-1]:.2f}/{100 * greedy(entry)['ar'][-1]:.2f}"

    return ours


def by_seed(name: str, form: str) -> Callable[[Run], str | None]:
    """A figure of joint MTP-D against CE heads, for each way of it."""

    def ours(run: Run) -> str | None:
        figures = [(said, ", ".join(format(e[name], form) for e in joint_effect(run, 4, of))) for of, said in EVERY_WAY]
        text = "; ".join(f"{said} {values}" for said, values in figures if values)
        return f"{text} (by seed)" if text else None

    return ours


def without_detaching(run: Run) -> str | None:
    """Against CE heads, by seed."""
    parts = []
    for of, said in ((FREE, SAID_FREE), (FREE_MEAN, SAID_FREE_MEAN)):
        if effects := joint_effect(run, 4, of):
            main, points = (
                ", ".join(format(e[n], f) for e in effects) for n, f in (("main_loss_percent", "+.2f"), ("car_points", "+.1f"))
            )
            parts.append(f"{said}: main loss {main}%, CAR_4 {points} points")
    return f"{'; '.join(parts)} (against CE heads, by seed)" if parts else None


def stronger_beta(run: Run) -> str | None:
    strong, usual = run.get("joint4-beta1.5"), run.get("joint4-mtpd")
    if strong is None or usual is None:
        return None
    return f"main loss {100 * (strong['main']['all']['loss'] / usual['main']['all']['loss'] - 1):+.2f}%"


def ratio(form: str) -> Callable[[Run], str | None]:
    """Of the arms named `form` with each way of joint MTP-D."""

    def ours(run: Run) -> str | None:
        ratios, one = tau_ratios(run), one_head_tau(run)
        ways = [(said, ratios.get(f"{form.format(of)}.s0")) for of, said in EVERY_WAY]
        measured = ", ".join(f"{said} {value:.3f}" for said, value in ways if value)
        if one is None or not measured:
            return None
        clock = "".join(
            f"; wall clock on {runtime}: {value:.2f} ({said})"
            for of, said in WAYS
            for runtime, value in speed_ratios(run, f"{form.format(of)}.s0")
        )
        return f"{measured} (tau over that of {one[1]}){clock}"

    return ours


def copied(run: Run) -> str | None:
    ce, mtpd = run.get("joint1-ce-copy8"), run.get("joint1-mtpd-copy8")
    if ce is None or mtpd is None:
        return None
    return "MTP {:.1f}%, MTP-D {:.1f}%".format(*(100 * greedy(e)["car"][2] for e in (ce, mtpd)))


CLOCK = "for so small a base a draft costs a fifth of a plain token (onnxruntime) and rounds wait for the host (MLX)"
EARLY = (
    "early in training heads predict better than their teacher (they see its tokens through more blocks), so a detached KL "
    "pulls what they share towards the worse of the two; summed over four heads it outweighs the main loss "
    "(docs/joint-training.md)"
)
AGAIN = "as above"
CLAIMS = [
    Claim("Head-4 acceptance, gain", "+7.5 points (CAR)", by_seed("car_points", "+.1f"), EARLY),
    Claim("K = 1, MTP -> MTP-D", "AR 85.75 -> 88.98", car_and_ar(1), AGAIN),
    Claim("K = 4, MTP -> MTP-D, head 4", "CAR/AR 45.47/83.77 -> 52.96/86.46", car_and_ar(4), AGAIN),
    Claim(
        "Main head preserved",
        "promised, with a detached teacher",
        by_seed("main_loss_percent", "+.2f"),
        f"{AGAIN}; ours is percent of held-out loss, theirs are benchmark scores",
    ),
    Claim(
        "Teacher not detached",
        "main head loses about 1.49 points",
        without_detaching,
        f"{AGAIN}; what a more predictable main head does to benchmark scores at 2B cannot be seen here",
    ),
    Claim(
        "beta = 1.5",
        "raises the main loss",
        stronger_beta,
        "the same sign; ours is larger, as is every detached KL that is summed over heads",
    ),
    Claim(
        "Training-free loop, deep heads",
        "1 -> 8, CAR_3: MTP 0.6%, MTP-D 26.7%",
        copied,
        "perhaps because our models' own text is easy to continue (distinct-4 .3)",
    ),
    Claim("4 heads over 1-head MTP", "2.074x speed", ratio("joint4-{}"), CLOCK),
    Claim("Looped to 8", "3.052x speed", ratio("joint4-{}-loop8"), f"{CLOCK}; the extension took 70B tokens there, 7M here"),
    Claim("Looped to 16", "3.204x speed", ratio("joint4-{}-loop16"), AGAIN),
]
