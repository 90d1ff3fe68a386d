"""`ChoosingBackend`: the Backend over graphs/decoder.py. A round verifies what its Drafting says.
Called by runtime/open.py and batch.py, for folders that run on CPUs."""

import time
from collections.abc import Sequence

import numpy as np

from mtpd_mlx.speculative.drafting import Drafting as Choice
from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.finite import check_tokens
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.round_costs import Kind
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime import limits
from mtpd_onnx.runtime.decoder_session import Drafting, Runs, Verified
from mtpd_onnx.runtime.limits import check_rewind, need_room, need_tokens
from mtpd_onnx.runtime.measured_costs import measure
from mtpd_onnx.runtime.reach import Reach
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.saved_text import SavedText, kind_of, read_rows, write_rows

MEASURED_AT = 32  # positions that are cached where rounds are timed
READ_BACK = 128  # positions that heads read of a text they have not followed


class ChoosingBackend:
    """A round: the heads draft (or a lookup has), one pass of the base verifies. Heads run when they are asked, and then over
    what they have not seen: h^0 of the whole text is kept on the host, capacity * d * 4 bytes.

    Heads that have not followed the text (a prompt, a long stretch of plain steps) read READ_BACK positions of it, and see
    none before. Their drafts are hardly worse for it, and a long prompt costs them nothing. Their caches begin at `_origin`:
    entry 0 is that position's. Attention rotates by distances, so it does not tell.

    Head k's entry at position s is final once x_{s+k} is known. `_done`[k-1]: up to where entries are final.
    """

    provider = "cpu"

    def __init__(
        self,
        session: Runs,
        manifest: Manifest,
        drafting: Choice,
        *,
        most: int,
        sampling: SamplingState | None = None,
    ):
        """`most`: the largest number of drafts that `drafting` may propose."""
        self.num_heads, self.num_draft_tokens, self.capacity = manifest.num_heads, most, manifest.capacity
        self.drafting = drafting
        self._session, self._sampling, self._computed_in = session, sampling, manifest.activations
        self._tokens: list[int] = []
        self._next = -1  # what comes after them
        self._origin, self._done = 0, [0] * manifest.num_heads
        self._reach = Reach(manifest)
        self._hidden = np.zeros((manifest.capacity, session.width), np.float32)  # h^0

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """What is cached."""
        return self._tokens

    def go_on(self, token: int) -> None:
        """Before a round or step: the text goes on with `token`, whatever was said before."""
        need_room(self, 1)
        if token != self._next:
            self._forget(self.length)
            self._next = token
        self._begin()

    def prefill(self, tokens: Sequence[int]) -> int:
        need_tokens(self, tokens)
        self._begin()
        for start in range(0, len(tokens), limits.PREFILL_CHUNK):
            self._force(tokens[start : start + limits.PREFILL_CHUNK])
        self.drafting.begin(self._tokens, self._next)
        return self._next

    def step(self, token: int) -> int:
        self.go_on(token)
        self._force([token])
        return self._next

    def round(self, token: int) -> Round:
        """Proposes nothing where drafting says so, and in an empty context."""
        self.go_on(token)
        self.drafting.align(self._tokens, token)
        began = time.perf_counter()
        proposal = self.drafting.propose(self.capacity - self.length - 1)
        result, usual = self._verify(token, proposal)
        seconds = time.perf_counter() - began if usual else None
        self.drafting.observe(proposal, result.emitted, result.proposed, seconds)
        return result

    def seconds_of(self, kinds: Sequence[Kind]) -> dict[Kind, float]:
        """Times rounds of each kind, in an empty context, which it leaves as it was."""
        room = self.capacity - 1 - max(kind.num_drafts for kind in kinds)

        def run(kind: Kind) -> None:
            if self.length + kind.num_drafts + 1 > self.capacity:
                self._clear()
            if not self._tokens:
                self._force([0] * min(MEASURED_AT, room))
            self._verify(0, Proposal(kind, (0,) * kind.num_drafts if kind.source == "lookup" else ()))

        try:
            return measure(kinds, run)
        finally:
            self._clear()

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        if length == self.length:
            return
        del self._tokens[length:]
        self._next = -1
        self._forget(length)
        if length == 0:
            self.drafting.restart()

    @property
    def saved_kind(self) -> str:
        return kind_of(True)

    def save(self) -> SavedText | None:
        """A copy of the text's caches (speculative/saved.py). None where a state of it cannot be cut."""
        length = self.length
        if not length or self._reach.limited:
            return None
        return SavedText(list(self._tokens), read_rows(self._session.base_caches, length), self._hidden[:length].copy())

    def load(self, saved: SavedText, length: int) -> None:
        """The text is the first `length` positions of what was saved. Heads read its last positions anew."""
        assert saved.hidden is not None
        self.rewind_to(0)
        self._session.begin()
        write_rows(self._session.base_caches, saved.rows, length)
        self._hidden[:length] = saved.hidden[:length]
        self._tokens, self._next = list(saved.tokens[:length]), -1
        self._origin, self._done = 0, [0] * self.num_heads

    def renew(self) -> None:
        """What follows is drawn anew (protocol.Renews)."""
        self._session.begin()

    def take_over(self, other: "ChoosingBackend", length: int) -> None:
        """Goes on with the first `length` positions of another text of the same caches, which is given up."""
        self._tokens, self._hidden = other._tokens[:length], other._hidden
        self._origin, self._done, self._next = other._origin, other._done, -1
        self._forget(length)

    def _clear(self) -> None:
        self._tokens.clear()
        self._next = -1
        self._forget(0)

    def _verify(self, token: int, proposal: Proposal) -> tuple[Round, bool]:
        """The round, and whether it took as long as such rounds take: heads had no more to see than since the round before."""
        drafting = self.asked(token, proposal)
        self._prepare(1 + len(proposal.drafts) + (0 if drafting is None else drafting.count))
        run = self._session.run([token, *proposal.drafts], self.length, 0, self.recent(), drafting)
        check_tokens(run.emitted[: run.accepted + 1], self.length + 1, self._computed_in)
        usual = drafting is None or len(drafting.tokens) <= 2 * self.num_heads + 1
        return self.took(token, proposal, drafting, run), usual

    def asked(self, token: int, proposal: Proposal) -> Drafting | None:
        """What the heads do in a round that verifies `proposal` behind `token`."""
        count = 0 if proposal.drafts else proposal.count
        return self._drafting(count, token) if count and self.length else None

    def took(self, token: int, proposal: Proposal, drafting: Drafting | None, run: Verified) -> Round:
        """That round is over: `run` is what came of it."""
        past, emitted = self.length, run.emitted[: run.accepted + 1]
        self._hidden[past : past + len(run.hidden)] = run.hidden
        self._tokens += [token, *emitted[:-1]]
        self._next = emitted[-1]
        if drafting is not None:
            for k in range(run.proposed):
                self._done[k] = max(self._origin, min(past, past + run.accepted - k))
        return Round(emitted, run.accepted, run.proposed, source=proposal.kind.source)

    def _drafting(self, count: int, token: int) -> Drafting:
        """Heads 1..count over what the deepest of them has not seen: no head is behind a deeper one."""
        length, start = self.length, self._done[count - 1]
        if not self._origin <= start or length - start > READ_BACK:
            start = self._origin = max(0, length - READ_BACK)
            self._done = [start] * self.num_heads
        for k in range(count):  # should the run be interrupted, what used a guess is made again
            self._done[k] = max(start, min(self._done[k], length - k))
        last = length - 1 - self._origin
        return Drafting(count, self._hidden[start:length], [*self._tokens[start + 1 :], token], last, count)

    def _force(self, tokens: Sequence[int]) -> None:
        """Runs tokens that are all known, whatever the model thinks of them."""
        past, size = self.length, len(tokens)
        self._prepare(size)
        run = self._session.run(tokens, past, size - 1, self.recent(int(tokens[0])))
        self._hidden[past : past + len(run.hidden)] = run.hidden
        self._tokens += [int(t) for t in tokens]
        check_tokens(run.emitted, self.length, self._computed_in)
        self._next = run.emitted[0]

    def _prepare(self, count: int) -> None:
        """A run of `count` positions, at most, goes on behind the text, whose state may be beyond its end."""

        def read(past: int, tokens: Sequence[int]) -> None:
            self._session.run(tokens, past, len(tokens) - 1, self.recent(int(tokens[0])))

        self._reach.restore(self._tokens, read)
        self._reach.before_run(self.length, count)

    def _begin(self) -> None:
        """Where a text begins, sampling draws its random numbers."""
        if not self._tokens:
            self._session.begin()

    def _forget(self, length: int) -> None:
        """Only the first `length` tokens are certain."""
        self._done = [max(0, min(done, length - 1 - k)) for k, done in enumerate(self._done)]

    def recent(self, first: int = 0) -> np.ndarray | None:
        return None if self._sampling is None else self._sampling.inputs(self._tokens, first)["recent"]
