"""`round_times`, `warmed`: the measured cost of each kind of round on this machine, in plain steps.
Called by `mtpd tune`, and where a decoder over fixed buffers is opened on a GPU."""

import statistics
import time
from collections.abc import Callable, Sequence

from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.fixed_choosing import FixedChoosingDecoder
from mtpd_mlx.speculative.drafting import Drafting, Proposal
from mtpd_mlx.speculative.round_costs import PLAIN, Kind

LEAD, ROUNDS, TURNS = 2, 3, 4  # rounds that are not timed, that are, each time a kind has its turn; turns
PROMPT, TIMES = 48, 4  # of `warmed`: tokens; turns
ALWAYS, BUDGET = 4, 6.0  # kinds that it compiles in any case; seconds after which it compiles no other


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


def round_times(
    make: Callable[[Drafting], Decoder], known: Sequence[Kind], prompt: Sequence[int], see: Callable[[], None] = lambda: None
) -> dict[Kind, float]:
    """Medians of interleaved rounds behind `prompt`, in plain steps. make: a decoder that chooses, with this Drafting."""
    drafting = OneKind()
    decoder = make(drafting)
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


def warmed(decoder: FixedChoosingDecoder, known: Sequence[Kind], vocab_size: int) -> dict[Kind, float]:
    """Compiles the rounds of these kinds, in this order, until BUDGET is spent, but ALWAYS of them. Then times them: the plain
    steps that each takes. `known` begins with PLAIN. Empty if the context is too short for that."""
    prompt = [(7 * i + 3) % vocab_size for i in range(PROMPT)]
    if decoder.capacity < PROMPT + sum((1 + k.num_drafts) * (LEAD + TIMES * (LEAD + ROUNDS)) for k in known):
        return {}
    drafting, one, times = decoder.drafting, OneKind(), dict[Kind, list[float]]()
    decoder.drafting = one
    try:
        token = decoder.prefill(prompt)
        began = time.perf_counter()
        for kind in known:
            if len(times) >= ALWAYS and time.perf_counter() - began > BUDGET:
                break
            one.kind, times[kind] = kind, []
            _, token = _timed(decoder, token, LEAD, 0)
        for _ in range(TIMES):
            for kind, seconds in times.items():
                one.kind = kind
                mean, token = _timed(decoder, token, LEAD, ROUNDS)
                seconds.append(mean)
    finally:
        decoder.drafting = drafting
        decoder.rewind_to(0)
    least = {kind: min(seconds) for kind, seconds in times.items()}
    return {kind: seconds / least[PLAIN] for kind, seconds in least.items()}


def _timed(decoder: Decoder, token: int, lead: int, rounds: int) -> tuple[float, int]:
    """(mean seconds of `rounds` behind `lead` others, the last token)."""
    for _ in range(lead):
        token = decoder.round(token).emitted[-1]
    began = time.perf_counter()
    for _ in range(rounds):
        token = decoder.round(token).emitted[-1]
    return (time.perf_counter() - began) / max(rounds, 1), token
