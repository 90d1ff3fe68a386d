"""Whether a decoder whose text goes on as another one's draws that anew."""

from collections.abc import Callable
from typing import Any

from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.protocol import Renews
from mtpd_mlx.speculative.sampling import Sampling

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]
HOT, COLD = Sampling(temp=1.5), Sampling(repetition_penalty=1.1)  # of the second one every text is the same


def texts(opened: Callable[[Sampling], Any], sampling: Sampling, count: int = 4) -> list[list[int]]:
    """The same prompt `count` times in one row, which keeps all of it but the last token."""
    batch = OneByOne(opened, 1)
    row, found = batch.join(sampling), list[list[int]]()
    for i in range(count):
        kept = batch.restart(row, sampling, len(PROMPT) - 1) if i else 0
        assert kept == (len(PROMPT) - 1 if i else 0)
        chunks = generate(batch.alone(row), PROMPT[kept:], max_tokens=20)
        found.append([token for chunk in chunks for token in chunk.tokens])
    return found


def differ(opened: Callable[[Sampling], Any]) -> bool:
    """At a high temperature; and those of temperature 0 are all one, so the caches are right."""
    assert isinstance(opened(HOT), Renews)
    cold = texts(opened, COLD)
    assert all(text == cold[0] for text in cold)
    return len({tuple(text) for text in texts(opened, HOT)}) == 4
