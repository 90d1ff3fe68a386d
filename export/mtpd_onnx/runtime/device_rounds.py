"""`DeviceBackend`: the Backend of folders for CUDA. Drafts of every round are chosen; each kind is a captured run.
Called by runtime/open_device.py.

The device keeps the text, so rounds of heads and plain steps are started before the results of
the round before are read. Looked-up drafts wait for them, since the host must know the text.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtpd_mlx.speculative.cancel import cancel_point
from mtpd_mlx.speculative.drafting import Drafting, Proposal
from mtpd_mlx.speculative.finite import check_tokens
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.round_costs import PLAIN, Kind
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime import limits
from mtpd_onnx.runtime.device_runs import DeviceRuns
from mtpd_onnx.runtime.limits import check_rewind, need_room, need_tokens
from mtpd_onnx.runtime.runner import Runner

OUTSIDE = 0.2  # share of a round's time that the caller may have spent, else it says nothing of such rounds
TIMED, BEST_OF = 6, 3  # rounds of a kind in a row that are timed together, and how often


class Flight(NamedTuple):
    """A round that was started: the positions that it may add at most are its drafts and one."""

    proposal: Proposal
    runner: Runner

    @property
    def most(self) -> int:
        return self.proposal.count + 1


class DeviceBackend:
    """Batch 1. `drafting` is asked before every round; `most`: the largest number of heads' drafts that it may propose.

    Head k's entry at position s is final once x_{s+k} is known. `_done`[k-1]: up to where entries are final; `_origin`: the
    position at which the heads' caches begin. As in runtime/choosing.py, heads that have not followed a text read its end.
    """

    def __init__(self, runs: DeviceRuns, manifest: Manifest, provider: str, drafting: Drafting, *, most: int, ahead: bool):
        self.num_draft_tokens, self.capacity, self.provider, self.ahead = most, manifest.capacity, provider, ahead
        self.drafting, self._runs, self._computed_in = drafting, runs, manifest.activations
        self._tokens: list[int] = []
        self._next = -1  # the token that the device goes on with
        self._origin, self._done = 0, [0] * manifest.num_heads
        self._flights: deque[Flight] = deque()
        self._read: float | None = None  # when a round was read, if nothing but rounds was run since
        self._left = 0.0  # when the caller got its tokens

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """What is cached."""
        return self._tokens

    def sample_as(self, sampling: Sampling) -> None:
        """The next text is sampled so, if these are rounds that sample; the one that is cached is given up."""
        self.rewind_to(0)
        self._runs.sample_as(sampling)

    def prefill(self, tokens: Sequence[int]) -> int:
        need_tokens(self, tokens)
        for start in range(0, len(tokens), limits.PREFILL_CHUNK):
            cancel_point()
            self._force(tokens[start : start + limits.PREFILL_CHUNK])
        self.drafting.begin(self._tokens, self._next)
        return self._next

    def step(self, token: int) -> int:
        need_room(self, 1)
        if token != self._next:
            self._forget(self.length)
        self._force([token])
        return self._next

    def round(self, token: int) -> Round:
        """Proposes nothing where drafting says so, and where the text is shorter than what heads read."""
        need_room(self, 1)
        entered = time.perf_counter()
        if token != self._next:
            self._settle(token)
        self.drafting.align(self._tokens, token)
        if not self._flights:
            self._start(self.drafting.propose(self.capacity - self.length - 1))
        self._start_ahead()
        flight = self._flights[0]
        self._next = -1  # should what follows be interrupted, the next call starts from the host's tokens
        (result,) = flight.runner.wait()
        self._flights.popleft()
        now = time.perf_counter()
        accepted, *emitted = result.tolist()
        emitted = emitted[: accepted + 1]
        check_tokens(emitted, self.length + 1, self._computed_in)
        self._take(token, flight.proposal, accepted, emitted)
        proposed = flight.proposal.count
        self.drafting.observe(flight.proposal, emitted, proposed, self._seconds(entered, now))
        self._read = now
        self._left = time.perf_counter()
        return Round(emitted, accepted, proposed, source=flight.proposal.kind.source)

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        if length == self.length:
            return
        self._drain()
        del self._tokens[length:]
        self._forget(length)
        if length == 0:
            self.drafting.restart()

    def seconds_of(self, kinds: Sequence[Kind]) -> dict[Kind, float]:
        """Times rounds of each kind, started as they are in decoding, in a text of zeros, which it forgets. Kinds that have no
        room are left out."""
        windows, times = self._runs.windows or [0], dict[Kind, float]()
        try:
            for kind in kinds:
                runner = self._runner(kind, windows[0])
                count = min(TIMED, (self.capacity - windows[-1]) // (kind.num_drafts + 1) - 1)
                if runner is not None and count > 0:
                    times[kind] = min(self._timed(runner, kind, windows[-1], count) for _ in range(BEST_OF))
        finally:
            self._drain()
            self._forget(0)
        return times

    def _timed(self, runner: Runner, kind: Kind, start: int, count: int) -> float:
        """Seconds of one of `count` rounds behind `start` positions; one goes before."""
        recent = self._recent([0] * start)
        self._runs.settle(0, start, recent)
        self._runs.set_origin(0)
        began, ahead = 0.0, self.ahead and kind.source != "lookup"
        for i in range(count + 1):
            if kind.source == "lookup":
                runner.set("given", np.zeros(kind.num_drafts, np.int64))
            while runner.pending < 1 + (ahead and i < count):
                runner.start()
            runner.wait()
            began = began or time.perf_counter()
        return (time.perf_counter() - began) / count

    def _runner(self, kind: Kind, window: int) -> Runner | None:
        if kind.source == "lookup":
            return self._runs.lookups.get(kind.num_drafts)
        return self._runs.plain if kind == PLAIN else self._runs.heads.get((kind.num_drafts, window))

    def _start(self, proposal: Proposal) -> None:
        """The round of `proposal` behind all that the host knows; a plain step where there is no run for it."""
        window = self._window(proposal.count) if proposal.kind.source == "heads" else 0
        runner = self._runner(proposal.kind, window)
        if runner is None:
            proposal, runner = Proposal(PLAIN), self._runs.plain
        if proposal.drafts:
            runner.set("given", np.array(proposal.drafts, np.int64))
        runner.start()
        self._flights.append(Flight(proposal, runner))

    def _window(self, count: int) -> int:
        """The positions that heads 1..count read before the next round: as few as hold what the deepest has missed. Where that
        is too much, they begin anew near the end. 0: the text is too short."""
        length, start = self.length, self._done[count - 1]
        fits = [w for w in self._runs.windows if w <= length]
        wide = [w for w in fits if w >= length - start and w <= length - self._origin]
        if start >= self._origin and wide:
            return wide[0]
        if fits:
            self._origin = length - fits[-1]
            self._done = [self._origin] * len(self._done)
            self._runs.set_origin(self._origin)
        return fits[-1] if fits else 0

    def _start_ahead(self) -> None:
        """The round after the one that was started, if it can be chosen and started now."""
        if not self.ahead or len(self._flights) != 1 or self._flights[0].proposal.drafts:
            return
        flight = self._flights[0]
        room = self.capacity - self.length - flight.most - 1
        if room < 0:
            return
        proposal = self.drafting.propose(room)
        runner = None
        if proposal.kind == PLAIN:
            runner = self._runs.plain
        elif proposal.kind.source == "heads" and (window := self._window_ahead(proposal.count, flight)):
            runner = self._runs.heads[proposal.count, window]
        if runner is not None:
            runner.start()
            self._flights.append(Flight(proposal, runner))

    def _window_ahead(self, count: int, flight: Flight) -> int:
        """As `_window`, one round ahead: the least window that holds what may be missed then. 0: none does."""
        followed = flight.proposal.kind.source == "heads" and flight.proposal.count >= count
        lag = flight.most if followed else self.length - self._done[count - 1] + flight.most
        if not followed and self._done[count - 1] < self._origin:
            return 0
        least = self.length + 1 - self._origin
        return next((w for w in self._runs.windows if lag <= w <= least), 0)

    def _take(self, token: int, proposal: Proposal, accepted: int, emitted: list[int]) -> None:
        """What was accepted becomes the text."""
        past = self.length
        self._tokens += [token, *emitted[:-1]]
        self._next = emitted[-1]
        if proposal.kind.source == "heads":
            for k in range(proposal.count):
                self._done[k] = max(self._origin, min(past, past + accepted - k))

    def _seconds(self, entered: float, now: float) -> float | None:
        """How long the round took; None where that says nothing of other rounds."""
        if self._read is None:
            return None
        seconds, outside = now - self._read, entered - self._left
        return seconds if outside < OUTSIDE * seconds else None

    def _settle(self, token: int) -> None:
        """The text goes on with `token`, whatever the device thinks."""
        self._drain()
        if not self._tokens:
            self._runs.begin()
        self._forget(self.length)
        self._runs.settle(token, self.length, self._recent(self._tokens, token))
        self._next = token

    def _force(self, tokens: Sequence[int]) -> None:
        """Runs tokens that are all known, whatever the model thinks of them."""
        self._drain()
        if not self._tokens:
            self._runs.begin()
        self._next = -1
        recent = self._recent(self._tokens, int(tokens[0]))
        following = self._runs.force(np.asarray(tokens, np.int64), self.length, recent)
        self._tokens += [int(t) for t in tokens]
        check_tokens(following, self.length, self._computed_in)
        self._next = int(following[0])

    def renew(self) -> None:
        """What follows is drawn anew (protocol.Renews)."""
        self._drain()
        self._forget(self.length)
        self._runs.begin()

    def _drain(self) -> None:
        """Waits for what was started, and forgets it."""
        self._read = None
        if self._flights:
            self._next = -1
        while self._flights:
            self._flights.popleft().runner.drain()

    def _forget(self, length: int) -> None:
        """Only the first `length` tokens are certain."""
        self._next = -1
        self._done = [max(0, min(done, length - 1 - k)) for k, done in enumerate(self._done)]

    def _recent(self, tokens: Sequence[int], first: int = 0) -> np.ndarray | None:
        sampling = self._runs.sampling
        return None if sampling is None else sampling.inputs(tokens, first)["recent"]
