"""The arms of the experiments, grouped in parts, in the order of their worth.
Called by run.py, equal_time.py, merge.py and train_arm.py."""

from dataclasses import dataclass, replace

from mtpd_mlx.options.train import KL_START_FROM_SCRATCH, HeadsConfig, LossConfig, OptimConfig
from tools.experiments.settings import Setting

MTPD = LossConfig()  # alpha 0.3, beta 0.5, as reported for four heads; summed over them, our first reading of the paper
MTPD_1 = LossConfig(beta=(1.0,))  # as reported for one
CE = LossConfig(loss="ce")
CE_1 = LossConfig(loss="ce", alpha=(1.0,))  # on a frozen base nothing else shares the gradient's norm
MTPD_FREE = replace(MTPD, detach_teacher=False)
DEPTHS_UP = (0.35, 0.45, 0.55, 0.65)  # beta by depth, mean 0.5
COOL = 0.3  # temperature
BASE_ARM = "base"


@dataclass(frozen=True)
class Arm:
    """One training and its measurement. mode: base (a base alone), joint (base and heads from scratch), frozen (heads on the
    base of the arm `start`), loop (more heads for the arm `start`, whose own stay as they are; steps 0: copies only)."""

    part: str
    name: str
    mode: str
    loss: LossConfig
    num_heads: int
    steps: int
    seed: int = 0
    hidden_source: str = HeadsConfig.hidden_source
    text: str = "corpus"  # or mixed: own_share of it the base's own
    own_share: float = 0.5
    own_factor: int = 1  # of the setting's rows of own text
    own_temp: float | None = None  # temperature of that text (None: the setting's)
    optimizer: str = "adamw"
    rate_factor: float = 1.0  # of the setting's learning rate
    min_lr_ratio: float = OptimConfig.min_lr_ratio
    start: str | None = None  # key of another arm

    @property
    def key(self) -> str:
        return f"{self.name}.s{self.seed}"


def joint(s: Setting) -> list[Arm]:
    arms = []
    for seed in range(s.seeds):
        arms.append(Arm("joint4", "joint4-ce", "joint", CE, 4, s.joint_steps, seed))
        arms.append(Arm("joint4", "joint4-mtpd", "joint", MTPD, 4, s.joint_steps, seed))
    for seed in range(s.seeds):
        arms.append(Arm("joint1", "joint1-ce", "joint", CE, 1, s.joint_steps, seed))
        arms.append(Arm("joint1", "joint1-mtpd", "joint", MTPD_1, 1, s.joint_steps, seed))
    return arms


def late(s: Setting) -> list[Arm]:
    """MTP-D whose distillation begins when the base has settled, at half of the steps; its loops, one head, and other ways to
    begin late."""
    loss = replace(MTPD, kl_start=KL_START_FROM_SCRATCH)
    arms = [Arm("late", "joint4-mtpd-late", "joint", loss, 4, s.joint_steps, seed) for seed in range(s.seeds)]
    arms += loops("late-loops", arms[0].name, MTPD, s)
    one = replace(MTPD_1, kl_start=KL_START_FROM_SCRATCH)
    arms.append(Arm("late-ways", "joint1-mtpd-late", "joint", one, 1, s.joint_steps))
    alone = replace(loss, kl_reaches="heads")
    ways = {"heads": alone, "heads-beta1": replace(alone, beta=(1.0,)), "heads-quarter": replace(alone, kl_start=0.25)}
    ways |= {"beta1": replace(loss, beta=(1.0,)), "quarter": replace(loss, kl_start=0.25), "last": replace(loss, kl_start=0.75)}
    arms += [Arm("late-ways", f"joint4-mtpd-late-{name}", "joint", way, 4, s.joint_steps) for name, way in ways.items()]
    again = Arm("late-ways", "joint4-mtpd-late-heads", "joint", alone, 4, s.joint_steps)
    return arms + [replace(again, seed=seed) for seed in range(1, s.seeds)]


def loops(part: str, of: str, loss: LossConfig, s: Setting, seed: int = 0, text: str = "corpus") -> list[Arm]:
    """4 -> 8 -> 16 by copies alone, and trained."""
    arms, trained, copied = [], f"{of}.s{seed}", f"{of}.s{seed}"
    for count in (8, 16):
        arms.append(Arm(part, f"{of}-copy{count}", "loop", loss, count, 0, seed, start=copied, text=text))
        arms.append(Arm(part, f"{of}-loop{count}", "loop", loss, count, s.loop_steps, seed, start=trained, text=text))
        copied, trained = arms[-2].key, arms[-1].key
    return arms


