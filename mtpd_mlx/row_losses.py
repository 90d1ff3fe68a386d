"""The head losses of a block of rows in closed form: value and gradient with respect to the student's logits.

losses.py defines the same losses for automatic differentiation; tests hold the two, and a float64 oracle, against each other.
With p the student's softmax and q the teacher's over its top-N set S (q = 0 outside, p_S = sum of p over S):

    CE  = -log p_t                            gradient p - onehot(t)
    KL  = sum_S q (log q - log p + log p_S)   gradient p 1_S / p_S - q
    TV  = 1/2 sum |q - p|                     gradient 1/2 p (s - sum s p),  s = sign(p - q)
    LK  = lambda KL + (1 - lambda) TV,        lambda = exp(-eta sg(1 - TV))
"""

from dataclasses import dataclass

from mtpd_mlx.config import LossConfig
from mtpd_mlx.mlx_runtime import mx
from mtpd_mlx.row_stats import RowStats, exp, row_stats
from mtpd_mlx.selection import nth_largest


@dataclass(frozen=True)
class TeacherRows:
    """The detached main head at R positions, made once and used by every head whose target it is.

    weights [R, V], in the dtype of the logits: q times `mass` inside the top-N set S, -1 outside it (none is outside where
    `whole`); mass [R, 1]: their sum over S; negative_entropy [R, 1]: sum q log q.
    """

    weights: mx.array
    mass: mx.array
    negative_entropy: mx.array
    whole: bool


def teacher_rows(logits: mx.array, stats: RowStats, top_n: int) -> TeacherRows:
    """logits [R, V] and their statistics -> the teacher over its `top_n` most probable tokens (all where top_n >= V)."""
    whole = top_n >= logits.shape[-1]
    exps = stats.exps if stats.exps is not None else exp(logits.astype(mx.float32) - stats.high)
    if not whole:
        exps = mx.where(logits >= nth_largest(logits, top_n), exps, -1.0)
    weights = exps.astype(logits.dtype)
    own = row_stats(logits, weights, whole)
    mass = stats.total if whole else own.inside
    return TeacherRows(weights, mass, own.cross / mass - mx.log(mass), whole)


def stored_teacher(tokens: mx.array, logits: mx.array, vocab_size: int) -> TeacherRows:
    """The teacher from its N stored best tokens [R, N] and their logits [R, N]."""
    logits = logits.astype(mx.float32)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    inside = mx.exp(shifted)
    mass = inside.sum(axis=-1, keepdims=True)
    entropy = (inside * shifted).sum(axis=-1, keepdims=True) / mass - mx.log(mass)
    weights = mx.full((tokens.shape[0], vocab_size), -1.0)
    weights = mx.put_along_axis(weights, tokens.astype(mx.int32), inside, axis=-1)
    return TeacherRows(weights, mass, entropy, tokens.shape[1] == vocab_size)


@dataclass(frozen=True)
class HeadRows:
    """One head at R positions: value [R], gradient [R, V] float32 (not yet weighted), best [R] (argmax)."""

    value: mx.array
    gradient: mx.array
    best: mx.array


def ce_rows(logits: mx.array, stats: RowStats, targets: mx.array) -> HeadRows:
    """Cross-entropy alone (the main head): logits [R, V], their statistics, targets [R]."""
    gradient = _softmax(logits, stats) - _onehot(targets, logits.shape[-1])
    return HeadRows(_ce(logits, stats, targets), gradient, stats.best)


def head_rows(
    cfg: LossConfig, logits: mx.array, teacher: TeacherRows | None, targets: mx.array, alpha: float, beta: float
) -> HeadRows:
    """The loss `cfg.loss` of one head: logits [R, V], targets [R] (below 0: no CE here); teacher rows of the same targets."""
    if cfg.loss in ("lk", "tv"):
        assert teacher is not None
        return _tv_rows(logits, teacher, cfg.eta if cfg.loss == "lk" else None)
    alpha, beta = (alpha if cfg.loss != "kl" else 0.0), (beta if cfg.loss != "ce" else 0.0)
    stats = row_stats(logits, teacher.weights, teacher.whole) if teacher and beta else row_stats(logits)
    p = _softmax(logits, stats)
    value = mx.zeros(targets.shape)
    scale = mx.zeros((targets.shape[0], 1))  # of p: alpha where CE counts
    if alpha:
        counted = targets >= 0
        scale = alpha * counted[:, None]
        value = alpha * counted * _ce(logits, stats, mx.maximum(targets, 0))
    gradient = p * scale
    if teacher and beta:
        value = value + beta * _kl(teacher, stats)
        weights, per_weight = teacher.weights.astype(mx.float32), beta / teacher.mass
        if teacher.whole:
            gradient = p * (scale + beta) - per_weight * weights
        else:
            inside = beta * stats.total / stats.inside  # beta / p_S
            gradient = p * (scale + inside * (weights >= 0)) - per_weight * mx.maximum(weights, 0)
    if alpha:
        gradient = gradient - scale * _onehot(targets, logits.shape[-1])
    return HeadRows(value, gradient, stats.best)


def _tv_rows(logits: mx.array, teacher: TeacherRows, eta: float | None) -> HeadRows:
    """TV (eta None) or the LK hybrid, over the whole vocabulary."""
    assert teacher.whole
    stats = row_stats(logits, teacher.weights)
    p, q = _softmax(logits, stats), teacher.weights.astype(mx.float32) / teacher.mass
    tv = 0.5 * mx.abs(q - p).sum(axis=-1, keepdims=True)
    sign = mx.sign(p - q)
    slope = 0.5 * p * (sign - (sign * p).sum(axis=-1, keepdims=True))
    if eta is None:
        return HeadRows(tv[:, 0], slope, stats.best)
    weight = mx.exp(-eta * (1.0 - tv))
    value = weight[:, 0] * _kl(teacher, stats) + (1.0 - weight[:, 0]) * tv[:, 0]
    return HeadRows(value, weight * (p - q) + (1.0 - weight) * slope, stats.best)


def _kl(teacher: TeacherRows, stats: RowStats) -> mx.array:
    return (teacher.negative_entropy - stats.cross / teacher.mass + mx.log(stats.inside))[:, 0]


def _softmax(logits: mx.array, stats: RowStats) -> mx.array:
    if stats.exps is not None:
        return stats.exps * (1.0 / stats.total)
    return exp(logits.astype(mx.float32) - stats.logsumexp)


def _ce(logits: mx.array, stats: RowStats, targets: mx.array) -> mx.array:
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1).astype(mx.float32)
    return (stats.logsumexp - picked)[:, 0]


def _onehot(targets: mx.array, vocab_size: int) -> mx.array:
    return (mx.arange(vocab_size) == targets[:, None]).astype(mx.float32)
