"""`StepBackend`: the round in plain Python (draft, verify, accept, rewind), which the fused ONNX graph does in one run.
Called by runtimes that offer a StepModel."""

import time
from collections.abc import Sequence

import numpy as np

from mtpd_mlx.speculative.cancel import cancel_point
from mtpd_mlx.speculative.drafting import Drafting
from mtpd_mlx.speculative.finite import check_tokens
from mtpd_mlx.speculative.protocol import Prefills, Round, StepModel

PREFILL_CHUNK = 512  # positions of one pass over a prompt, where nothing else is asked for


def accept_greedy(predicted: Sequence[int], drafts: Sequence[int]) -> int:
    """Number of leading drafts equal to the main head's own choice.

    predicted [m+1]: the main head's argmax after x_P, d_1, .., d_m; predicted[j] is its token in the place of drafts[j]
    (drafts [m]), and the last one follows a fully accepted run. ValueError where the lengths do not fit.
    """
    if len(predicted) != len(drafts) + 1:
        raise ValueError(f"predicted: got {len(predicted)} tokens for {len(drafts)} drafts, expected {len(drafts) + 1}")
    for accepted, draft in enumerate(drafts):
        if predicted[accepted] != draft:
            return accepted
    return len(drafts)


class StepBackend:
    """A Backend made of a StepModel. Drafts are computed at the start of the round that verifies them.

    `num_draft_tokens` <= the model's: verify only the first drafts. ValueError outside 0..model.num_draft_tokens.
    """

    def __init__(self, model: StepModel, num_draft_tokens: int | None = None):
        wanted = model.num_draft_tokens if num_draft_tokens is None else num_draft_tokens
        if not 0 <= wanted <= model.num_draft_tokens:
            raise ValueError(f"num_draft_tokens: got {wanted}, expected 0..{model.num_draft_tokens}")
        self.model, self.num_draft_tokens, self.capacity = model, wanted, model.capacity

    @property
    def length(self) -> int:
        return self.model.length

    def prefill(self, tokens: Sequence[int]) -> int:
        if len(tokens) == 0:
            raise ValueError("prefill: got no tokens, expected at least one")
        self._need(len(tokens))
        if isinstance(self.model, Prefills):
            return self._checked([self.model.prefill(tokens)], self.length)[0]
        for start in range(0, len(tokens), PREFILL_CHUNK):
            cancel_point()
            predicted = self.model.verify(tokens[start : start + PREFILL_CHUNK])
        return self._checked(predicted[-1:], self.length)[0]

    def step(self, token: int) -> int:
        self._need(1)
        return self._checked(self.model.verify([token]), self.length)[0]

    def round(self, token: int) -> Round:
        self._need(1 + self.num_draft_tokens)
        start, began = self.length, time.perf_counter()
        able = self.num_draft_tokens and start  # an empty text has no state to draft from
        drafts = self.model.draft(token)[: self.num_draft_tokens] if able else []
        return self._verified(token, drafts, "heads", began)

    def _verified(self, token: int, drafts: Sequence[int], source: str, began: float) -> Round:
        """The round that verifies `drafts` behind `token`; `began`: when they were begun to be made."""
        start, drafted = self.length, time.perf_counter()
        predicted = [int(t) for t in self.model.verify([token, *drafts])]
        accepted = accept_greedy(predicted, drafts)
        emitted = self._checked(predicted[: accepted + 1], start + 1)
        self.model.rewind_to(start + 1 + accepted)
        return Round(emitted, accepted, len(drafts), drafted - began, time.perf_counter() - drafted, source)

    def _checked(self, tokens: Sequence[int] | np.ndarray, after: int) -> list[int]:
        """NotFiniteError where one of `tokens`, the first of them behind `after` tokens, is none."""
        check_tokens(tokens, after)
        return [int(token) for token in tokens]

    def rewind_to(self, length: int) -> None:
        self.model.rewind_to(length)

    def _need(self, positions: int) -> None:
        if self.length + positions > self.capacity:
            raise ValueError(f"context full: got {self.length} + {positions} positions, expected at most {self.capacity}")


class ChoosingStepBackend(StepBackend):
    """The same with a choice of drafts for every round: the heads' first ones, prompt lookup's, or none. Text is greedy."""

    def __init__(self, model: StepModel, drafting: Drafting):
        super().__init__(model)
        self.drafting = drafting
        self._text: list[int] = []

    def prefill(self, tokens: Sequence[int]) -> int:
        after = super().prefill(tokens)
        self._text += [int(t) for t in tokens]
        self.drafting.begin(self._text, after)
        return after

    def step(self, token: int) -> int:
        after = super().step(token)
        self._text.append(token)
        return after

    def round(self, token: int) -> Round:
        self._need(1)
        began, text = time.perf_counter(), self._text
        self.drafting.align(text, token)
        proposal = self.drafting.propose(self.capacity - self.length - 1)
        drafts = list(proposal.drafts)
        if proposal.kind.source == "heads" and self.length:  # an empty text has no state to draft from
            drafts = self.model.draft(token)[: proposal.count]
        result = self._verified(token, drafts, proposal.kind.source, began)
        self.drafting.observe(proposal, result.emitted, result.proposed, time.perf_counter() - began)
        text += [token, *result.emitted[:-1]]
        return result

    def rewind_to(self, length: int) -> None:
        super().rewind_to(length)
        del self._text[length:]
        if length == 0:
            self.drafting.restart()
