"""`check_tokens`, `not_finite`: the token that stands for logits that are not finite, and the line that ends a command.
Called by whoever reads tokens, on both runtimes.

A row of logits is finite where its maximum is. -inf beside a finite maximum is legal: models mask tokens so. The runtimes put
NO_TOKEN in the place of the token of any other row (model/finite.py, graphs/finite.py); whoever reads tokens checks them here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

NO_TOKEN = -1


class NotFiniteError(ValueError):
    """The base's logits after some tokens are not finite. `row`: which text of a batch."""

    def __init__(self, message: str, row: int = 0):
        super().__init__(message)
        self.row = row


def not_finite(after: int, computed_in: str | None = None, row: int = 0) -> NotFiniteError:
    """`after`: how many tokens of prompt and text the base had seen; `computed_in`: a type's name, where it is known."""
    beyond = " (largest number 65,504): use bfloat16 or float32" if computed_in in ("float16", "fp16") else ""
    place = f"after {after} token" + ("" if after == 1 else "s")
    why = f"its weights hold NaN or infinity, or its numbers do not fit {computed_in or 'their type'}{beyond}"
    return NotFiniteError(f"the base's logits are not finite {place}: {why}", row)


def check_tokens(tokens: Sequence[int] | np.ndarray, after: int, computed_in: str | None = None) -> None:
    """NotFiniteError at the first NO_TOKEN; tokens[0] follows `after` tokens."""
    for i, token in enumerate(tokens):
        if token == NO_TOKEN:
            raise not_finite(after + i, computed_in)


def check_logits(logits: np.ndarray, after: int, computed_in: str | None = None) -> None:
    """NotFiniteError at the first row of logits [n, V] without a finite maximum; row 0 was made after `after` tokens."""
    bad = np.flatnonzero(~np.isfinite(logits.max(axis=-1)))  # numpy's max is NaN where anything is
    if bad.size:
        raise not_finite(after + int(bad[0]), computed_in)


@contextmanager
def naming(names: Sequence[str] | Mapping[int, str]) -> Iterator[None]:
    """A NotFiniteError from inside says whose text it was: names[row]."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"prompt {names[error.row]}: {error}", error.row) from None


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest |a - b|; infinite where one of two numbers is NaN or only one of them infinite. 0 without elements."""
    if a.shape != b.shape:
        raise ValueError(f"differences: got shapes {a.shape} and {b.shape}, expected the same")
    with np.errstate(invalid="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b))
    largest = float(apart.max(initial=0.0))
    return float("inf") if np.isnan(largest) else largest
