"""The paper's figures beside ours. Claims and their certainty: arXiv 2603.23911 as known to us (no code, AGIEval-en alone sure
by name among its benchmarks)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.experiments.findings import FREE, SAID_FREE, WAYS, Run, greedy, joint_effect, one_head_tau, tau_ratios

SCALE = "2B dense, FineWeb-Edu, 350B tokens, AGIEval-en"
SMALL = "models of 1M to 107M on up to tens of millions of tokens, greedy text of base models"


@dataclass(frozen=True)
class Claim:
    """ours(run): our figure in words, None where nothing was measured; why: how the two may differ."""

    figure: str
    claimed: str
    scale: str
    ours: Callable[[Run], str | None]
    why: str


def car_and_ar(heads: int) -> Callable[[Run], str | None]:
    def ours(run: Run) -> str | None:
        ce, mtpd = run.get(f"joint{heads}-ce"), run.get(f"joint{heads}-mtpd")
        if ce is None or mtpd is None:
            return None
        others = "".join(f", {said} {both(e)}" for of, said in WAYS if (e := run.get(f"joint{heads}-{of}")) is not None)
        return f"{both(ce)} -> {both(mtpd)} (CAR/AR, seed 0){others}"

    def both(entry: dict[str, Any]) -> str:
        return f"{100 * greedy(entry)['car'][-1]:.2f}/{100 * greedy(entry)['ar'][-1]:.2f}"

    return ours


def by_seed(name: str, form: str) -> Callable[[Run], str | None]:
    """A figure of joint MTP-D, and of its other ways."""

    def ours(run: Run) -> str | None:
        figures = [
            (said, ", ".join(format(e[name], form) for e in joint_effect(run, 4, of))) for of, said in (("mtpd", ""), *WAYS)
        ]
        text = "; ".join(f"{said} {values}".strip() for said, values in figures if values)
        return f"{text} (by seed)" if text else None

    return ours


def without_detaching(run: Run) -> str | None:
    """Against CE heads, by seed."""
    effects = joint_effect(run, 4, FREE)
    if not effects:
        return None
    main, points = (
        ", ".join(format(e[n], f) for e in effects) for n, f in (("main_loss_percent", "+.2f"), ("car_points", "+.1f"))
    )
    return f"{SAID_FREE}: main loss {main}% against CE heads, CAR_4 {points} points (by seed)"


def stronger_beta(run: Run) -> str | None:
    strong, usual = run.get("joint4-beta1.5"), run.get("joint4-mtpd")
    if strong is None or usual is None:
        return None
    return f"main loss {100 * (strong['main']['all']['loss'] / usual['main']['all']['loss'] - 1):+.2f}%"


def ratio(form: str) -> Callable[[Run], str | None]:
    """Of the arms named `form` with "mtpd", and with those of other ways in its place."""

    def ours(run: Run) -> str | None:
        ratios, one = tau_ratios(run), one_head_tau(run)
        usual = ratios.get(f"{form.format('mtpd')}.s0")
        if one is None or usual is None:
            return None
        ways = [(said, ratios.get(f"{form.format(of)}.s0")) for of, said in WAYS]
        others = "".join(f", {said} {value:.3f}" for said, value in ways if value)
        return f"{usual:.3f}{others} (tau over that of {one[1]})"

    return ours


def copied(run: Run) -> str | None:
    ce, mtpd = run.get("joint1-ce-copy8"), run.get("joint1-mtpd-copy8")
    if ce is None or mtpd is None:
        return None
    return "MTP {:.1f}%, MTP-D {:.1f}%".format(*(100 * greedy(e)["car"][2] for e in (ce, mtpd)))


DATA, LOSS = f"scale: {SMALL}", "percent of held-out loss, not benchmark scores"
CLAIMS = [
    Claim("Head-4 acceptance, gain", "+7.5 points (CAR)", SCALE, by_seed("car_points", "+.1f"), DATA),
    Claim("K = 1, MTP -> MTP-D", "AR 85.75 -> 88.98", SCALE, car_and_ar(1), DATA),
    Claim("K = 4, MTP -> MTP-D, head 4", "CAR/AR 45.47/83.77 -> 52.96/86.46", SCALE, car_and_ar(4), DATA),
    Claim("Main head preserved", "promised, with a detached teacher", SCALE, by_seed("main_loss_percent", "+.2f"), LOSS),
    Claim("Teacher not detached", "main head loses about 1.49 points", SCALE, without_detaching, "as above"),
    Claim("beta = 1.5", "raises the main loss", SCALE, stronger_beta, DATA),
    Claim("Training-free loop, deep heads", "1 -> 8, CAR_3: MTP 0.6%, MTP-D 26.7%", SCALE, copied, DATA),
    Claim("4 heads over 1-head MTP", "2.074x speed", SCALE, ratio("joint4-{}"), "ours is a ratio of tau"),
    Claim("Looped to 8", "3.052x speed", SCALE, ratio("joint4-{}-loop8"), "as above; theirs: 70B tokens"),
    Claim("Looped to 16", "3.204x speed", SCALE, ratio("joint4-{}-loop16"), "as above"),
]  # fmt: skip
