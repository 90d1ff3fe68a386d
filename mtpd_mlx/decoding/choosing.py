"""The Backend of MLX that chooses the drafts of every round. Over mlx-lm's own caches."""

from collections.abc import Sequence

from mtpd_mlx.decoding.choosing_rounds import ChoosingRounds, ChoosingState
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.text_state import HostState, Model
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.speculative.drafting import Drafting
from mtpd_mlx.speculative.protocol import Round


class ChoosingDecoder(Decoder):
    """Batch 1. num_draft_tokens: the heads' drafts of a round at most. A round is a plain step where `token` is not the one
    that the text goes on with."""

    def __init__(self, model: Model, drafting: Drafting, capacity: int | None = None):
        super().__init__(model, Plan(), capacity)
        self.drafting = drafting
        self._host: ChoosingState = ChoosingState(model)
        self._choosing = ChoosingRounds(self._host, self.capacity, drafting)

    def prefill(self, tokens: Sequence[int]) -> int:
        after = super().prefill(tokens)
        self.drafting.begin(self._host.tokens, after)
        return after

    def round(self, token: int) -> Round:
        self._need(1)
        with self._or_as_before():
            self._settle()
            if token != self._next:
                return Round([self._force(token)], 0, 0, source="plain")
            result = self._choosing.advance(token)
            self._next = result.emitted[-1]
            return result

    def settled(self) -> HostState:
        host = super().settled()
        self._host.catch_up()
        return host

    def _forget(self) -> None:
        self._choosing.leave()
        super()._forget()
        self.drafting.restart()

    def _leave(self) -> None:
        self._choosing.leave()
