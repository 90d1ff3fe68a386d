"""The losses of the heads by definition: per position first, masked and reduced afterwards.
Called by tests and tools as the oracle of losses/chunked.py. Offsets: docs/architecture.md.

heads_objective and its parts are the oracle of the chunked loss: tests and tools/bench_train differentiate them. Training uses
end_to_end_tv and per_head_weights, `mtpd eval` uses cross_entropy.

Everything is computed in float32. The teacher is detached here, once, so no caller can forget it (but where
`detach_teacher` is off).
tests/oracles/losses.py holds the float64 oracle of each.
"""

from dataclasses import dataclass

from mtpd_mlx.model.heads import shift_left
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LossConfig


def log_softmax(logits: mx.array) -> mx.array:
    """float32 [..., V] of logits [..., V] in any type."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """logits [..., V], targets int [...] -> -log softmax(logits)[target] [...]."""
    logits = logits.astype(mx.float32)
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return mx.logsumexp(logits, axis=-1) - picked


@dataclass
class Teacher:
    """The detached main head at every position, normalised once for all heads: log_q [B, T, N] over its N most probable
    tokens `top` [B, T, N] (None: the whole vocabulary)."""

    log_q: mx.array
    top: mx.array | None

    @classmethod
    def detach(cls, logits: mx.array, top_n: int) -> "Teacher":
        """logits [B, T, V]; top_n >= V keeps the whole vocabulary."""
        return cls.attached(mx.stop_gradient(logits), top_n)

    @classmethod
    def attached(cls, logits: mx.array, top_n: int) -> "Teacher":
        """The same with a gradient, for the ablation alone."""
        if top_n < 1:
            raise ValueError(f"top_n: got {top_n}, expected at least 1")
        logits = logits.astype(mx.float32)
        if top_n >= logits.shape[-1]:
            return cls(log_softmax(logits), None)
        top = mx.stop_gradient(mx.argpartition(-logits, top_n - 1, axis=-1)[..., :top_n])
        return cls(log_softmax(mx.take_along_axis(logits, top, axis=-1)), top)

    def shift(self, k: int) -> "Teacher":
        """The teacher of head k at row i: the main head at row i + k. Rows wrap round at the end, where every mask is False,
        so that they stay probabilities."""
        top = None if self.top is None else mx.roll(self.top, -k, 1)
        return Teacher(mx.roll(self.log_q, -k, 1), top)


def top_n_kl(logits: mx.array, teacher: Teacher) -> mx.array:
    """KL( Q~ || P~ ) [B, T]: forward KL, both re-normalised over the teacher's top-N tokens (MTP-D, arXiv 2603.23911)."""
    logits = logits.astype(mx.float32)
    if teacher.top is not None:
        logits = mx.take_along_axis(logits, teacher.top, axis=-1)
    return (mx.exp(teacher.log_q) * (teacher.log_q - log_softmax(logits))).sum(axis=-1)


def reverse_top_n_kl(logits: mx.array, teacher: Teacher) -> mx.array:
    """KL( P~ || Q~ ) [B, T], both re-normalised over the teacher's top-N tokens."""
    logits = logits.astype(mx.float32)
    if teacher.top is not None:
        logits = mx.take_along_axis(logits, teacher.top, axis=-1)
    log_p = log_softmax(logits)
    return (mx.exp(log_p) * (log_p - teacher.log_q)).sum(axis=-1)


def total_variation(logits: mx.array, teacher: Teacher) -> mx.array:
    """TV(Q, P) = 1/2 sum |q - p| over the whole vocabulary [B, T]; 1 - TV is the acceptance under rejection sampling."""
    return 0.5 * mx.abs(mx.exp(teacher.log_q) - mx.softmax(logits.astype(mx.float32), axis=-1)).sum(axis=-1)


def lk_hybrid(logits: mx.array, teacher: Teacher, eta: float) -> mx.array:
    """lambda KL + (1 - lambda) TV with lambda = exp(-eta sg(1 - TV)), over the whole vocabulary [B, T]."""
    tv = total_variation(logits, teacher)
    weight = mx.stop_gradient(mx.exp(-eta * (1.0 - tv)))
    return weight * top_n_kl(logits, teacher) + (1.0 - weight) * tv


def end_to_end_tv(tvs: list[mx.array]) -> mx.array:
    """1 - (1/K) sum_j prod_{i<=j} (1 - TV_i) [B, T]: one minus the mean expected share of accepted drafts."""
    alive, total = mx.ones_like(tvs[0]), mx.zeros_like(tvs[0])
    for tv in tvs:
        alive = alive * (1.0 - tv)
        total = total + alive
    return 1.0 - total / len(tvs)


