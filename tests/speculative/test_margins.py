"""How near to a tie two texts part, also where one of them ends."""

from collections.abc import Sequence

import numpy as np
import pytest

from mtpd_mlx.speculative.verify import compare


class Counting:
    """A Reference whose two best logits after n tokens differ by n."""

    def __init__(self) -> None:
        self.length = 0

    def rewind_to(self, length: int) -> None:
        self.length = length

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        rows: np.ndarray = np.zeros((len(tokens), 7), np.float32)
        rows[:, 3] = np.arange(self.length + 1, self.length + len(tokens) + 1)
        self.length += len(tokens)
        return rows


@pytest.mark.parametrize(
    ("plain", "speculative", "position"),
    [
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2, 3], [5, 2, 3], 0),
        ([1, 2], [1, 2, 3, 4], 2),  # the plain text is a beginning of the other one
        ([1, 2, 3, 4], [1, 2], 2),
        ([], [1], 0),
        ([1] * 40, [1] * 39 + [2], 39),  # beyond the rows that are held at a time
        ([1] * 33, [1] * 40, 33),
    ],
)
def test_the_margin_is_that_of_the_token_where_they_part(plain: list[int], speculative: list[int], position: int) -> None:
    prompt = [9, 9, 9, 9, 9]
    (found,) = compare(Counting(), [("p", prompt)], [plain], [speculative])
    assert found.position == position and found.top2_margin == len(prompt) + position
