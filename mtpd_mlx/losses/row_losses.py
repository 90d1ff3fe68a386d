"""`head_rows`: the head losses of a block of rows in closed form (value and gradient by the student's logits).
Called by losses/chunked.py.

losses/definitions.py defines the same losses for automatic differentiation; tests hold the two, and a float64 oracle,
against each other.
With p the student's softmax and q the teacher's over its top-N set S (q = 0 outside, p_S = sum of p over S):

    CE  = -log p_t                            gradient p - onehot(t)
    KL  = sum_S q (log q - log p + log p_S)   gradient p 1_S / p_S - q
    its reverse (r = p 1_S / p_S):  R = sum_S r (log r - log q)        gradient r (log r - log q - R)
    TV  = 1/2 sum |q - p|                     gradient 1/2 p (s - sum s p),  s = sign(p - q)
    LK  = lambda KL + (1 - lambda) TV,        lambda = exp(-eta sg(1 - TV))

and, for a teacher that is not detached, with respect to its logits: KL gives q (log q - log r - KL), its reverse q - r.
"""

from dataclasses import dataclass, replace
from typing import Any

from mtpd_mlx.losses import cuda_kernels as cuda_rows
from mtpd_mlx.losses.row_stats import RowStats, exp, row_stats
from mtpd_mlx.losses.top_n import nth_largest
from mtpd_mlx.model.runtime import mx, on_cuda
from mtpd_mlx.options.train import LossConfig

TINY = 1e-30  # stands in for teacher weights that underflow, under a logarithm


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
    if on_cuda():
        weights, (mass, cross) = cuda_rows.teacher(logits, stats.high, top_n)
        return TeacherRows(weights, mass, cross / mass - mx.log(mass), whole)
    exps = stats.exps
    assert exps is not None
    if not whole:
        exps = mx.where(logits >= nth_largest(logits, top_n), exps, -1.0)
    weights = exps.astype(logits.dtype)
    own, mass = row_stats(logits, weights, whole), _mass(weights)
    return TeacherRows(weights, mass, own.cross / mass - mx.log(mass), whole)


def _mass(weights: mx.array) -> mx.array:
    """[R, 1]: of the weights as they are kept, so that q sums to 1 in any type."""
    return mx.maximum(weights.astype(mx.float32), 0).sum(axis=-1, keepdims=True)


def stored_teacher(tokens: mx.array, logits: mx.array, vocab_size: int, dtype: mx.Dtype) -> TeacherRows:
    """The teacher from its N stored best tokens [R, N] and their logits [R, N]; `dtype`: of the students' logits."""
    logits = logits.astype(mx.float32)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    inside = mx.exp(shifted).astype(dtype)
    mass = _mass(inside)
    entropy = (inside * shifted).sum(axis=-1, keepdims=True) / mass - mx.log(mass)
    weights = mx.full((tokens.shape[0], vocab_size), -1.0, dtype)
    weights = mx.put_along_axis(weights, tokens.astype(mx.int32), inside, axis=-1)
    return TeacherRows(weights, mass, entropy, tokens.shape[1] == vocab_size)


@dataclass(frozen=True)
class HeadRows:
    """One head at R positions: value [R]; gradient [R, V] of the weighted loss, in the logits' dtype; best [R] (argmax)."""

    value: mx.array
    gradient: mx.array
    best: mx.array
    of_teacher: mx.array | None = None  # gradient [R, V] with respect to the teacher's logits, where it is not detached


def ce_rows(logits: mx.array, stats: RowStats, targets: mx.array, weights: mx.array) -> HeadRows:
    """Cross-entropy alone (the main head): logits [R, V], their statistics, targets [R], weights of the rows [R]."""
    zero = mx.zeros_like(stats.high)
    gradient = _gradient(logits, stats, None, weights[:, None], zero, zero, targets)
    return HeadRows(_ce(logits, stats, targets), gradient, stats.best)


def head_rows(
    cfg: LossConfig,
    logits: mx.array,
    teacher: TeacherRows | None,
    targets: mx.array,
    weights: mx.array,
    alpha: float,
    beta: float,
    share: mx.array | None = None,
) -> HeadRows:
    """The loss `cfg.loss` of one head: logits [R, V]; teacher rows of the same targets; targets [R] (below 0: no CE there);
    weights of the rows [R] (in the gradient alone); `share` []: of beta."""
    if cfg.loss in ("lk", "tv"):
        assert teacher is not None
        return _tv_rows(logits, teacher, weights, cfg.eta if cfg.loss == "lk" else None)
    alpha, beta = (alpha if cfg.loss != "kl" else 0.0), (beta if cfg.loss != "ce" else 0.0)
    taught = replace(teacher, weights=teacher.weights.astype(logits.dtype)) if teacher and beta else None
    stats = row_stats(logits, taught.weights, taught.whole) if taught else row_stats(logits)
    value, of_teacher = mx.zeros(targets.shape), None
    everywhere = within = teaching = mx.zeros_like(stats.high)
    scale: Any = beta if share is None else beta * share
    if alpha:
        counted = targets >= 0
        value = alpha * counted * _ce(logits, stats, mx.maximum(targets, 0))
        everywhere = (alpha * counted * weights)[:, None]
    row_scale, by_student = scale * weights[:, None], None
    if taught and cfg.kl_direction == "reverse":
        divergence, by_student, of_teacher = _reverse_rows(logits, stats, taught, row_scale)
    elif taught:
        divergence, of_teacher = _kl(taught, stats), _kl_by_teacher(logits, stats, taught, row_scale)
        within = row_scale * stats.total / stats.inside  # weight beta / p_S
        teaching = row_scale / taught.mass
    if taught:
        value = value + scale * divergence
    gradient = _gradient(logits, stats, taught, everywhere, within, teaching, targets)
    if by_student is not None:
        gradient = gradient + by_student
    return HeadRows(value, gradient, stats.best, None if cfg.detach_teacher else of_teacher)