def per_head_weights(values: tuple[float, ...], num_heads: int, name: str) -> list[float]:
    """One weight per head. ValueError unless `values` holds 1 or `num_heads` of them; `name` is the option's."""
    if len(values) not in (1, num_heads):
        raise ValueError(f"--{name}: got {len(values)} values, expected 1 or {num_heads} (one per head)")
    return list(values) * num_heads if len(values) == 1 else list(values)


def head_loss(cfg: LossConfig, logits: mx.array, teacher: Teacher, targets: mx.array, alpha: float, beta: float) -> mx.array:
    """The loss of one head per position [B, T]; `teacher` is already shifted to the head's targets."""
    if cfg.loss == "ce":
        return alpha * cross_entropy(logits, targets)
    divergence = top_n_kl if cfg.kl_direction == "forward" else reverse_top_n_kl
    if cfg.loss == "kl":
        return beta * divergence(logits, teacher)
    if cfg.loss == "lk":
        return lk_hybrid(logits, teacher, cfg.eta)
    if cfg.loss == "mtpd":
        return alpha * cross_entropy(logits, targets) + beta * divergence(logits, teacher)
    raise ValueError(f"loss {cfg.loss!r} has no per-head form")


def share_of_head(cfg: LossConfig, num_heads: int) -> float:
    """What the loss of one of `num_heads` trained heads counts in the loss of a step; tv is a mean over heads by itself."""
    return 1.0 / num_heads if cfg.heads_reduction == "mean" and cfg.loss != "tv" else 1.0


def heads_objective(
    cfg: LossConfig,
    head_logits: list[mx.array],
    main_logits: mx.array,
    tokens: mx.array,
    masks: mx.array,
    scale: mx.array,
    first: int = 0,
    teacher_logits: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """The reduced loss of heads first+1 .. K (an extension leaves the first heads out).

    head_logits K x [B, T, V], main_logits [B, T, V], tokens [B, T], masks [K + 1, B, T] (float), scale [K + 1] (one over
    the number of counted positions of the whole step); teacher_logits [B, T, V]: of the model that teaches where it is not
    this one. Returns (loss [], loss per head [K - first], accepted [K]): the
    last is the simulated CAR, the share of positions where the heads of depths 1..k all guess the main head's argmax,
    over positions where depth K is defined.
    """
    num_heads = len(head_logits)
    alphas = per_head_weights(cfg.alpha, num_heads - first, "alpha")
    betas = per_head_weights(cfg.beta, num_heads - first, "beta")
    in_top_n = cfg.loss in ("mtpd", "kl")
    make = Teacher.detach if cfg.detach_teacher or not in_top_n else Teacher.attached
    teacher = make(main_logits if teacher_logits is None else teacher_logits, cfg.top_n if in_top_n else main_logits.shape[-1])
    terms, tvs = [], []
    for k in range(first + 1, num_heads + 1):
        logits, shifted, j = head_logits[k - 1], teacher.shift(k), k - first - 1
        if cfg.loss == "tv":
            tvs.append(total_variation(logits, shifted))
            position = tvs[-1]
        else:
            position = head_loss(cfg, logits, shifted, shift_left(tokens, k + 1), alphas[j], betas[j])
        terms.append((position * masks[k]).sum() * scale[k])
    per_head = mx.stack(terms)
    deepest = masks[num_heads], scale[num_heads]
    whole = (end_to_end_tv(tvs) * deepest[0]).sum() * deepest[1] if cfg.loss == "tv" else per_head.sum()
    loss = whole * share_of_head(cfg, num_heads - first)
    accepted = simulated_acceptance(head_logits, main_logits, deepest[0]) * deepest[1]
    return loss, mx.stop_gradient(per_head), mx.stop_gradient(accepted)


def simulated_acceptance(head_logits: list[mx.array], main_logits: mx.array, mask: mx.array) -> mx.array:
    """Number of positions [K] of `mask` [B, T] where the heads of depths 1..k all agree with the main head's argmax."""
    best, alive, counts = mx.argmax(main_logits, axis=-1), mask, []
    for k, logits in enumerate(head_logits, start=1):
        alive = alive * (mx.argmax(logits, axis=-1) == shift_left(best, k))
        counts.append(alive.sum())
    return mx.stack(counts)
