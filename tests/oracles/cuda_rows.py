"""What each kernel of losses/cuda_kernels.py computes, in float64 and from the definitions. Called by their tests.

Logits z and weights w are [R, V], scalars [R, 1]; S is the set of tokens where w >= 0.
"""

import numpy as np

Array = np.ndarray


def stats(z: Array, w: Array | None) -> tuple[Array, Array]:
    """-> [5, R, 1]: max z, sum exp(z - max), the same over S, sum over S of w z, sum over S of w (the last three 0 without w);
    and the first place [R] of the maximum."""
    z = z.astype(np.float64)
    high = z.max(axis=-1, keepdims=True)
    exps = np.exp(z - high)
    if w is None:
        none = np.zeros_like(high)
        return np.stack([high, exps.sum(axis=-1, keepdims=True), none, none, none]), z.argmax(axis=-1)
    w = w.astype(np.float64)
    inside = w >= 0
    sums = (exps, exps * inside, np.where(inside, w * z, 0), np.where(inside, w, 0))
    return np.stack([high, *(x.sum(axis=-1, keepdims=True) for x in sums)]), z.argmax(axis=-1)


def teacher(z: Array, n: int) -> Array:
    """-> weights [R, V]: exp(z - max z) of the n largest logits and of those equal to the n-th, -1 for the others."""
    z = z.astype(np.float64)
    nth = np.sort(z, axis=-1)[:, ::-1][:, min(n, z.shape[1]) - 1, None]
    return np.where(z >= nth, np.exp(z - z.max(axis=-1, keepdims=True)), -1.0)


def gradient(z: Array, w: Array | None, scalars: list[Array], targets: Array) -> Array:
    """-> everywhere (p - onehot) + within p 1_S - teaching w 1_S [R, V], p = exp(z - lse); a target below 0 is none."""
    lse, everywhere, within, teaching = (s.astype(np.float64) for s in scalars)
    p = np.exp(z.astype(np.float64) - lse)
    made = everywhere * (p - (np.arange(z.shape[1]) == targets[:, None]))
    if w is not None:
        made = made + np.where(w >= 0, within * p - teaching * w.astype(np.float64), 0)
    return made


def tv_gradient(z: Array, w: Array, scalars: list[Array], hybrid: bool) -> tuple[Array, Array]:
    """-> the gradient [R, V] of scale times TV (hybrid: LK) between p = exp(z - lse) and q = per_mass w; and TV [R, 1]."""
    lse, per_mass, scale, eta = (s.astype(np.float64) for s in scalars)
    p = np.exp(z.astype(np.float64) - lse)
    apart = p - per_mass * w.astype(np.float64)
    tv = 0.5 * np.abs(apart).sum(axis=-1, keepdims=True)
    sign = np.sign(apart)
    of_tv = 0.5 * p * (sign - (sign * p).sum(axis=-1, keepdims=True))
    share = np.exp(-eta * (1 - tv)) if hybrid else 0.0
    return scale * (share * apart + (1 - share) * of_tv), tv


def kl_by_teacher(z: Array, w: Array, scalars: list[Array]) -> Array:
    """-> scale q (gap - sum q gap) [R, V] with q = w / mass over S, gap = log q - (z - lse)."""
    log_mass, lse, scale = (s.astype(np.float64) for s in scalars)
    w = w.astype(np.float64)
    taught = w > 0
    q = np.where(taught, w, 0) / np.exp(log_mass)
    gap = np.where(taught, np.log(np.where(taught, w, 1)) - log_mass - (z.astype(np.float64) - lse), 0)
    return scale * q * (gap - (q * gap).sum(axis=-1, keepdims=True))