def _reverse_rows(
    logits: mx.array, stats: RowStats, teacher: TeacherRows, scale: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The reverse KL, which only an ablation uses: value [R], and of `scale` [R, 1] times it the gradients [R, V] by student
    and teacher logits."""
    q, gap = _gap(logits, stats, teacher)
    r = mx.where(teacher.weights >= 0, exp(logits.astype(mx.float32) - stats.high - mx.log(stats.inside)), 0.0)
    value = -(r * gap).sum(axis=-1, keepdims=True)
    by_student, by_teacher = scale * r * (-gap - value), scale * (q - r)
    return value[:, 0], by_student.astype(logits.dtype), by_teacher.astype(logits.dtype)


def _kl_by_teacher(logits: mx.array, stats: RowStats, teacher: TeacherRows, scale: mx.array) -> mx.array:
    """The gradient [R, V] of `scale` [R, 1] times the forward KL by the teacher's logits. Its value is summed anew: `_kl` is a
    small difference of large terms."""
    if on_cuda():
        scalars = [mx.log(teacher.mass), stats.high + mx.log(stats.inside), scale]
        return cuda_rows.kl_by_teacher(logits, teacher.weights, scalars)
    q, gap = _gap(logits, stats, teacher)
    return (scale * q * (gap - (q * gap).sum(axis=-1, keepdims=True))).astype(logits.dtype)


def _gap(logits: mx.array, stats: RowStats, teacher: TeacherRows) -> tuple[mx.array, mx.array]:
    """q [R, V] and log q - log r, both 0 outside the top-N set."""
    weights = teacher.weights.astype(mx.float32)
    log_q = mx.log(mx.maximum(weights, TINY)) - mx.log(teacher.mass)
    log_r = logits.astype(mx.float32) - stats.high - mx.log(stats.inside)
    return mx.maximum(weights, 0) / teacher.mass, mx.where(weights >= 0, log_q - log_r, 0.0)


def _gradient(
    logits: mx.array,
    stats: RowStats,
    teacher: TeacherRows | None,
    everywhere: mx.array,
    within: mx.array,
    teaching: mx.array,
    targets: mx.array,
) -> mx.array:
    """everywhere (p - onehot) + within p 1_S - teaching w 1_S, the three scales [R, 1]: CE and top-N KL together."""
    if on_cuda():
        scalars = [stats.logsumexp, everywhere, within, teaching]
        return cuda_rows.gradient(logits, teacher.weights if teacher else None, scalars, targets)
    p, scale = _softmax(logits, stats), everywhere
    gradient = -everywhere * (mx.arange(logits.shape[-1]) == targets[:, None])
    if teacher is not None and teacher.whole:
        scale = everywhere + within
        gradient = gradient - teaching * teacher.weights.astype(mx.float32)
    elif teacher is not None:
        weights = teacher.weights.astype(mx.float32)
        scale = everywhere + within * (weights >= 0)
        gradient = gradient - teaching * mx.maximum(weights, 0)
    return (p * scale + gradient).astype(logits.dtype)


def _tv_rows(logits: mx.array, teacher: TeacherRows, weights: mx.array, eta: float | None) -> HeadRows:
    """TV (eta None) or the LK hybrid, over the whole vocabulary."""
    assert teacher.whole
    teacher = replace(teacher, weights=teacher.weights.astype(logits.dtype))
    stats = row_stats(logits, teacher.weights)
    gradient, tv = _tv_gradient(logits, stats, teacher, weights[:, None], eta)
    value = tv[:, 0]
    if eta is not None:
        share = mx.exp(-eta * (1.0 - value))
        value = share * _kl(teacher, stats) + (1.0 - share) * value
    return HeadRows(value, gradient, stats.best)


def _tv_gradient(
    logits: mx.array, stats: RowStats, teacher: TeacherRows, weights: mx.array, eta: float | None
) -> tuple[mx.array, mx.array]:
    """The weighted gradient [R, V] and TV itself [R, 1]."""
    if on_cuda():
        scalars = [stats.logsumexp, 1.0 / teacher.mass, weights, mx.array([[eta or 0.0]])]
        return cuda_rows.tv_gradient(logits, teacher.weights, scalars, eta is not None)
    p, q = _softmax(logits, stats), teacher.weights.astype(mx.float32) / teacher.mass
    tv = 0.5 * mx.abs(q - p).sum(axis=-1, keepdims=True)
    sign = mx.sign(p - q)
    gradient = 0.5 * p * (sign - (sign * p).sum(axis=-1, keepdims=True))
    if eta is not None:
        share = mx.exp(-eta * (1.0 - tv))  # lambda
        gradient = share * (p - q) + (1.0 - share) * gradient
    return (gradient * weights).astype(logits.dtype), tv


def _kl(teacher: TeacherRows, stats: RowStats) -> mx.array:
    return (teacher.negative_entropy - stats.cross / teacher.mass + mx.log(stats.inside))[:, 0]


def _softmax(logits: mx.array, stats: RowStats) -> mx.array:
    if stats.exps is not None:
        return stats.exps * (1.0 / stats.total)
    return exp(logits.astype(mx.float32) - stats.logsumexp)


def _ce(logits: mx.array, stats: RowStats, targets: mx.array) -> mx.array:
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1).astype(mx.float32)
    return (stats.logsumexp - picked)[:, 0]
