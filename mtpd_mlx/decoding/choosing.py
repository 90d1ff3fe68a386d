"""`ChoosingDecoder`: the MLX Backend that chooses the drafts of every round. Over mlx-lm's own caches.
Called by decoding/open.py and the batch."""

from collections.abc import Sequence

from mtpd_mlx.decoding.choosing_rounds import ChoosingRounds, ChoosingState
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.text_state import HostState, Model
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.speculative.drafting import Drafting, Proposal
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

    def at_rest(self) -> ChoosingState:
        """The state with nothing under way; its heads may lag."""
        self._settle()
        self._choosing.leave()
        return self._host

    @property
    def settles_at_once(self) -> bool:
        """`at_rest` looks at no cache: nothing was taken back, and no round is under way."""
        return self._stale is None and self._choosing.rests

    def went_on(self, token: int) -> None:
        """A round of several texts (batch_rounds.py) has advanced the state, and the text goes on with `token`."""
        self._next = token

    def proposed(self, token: int) -> Proposal:
        """What `drafting` says of the next round, behind `token`; it is to be told what came of it."""
        self.drafting.align(self._host.tokens, token)
        return self.drafting.propose(self.capacity - self.length - 1)

    def check(self, name: str) -> None:
        """RuntimeError, which begins with `name`, where the caches are not those of the text."""
        host, length = self._host, self._host.length
        if self._stale is not None and self._stale > length:
            raise RuntimeError(f"{name}: got a text cut to {self._stale} positions, expected at most {length}")
        ahead = host.caches[0].offset  # of a round launched ahead
        for i, cache in enumerate(host.caches):
            if cache.offset != ahead or ahead < length:
                raise RuntimeError(f"{name}: got {cache.offset} positions in the cache of layer {i}, expected {length}")
        self._choosing.leave()
        if host.lagging is not None and self._stale is None:  # else the last positions run again first, for their states
            host.lagging.check(name, length)

    def _forget(self) -> None:
        self._choosing.leave()
        super()._forget()
        self.drafting.restart()

    def _leave(self) -> None:
        self._choosing.leave()
