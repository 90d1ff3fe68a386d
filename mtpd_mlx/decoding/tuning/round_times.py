"""`round_times`: the measured cost of each kind of round on this machine, in plain steps.
Called by `mtpd tune`."""

import statistics
import time
from collections.abc import Callable, Sequence

from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.text_state import Model
from mtpd_mlx.decoding.tuning.choice import kinds
from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.round_costs import PLAIN, Kind

LEAD, ROUNDS, TURNS = 2, 3, 4  # rounds that are not timed, that are, each time a kind has its turn; turns


class OneKind:
    """A Drafting that proposes one kind of round. Lookup's drafts are made up: what they are does not change what they cost."""

    kind = PLAIN

    def restart(self) -> None:
        pass

    def begin(self, text: Sequence[int], token: int) -> None:
        pass

    def align(self, text: Sequence[int], token: int) -> None:
        pass

    def propose(self, most: int) -> Proposal:
        drafts = (0,) * self.kind.num_drafts if self.kind.source == "lookup" else ()
        return Proposal(self.kind, drafts)

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        pass


def round_times(model: Model, prompt: Sequence[int], see: Callable[[], None] = lambda: None) -> dict[Kind, float]:
    """Medians of interleaved rounds behind `prompt`, in plain steps."""
    drafting, known = OneKind(), kinds(model.num_draft_tokens, True)
    decoder = ChoosingDecoder(model, drafting)
    times: dict[Kind, list[float]] = {kind: [] for kind in known}
    for _ in range(TURNS):
        for kind in known:
            decoder.rewind_to(0)
            drafting.kind = kind
            token = decoder.prefill(prompt)
            for i in range(LEAD + ROUNDS):
                began = time.perf_counter()
                token = decoder.round(token).emitted[-1]
                times[kind] += [time.perf_counter() - began] if i >= LEAD else []
            see()
    medians = {kind: statistics.median(seconds) for kind, seconds in times.items()}
    return {kind: seconds / medians[PLAIN] for kind, seconds in medians.items()}
