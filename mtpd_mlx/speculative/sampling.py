"""`accept_sampled`: lossless speculative sampling in numpy, the rule and the oracle of every runtime's version.
Called by both runtimes and their tests.

The order is mlx-lm's: repetition penalty, then top-p, min-p, XTC and top-k on the untempered distribution, then temperature.
Drafts are sampled from the heads' logits under the same options; a draft d at position s is kept where
u q(d) < p(d), and the first one that is not is replaced by a draw from max(0, p - q), normalised (Leviathan et al. 2023,
Chen et al. 2023). Every random number belongs to a position of the text, so that neither rounds nor chunks change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ACCEPT, REPLACE, DRAFT = range(3)  # columns of a table of uniforms
KINDS = 3
COLDEST = 1e30  # largest 1 / temperature: in float32 all but the most probable tokens are gone long before
LARGEST = 1 - 2**-23  # uniforms are multiples of 2^-23: in float32 u * total < total always
DRAFT_TAIL = 0.4  # draft_floor, in what top-p leaves out


@dataclass(frozen=True)
class Sampling:
    """Options of sampling and the only place of their defaults (names and meaning as in mlx_lm).

    temp 0 takes the most probable token. top_p, min_p and top_k are off at 0, repetition_penalty at 1. The penalty looks at
    the last repetition_context_size tokens of prompt and text. With probability xtc_probability, where several tokens are more
    probable than xtc_threshold, all of those but the least probable one are left out (XTC).
    """

    temp: float = 0.0
    top_p: float = 0.0
    min_p: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = [("temp", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1), ("repetition_penalty", 0.01, 100)]
        for name, low, high in (*ranges, ("xtc_probability", 0, 1), ("xtc_threshold", 0, 0.5)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name.replace('_', '-')}: got {value}, expected {low}..{high}")
        if self.top_k < 0:
            raise ValueError(f"--top-k: got {self.top_k}, expected at least 0")
        if self.repetition_context_size < 1:
            raise ValueError(f"--repetition-context-size: got {self.repetition_context_size}, expected at least 1")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"--seed: got {self.seed}, expected at least 0")

    @property
    def greedy(self) -> bool:
        """Nothing but the most probable token: no random number is needed and no logit is changed."""
        return self.temp == 0 and self.repetition_penalty == 1

    @property
    def inverse_temperature(self) -> float:
        return min(1.0 / self.temp, COLDEST) if self.temp > 0 else 1.0

    @property
    def kept(self) -> int:
        """How many of the most probable tokens may be drawn: 1 at temperature 0; 0 for no limit."""
        return 1 if self.temp == 0 else self.top_k


def uniforms(positions: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [positions, 3] in [0, LARGEST]: for the token at each position, one number each to ACCEPT its draft, to
    REPLACE it and to DRAFT it. What is decided at a position never depends on the numbers of later ones, so those may
    serve again for the drafts of the next round."""
    return (rng.integers(0, 2**23, (positions, KINDS)) * 2.0**-23).astype(np.float32)


def penalise(logits: np.ndarray, contexts: np.ndarray, penalty: float) -> np.ndarray:
    """logits [n, V]; contexts int [n, N]: the tokens before each row. Keskar et al. 2019, as in mlx-lm."""
    rows = np.arange(len(logits))[:, None]
    seen = logits[rows, contexts]
    out = logits.copy()
    out[rows, contexts] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
    return out


def probabilities(
    logits: np.ndarray,
    options: Sampling,
    contexts: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
    special: Sequence[int] = (),
) -> np.ndarray:
    """float32 [n, V]: what a token is drawn from, given logits [n, V]. Tokens as probable as the last one kept are kept.

    excluded bool [n]: where XTC applies (decided once for each position of the text, for its draft and for the main head, so
    that it stays lossless); None: nowhere. special: token ids that XTC never leaves out.
    """
    logits = logits.astype(np.float32)
    if contexts is not None and options.repetition_penalty != 1:
        logits = penalise(logits, contexts, options.repetition_penalty)
    plain = _softmax(logits)
    ordered = -np.sort(-plain, axis=-1)
    above = np.cumsum(ordered, axis=-1) - ordered
    count = (above < (options.top_p if 0 < options.top_p < 1 else 2.0)).sum(-1)
    count = np.minimum(count, (ordered >= options.min_p * ordered[:, :1]).sum(-1))
    allowed = plain >= np.take_along_axis(ordered, np.maximum(count, 1)[:, None] - 1, axis=-1)
    if excluded is not None:
        allowed &= ~_excluded(np.where(allowed, plain, 0), options.xtc_threshold, excluded, special)
    if options.kept:
        left = -np.sort(-np.where(allowed, plain, -1), axis=-1)
        limit = np.minimum(allowed.sum(-1), options.kept)[:, None]
        allowed &= plain >= np.take_along_axis(left, limit - 1, axis=-1)
    scaled: np.ndarray = (logits - logits.max(-1, keepdims=True)) * np.float32(options.inverse_temperature)
    return _softmax(np.where(allowed, scaled, -np.inf))