def one_head_loops(of: str, loss: LossConfig) -> list[Arm]:
    """1 -> 2 -> 4 -> 8 by copies alone, as in the paper's pilot."""
    arms, before = [], f"{of}.s0"
    for count in (2, 4, 8):
        arms.append(Arm("copies", f"{of}-copy{count}", "loop", loss, count, 0, start=before))
        before = arms[-1].key
    return arms


def scratch(s: Setting) -> list[Arm]:
    """8 and 16 heads from scratch, for as many steps as 4 heads and their extension took together; and with weights that add up
    to those of 4 heads."""
    eight, sixteen = s.joint_steps + s.loop_steps, s.joint_steps + 2 * s.loop_steps
    arms = [
        Arm("scratch", f"joint{count}-{name}", "joint", loss, count, steps)
        for count, steps in ((8, eight), (16, sixteen))
        for name, loss in (("mtpd", MTPD), ("ce", CE), ("nodetach", MTPD_FREE))
    ]
    halved = {"alpha": (MTPD.alpha[0] / 2,), "beta": (MTPD.beta[0] / 2,)}
    return [
        *arms,
        Arm("scratch", "joint8-nodetach-halved", "joint", replace(MTPD_FREE, **halved), 8, eight),
        Arm("scratch", "joint8-ce-halved", "joint", replace(CE, alpha=halved["alpha"]), 8, eight),
    ]


def frozen(s: Setting) -> list[Arm]:
    """Losses on one frozen base, four heads."""
    plain = Arm("frozen", "frozen-ce", "frozen", CE_1, 4, s.heads_steps, start=f"{BASE_ARM}.s0")
    losses = [
        ("frozen-mtpd", MTPD),
        ("frozen-kl", LossConfig(loss="kl")),
        ("frozen-lk", LossConfig(loss="lk")),
        ("frozen-tv", LossConfig(loss="tv")),
    ]
    arms = [plain, *(replace(plain, name=name, loss=loss) for name, loss in losses)]
    own = [replace(arm, part="own", name=f"{arm.name}-own", text="mixed") for arm in (arms[1], arms[0])]
    again = [replace(arm, seed=seed) for seed in range(1, s.seeds) for arm in arms[:3]]
    return [*arms, *own, *again, *(replace(own[0], seed=seed) for seed in range(1, s.seeds))]


