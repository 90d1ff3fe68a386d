"""`Choices`: several texts of one request: how many, how each is sampled, which are the best.
Called by openai.py and openai_reply.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtpd_mlx.serving.errors import ApiError, invalid
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import Said, Served
from mtpd_mlx.speculative.sampling import Sampling


@dataclass(frozen=True)
class Choices:
    """told: texts of a prompt that are answered; drawn: texts of which these are the best."""

    told: int = 1
    drawn: int = 1

    @property
    def ranked(self) -> bool:
        return self.drawn > self.told

    def samplings(self, sampling: Sampling) -> list[Sampling]:
        """One a text. With a seed each has a seed of its own, the first one that of the request."""
        if sampling.seed is None or sampling.greedy:
            return [sampling] * self.drawn
        return [replace(sampling, seed=seed_of(sampling.seed, i)) for i in range(self.drawn)]

    def best(self, said: Sequence[Said]) -> list[Said]:
        """Of the texts of every prompt those with the largest mean log-probability per token, best first."""
        if not self.ranked:
            return list(said)
        found = list[Said]()
        for start in range(0, len(said), self.drawn):
            found += sorted(said[start : start + self.drawn], key=lambda s: -s.end.logprob)[: self.told]
        return found


ONE = Choices()


def seed_of(seed: int, index: int) -> int:
    """Of text `index` of a request with this seed; 0 has the request's own."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def read_choices(fields: Fields, served: Served, prompts: int, chat: bool, stream: bool) -> Choices:
    most = served.most_texts
    told = fields.integer("n", 1, 1, most) or 1
    drawn = told if chat else fields.integer("best_of", told, 1, most) or told
    if drawn < told:
        raise invalid("best_of", drawn, f"at least n ({told})")
    if drawn > told and stream:
        raise ApiError(400, "best_of: above n it cannot be streamed", param="best_of", code="invalid_value")
    if prompts * drawn > most:
        name = "n" if chat or drawn == told > 1 else "best_of" if drawn > 1 else "prompt"
        message = f"{name}: got {prompts} x {drawn} texts, this server writes at most {most} a request"
        raise ApiError(400, message, param=name, code="invalid_value")
    return Choices(told, drawn)
