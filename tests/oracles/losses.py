"""Naive float64 losses, straight from the definitions: loops over positions, no shifting tricks.

Offsets (docs/architecture.md): head k at position i is compared with target x_{i+k+1} and with the teacher at i + k.
"""

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def ce(student: np.ndarray, target: int) -> float:
    return -log_softmax(student)[target]


def top_n_kl(student: np.ndarray, teacher: np.ndarray, n: int) -> float:
    keep = np.argsort(-teacher.astype(np.float64), kind="stable")[:n]
    log_q, log_p = log_softmax(teacher[keep]), log_softmax(student[keep])
    return float((np.exp(log_q) * (log_q - log_p)).sum())


def reverse_top_n_kl(student: np.ndarray, teacher: np.ndarray, n: int) -> float:
    keep = np.argsort(-teacher.astype(np.float64), kind="stable")[:n]
    log_q, log_p = log_softmax(teacher[keep]), log_softmax(student[keep])
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def tv(student: np.ndarray, teacher: np.ndarray) -> float:
    return 0.5 * float(np.abs(np.exp(log_softmax(teacher)) - np.exp(log_softmax(student))).sum())


def lk(student: np.ndarray, teacher: np.ndarray, eta: float) -> float:
    distance = tv(student, teacher)
    weight = np.exp(-eta * (1.0 - distance))
    return weight * top_n_kl(student, teacher, student.size) + (1.0 - weight) * distance


def counted(segments: np.ndarray, loss_mask: np.ndarray, b: int, i: int, k: int) -> bool:
    """Position i of head k counts: x_i .. x_{i+k+1} lie in one document and the target is not masked."""
    end = i + k + 1
    if end >= segments.shape[1] or segments[b, i] == 0:
        return False
    return bool((segments[b, i : end + 1] == segments[b, i]).all() and loss_mask[b, end])


def objective(
    loss: str,
    heads: list[np.ndarray],
    main: np.ndarray,
    tokens: np.ndarray,
    segments: np.ndarray,
    loss_mask: np.ndarray,
    alpha: list[float],
    beta: list[float],
    top_n: int,
    eta: float,
) -> tuple[float, list[float]]:
    """(loss, loss per head): each head averaged over its counted positions; "tv" end to end over the deepest head's."""
    rows, length = tokens.shape
    per_head = []
    for k, student in enumerate(heads, start=1):
        values = []
        for b in range(rows):
            for i in range(length):
                if not counted(segments, loss_mask, b, i, k):
                    continue
                p, q, target = student[b, i], main[b, i + k], int(tokens[b, i + k + 1])
                values.append(
                    {
                        "ce": lambda p=p, t=target, k=k: alpha[k - 1] * ce(p, t),
                        "kl": lambda p=p, q=q, k=k: beta[k - 1] * top_n_kl(p, q, top_n),
                        "mtpd": lambda p=p, q=q, t=target, k=k: alpha[k - 1] * ce(p, t) + beta[k - 1] * top_n_kl(p, q, top_n),
                        "lk": lambda p=p, q=q: lk(p, q, eta),
                        "tv": lambda p=p, q=q: tv(p, q),
                    }[loss]()
                )
        per_head.append(float(np.mean(values)))
    if loss != "tv":
        return sum(per_head), per_head
    whole = []
    for b in range(rows):
        for i in range(length):
            if counted(segments, loss_mask, b, i, len(heads)):
                alive, total = 1.0, 0.0
                for k, student in enumerate(heads, start=1):
                    alive *= 1.0 - tv(student[b, i], main[b, i + k])
                    total += alive
                whole.append(1.0 - total / len(heads))
    return float(np.mean(whole)), per_head