def recipes(s: Setting) -> list[Arm]:
    """Candidates for a better recipe than MTPD by AdamW, on the frozen base; hidden_source names what is passed on."""
    start = Arm("recipes", "", "frozen", MTPD, 4, s.heads_steps, start=f"{BASE_ARM}.s0")
    fast = replace(start, optimizer="muon", rate_factor=3.0)
    faster = replace(fast, rate_factor=6.0)
    kl, lk = LossConfig(loss="kl"), LossConfig(loss="lk")
    own4 = replace(faster, name="recipe-muon-rate6-kl-own4", loss=kl, text="mixed", own_factor=4)
    adamw = replace(own4, name="recipe-rate3-kl-own4", optimizer="adamw", rate_factor=3.0)
    twice = [
        own4,
        adamw,
        replace(start, name="recipe-rate3", rate_factor=3.0),
        replace(faster, name="recipe-muon-rate6"),
        replace(own4, name="recipe-muon-rate6-kl-own4-zero", min_lr_ratio=0.0),
        replace(own4, name="recipe-muon-rate6-kl-most4", own_share=0.75),
    ]
    once = [
        replace(adamw, name="recipe-rate3-kl-own4-long", steps=4 * adamw.steps // 3),  # Muon's steps cost more
        replace(fast, name="recipe-muon-rate3"),
        replace(fast, name="recipe-muon-rate3-own", text="mixed"),
        replace(fast, name="recipe-muon-rate3-lk-own", loss=lk, text="mixed"),
        replace(own4, name="recipe-muon-rate6-kl-cool4", own_temp=COOL),
        replace(start, name="recipe-muon", optimizer="muon"),
        replace(faster, name="recipe-muon-rate6-kl", loss=kl),
        replace(start, name="recipe-prenorm", hidden_source="prenorm"),
        replace(start, name="recipe-depths-up", loss=replace(MTPD, beta=DEPTHS_UP)),
        replace(start, name="recipe-depths-down", loss=replace(MTPD, beta=DEPTHS_UP[::-1])),
        replace(start, name="recipe-kl-own", loss=kl, text="mixed"),
        replace(start, name="recipe-lk-own", loss=lk, text="mixed"),
    ]
    return [*twice, *(replace(arm, seed=seed) for seed in range(1, s.seeds) for arm in twice), *once]


def muon(s: Setting) -> list[Arm]:
    """Joint training, its base too, by Muon instead of AdamW."""
    late = replace(MTPD, kl_start=KL_START_FROM_SCRATCH)
    losses = {"joint4-ce": CE, "joint4-mtpd-late": late, "joint4-mtpd": MTPD}
    return [Arm("muon", f"{name}-muon", "joint", loss, 4, s.joint_steps, optimizer="muon") for name, loss in losses.items()]


def ablations(s: Setting) -> list[Arm]:
    """Of joint training with four heads."""
    start = Arm("ablations", "", "joint", MTPD, 4, s.joint_steps)
    return [
        *(replace(start, name="joint4-nodetach", loss=MTPD_FREE, seed=seed) for seed in range(s.seeds)),
        replace(start, name="joint4-nodetach-late", loss=replace(MTPD_FREE, kl_start=KL_START_FROM_SCRATCH)),
        replace(start, name="joint1-nodetach", loss=replace(MTPD_1, detach_teacher=False), num_heads=1),
        replace(start, name="joint4-top64", loss=replace(MTPD, top_n=64)),
        replace(start, name="joint4-top1000", loss=replace(MTPD, top_n=1000)),
        replace(start, name="joint4-beta1.5", loss=replace(MTPD, beta=(1.5,))),
        replace(start, name="joint4-reverse", loss=replace(MTPD, kl_direction="reverse")),
        replace(start, name="joint4-prenorm", hidden_source="prenorm"),
    ]


def teachers(s: Setting) -> list[Arm]:
    """Four heads from scratch: the mean over heads in place of the sum, and an average of the base (EMA) as teacher. Their sums
    with a live teacher are joint4-ce, joint4-mtpd (detached) and joint4-nodetach."""
    ema = replace(MTPD, teacher="ema")
    losses = {
        "joint4-ce-mean": replace(CE, heads_reduction="mean"),
        "joint4-mtpd-mean": replace(MTPD, heads_reduction="mean"),
        "joint4-mtpd-ema": ema,
        "joint4-nodetach-mean": replace(MTPD_FREE, heads_reduction="mean"),
        "joint4-mtpd-ema-mean": replace(ema, heads_reduction="mean"),
    }
    arms = [Arm("teachers", name, "joint", loss, 4, s.joint_steps) for name, loss in losses.items()]
    return [replace(arm, seed=seed) for arm in arms for seed in range(s.seeds)]


def all_arms(s: Setting) -> list[Arm]:
    base = Arm("base", BASE_ARM, "base", CE, 0, s.base_steps)
    arms = [*joint(s), *late(s), *loops("loops", "joint4-mtpd", MTPD, s)]
    for seed in range(s.seeds):
        arms += loops("loops", "joint4-ce", CE, s, seed)
    arms += [base, *frozen(s)]
    arms += [*one_head_loops("joint1-ce", CE), *one_head_loops("joint1-mtpd", MTPD_1)]
    arms += loops("own-loops", "frozen-mtpd-own", MTPD, s, text="mixed")
    arms += [*scratch(s), *ablations(s)]
    for seed in range(s.seeds):
        arms += loops("free-loops", "joint4-nodetach", MTPD, s, seed)
    return [*arms, *recipes(s), *muon(s), *teachers(s)]


def parts() -> tuple[str, ...]:
    """Names of all parts, in the order of their worth."""
    return tuple(dict.fromkeys(arm.part for arm in all_arms(Setting("tiny"))))


def select(arms: list[Arm], wanted_parts: list[str], wanted_names: list[str]) -> list[Arm]:
    """The arms of these parts (all where none is named) and names, with those they start from before them."""
    known = {arm.key: arm for arm in arms}
    chosen: dict[str, Arm] = {}

    def add(arm: Arm) -> None:
        if arm.start is not None:
            add(known[arm.start])
        chosen[arm.key] = arm

    order = wanted_parts or list(parts())
    for part in order:
        for arm in arms:
            if arm.part == part and (not wanted_names or arm.name in wanted_names or arm.key in wanted_names):
                add(arm)
    return list(chosen.values())
