"""The round in plain Python: draft, verify, accept, rewind. The fused ONNX graph does the same in one run."""

import time
from collections.abc import Sequence

from mtpd_mlx.speculative.accept import accept_greedy
from mtpd_mlx.speculative.protocol import Round, StepModel


class StepBackend:
    """A Backend made of a StepModel. Drafts are computed at the start of the round that verifies them."""

    def __init__(self, model: StepModel):
        self.model = model
        self.num_draft_tokens, self.capacity = model.num_draft_tokens, model.capacity

    @property
    def length(self) -> int:
        return self.model.length

    def prefill(self, tokens: Sequence[int]) -> int:
        return self.model.prefill(tokens)

    def step(self, token: int) -> int:
        return int(self.model.verify([token])[0])

    def round(self, token: int) -> Round:
        start, began = self.length, time.perf_counter()
        drafts = self.model.draft(token)
        drafted = time.perf_counter()
        predicted = self.model.verify([token, *drafts])
        accepted = accept_greedy(predicted, drafts)
        self.model.rewind_to(start + 1 + accepted)
        emitted = [int(t) for t in predicted[: accepted + 1]]
        return Round(emitted, accepted, len(drafts), drafted - began, time.perf_counter() - drafted)

    def rewind_to(self, length: int) -> None:
        self.model.rewind_to(length)