def draft_floor(options: Sampling) -> float | None:
    """How probable the last token is that drafts are drawn from, over the likeliest one, for devices where a sort takes long.
    None: drafts are drawn from `probabilities`, which needs no sort then, or has no near substitute.

    Any distribution will do for drafts (accept_sampled); the nearer it is to the main head's, the more of them are accepted.
    """
    truncates = 0 < options.top_p < 1 or options.min_p > 0
    if not truncates or options.kept or options.xtc_probability:
        return None
    return max(options.min_p, DRAFT_TAIL * (1 - options.top_p) if 0 < options.top_p < 1 else 0.0)


def _excluded(left: np.ndarray, threshold: float, rows: np.ndarray, special: Sequence[int]) -> np.ndarray:
    """XTC, as in mlx-lm: which tokens of left [n, V] go, bool [n, V]: the likely ones but the least probable of them."""
    shares = left / left.sum(-1, keepdims=True)
    least = np.where(shares > threshold, shares, np.inf).min(-1, keepdims=True)
    out: np.ndarray = (shares > least) & rows[:, None]
    out[:, list(special)] = False
    return out


def marginal(
    logits: np.ndarray, options: Sampling, contexts: np.ndarray | None = None, special: Sequence[int] = ()
) -> np.ndarray:
    """As probabilities, with what XTC leaves to chance averaged: the distribution of a token of the text."""
    rate = options.xtc_probability
    if not rate:
        return probabilities(logits, options, contexts)
    always, never = (probabilities(logits, options, contexts, np.full(len(logits), on), special) for on in (True, False))
    averaged: np.ndarray = rate * always + (1 - rate) * never
    return averaged


def draw(weights: np.ndarray, u: float) -> int:
    """The token where the running sum of weights [V] (at least one positive) first exceeds u times its end."""
    running = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(running, min(u, LARGEST) * running[-1], side="right"))


def residual(target_probs: np.ndarray, draft_probs: np.ndarray) -> np.ndarray:
    """max(0, target - draft) [V], not normalised: what replaces a refused draft is drawn from it (arXiv 2211.17192).

    The target itself where nothing is left: then both are equal, and a draft is refused by rounding alone.
    """
    left: np.ndarray = np.maximum(target_probs - draft_probs, 0)
    return left if left.sum() > 0 else target_probs


def accept_sampled(
    target_probs: np.ndarray, draft_probs: np.ndarray, drafts: Sequence[int], table: np.ndarray
) -> tuple[int, int]:
    """(accepted drafts, the token after them) by rejection sampling (arXiv 2211.17192): a draft d is kept with probability
    min(1, target[d] / draft[d]).

    target_probs [m+1, V]: the main head after x_P, d_1..d_m. draft_probs [m, V]: what each draft was drawn from.
    table [m+1, 3]: the uniforms of the drafts' positions and of the one after them."""
    for i, draft in enumerate(drafts):
        if not table[i, ACCEPT] * draft_probs[i, draft] < target_probs[i, draft]:
            return i, draw(residual(target_probs[i], draft_probs[i]), table[i, REPLACE])
    return len(drafts), draw(target_probs[len(drafts)], table[len(drafts), REPLACE])


def _softmax(x: np.ndarray) -> np.ndarray:
    e: np.ndarray = np.exp(x - x.max(-1, keepdims=True))
    normalised: np.ndarray = e / e.sum(-1, keepdims=True)
    return normalised
