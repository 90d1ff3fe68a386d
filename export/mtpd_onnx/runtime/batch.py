"""`OnnxBatch`: texts side by side on onnxruntime (mtpd_mlx/speculative/batch.py), each in a line of the caches.
Called by runtime/open_rows.py.

Every row is a backend of one text over its own line, which is what decodes it while it is alone. A round of several rows asks
each of them what to draft and to verify, and runs all of it at once.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mtpd_mlx.speculative.batch import Turn, check_turns
from mtpd_mlx.speculative.drafting import Drafting as Choice
from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.finite import NO_TOKEN
from mtpd_mlx.speculative.load_choice import costs_of_rows
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.round_costs import Kind, heads
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.saved import Saved, load_into, save_from
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.batch_session import BatchSession, RowSession
from mtpd_onnx.runtime.choosing import ChoosingBackend
from mtpd_onnx.runtime.decoder_session import Verified
from mtpd_onnx.runtime.measured_costs import row_and_head
from mtpd_onnx.runtime.packing import Part
from mtpd_onnx.runtime.sampling_state import SamplingState

WIDE = 32  # rows of heads that read a text for the first time: such a text runs by itself


class OnnxBatch:
    """`drafting`: a new choice of drafts for the text that is alone, of texts sampled so. most: drafts of a round."""

    def __init__(
        self,
        session: BatchSession,
        manifest: Manifest,
        drafting: Callable[[Sampling], Choice],
        *,
        most: int,
        max_together: int,
        costs_key: str | None = None,
    ):
        self.max_rows, self.max_together, self.capacity = session.lines, max_together, manifest.capacity
        self.num_draft_tokens, self.regular, self.costs_key = most, True, costs_key
        self._session, self._manifest, self._drafting = session, manifest, drafting
        self._rows = dict[int, ChoosingBackend]()
        self._lines, self._samplings = dict[int, RowSession](), dict[int, Sampling]()

    def join(self, sampling: Sampling) -> int:
        if len(self._rows) >= self.max_rows:
            raise ValueError(f"join: {self.max_rows} rows are taken, expected a free one")
        row = next(i for i in range(self.max_rows) if i not in self._rows)
        self._lines[row], self._rows[row] = self._new(row, sampling)
        return row

    def _new(self, row: int, sampling: Sampling) -> tuple[RowSession, ChoosingBackend]:
        state = None if sampling.greedy else SamplingState(sampling, self._manifest)
        self._samplings[row] = sampling
        line = RowSession(self._session, row, state)
        most = self.num_draft_tokens
        return line, ChoosingBackend(line, self._manifest, self._drafting(sampling), most=most, sampling=state)

    def restart(self, row: int, sampling: Sampling, length: int) -> int:
        old = self._rows[row]
        line, backend = self._new(row, sampling)
        kept = length if sampling.greedy or sampling.seed is None else 0
        if kept:
            line.begin()  # the text goes on inside of what is cached: no row of it is empty
            backend.take_over(old, kept)
        self._lines[row], self._rows[row] = line, backend
        return kept

    def length(self, row: int) -> int:
        return self._rows[row].length

    def prefill(self, row: int, tokens: Sequence[int]) -> int:
        return self._rows[row].prefill(tokens)

    def alone(self, row: int) -> ChoosingBackend:
        return self._rows[row]

    def save(self, row: int) -> Saved | None:
        return save_from(self._rows[row]) if self._session.arrays else None

    def load(self, row: int, saved: Saved, length: int) -> int:
        return load_into(self._rows[row], saved, length, self._samplings[row]) if self._session.arrays else 0

    def rewind_to(self, row: int, length: int) -> None:
        self._rows[row].rewind_to(length)

    def leave(self, row: int) -> None:
        del self._rows[row], self._lines[row], self._samplings[row]

    def costs(self, rows: int) -> dict[Kind, float]:
        row, head = row_and_head(self._manifest.precision, self._manifest.activations)
        return costs_of_rows(rows, range(1, self.num_draft_tokens + 1), row, head)

    def round(self, turns: Sequence[Turn]) -> list[Round]:
        check_turns(turns, self._rows, self.max_together)
        work = [self._ask(turn) for turn in turns]
        parts = [part for _, part in work]
        together = self._that_fit(parts)
        self.regular = len(together) == len(parts)
        rounds: list[Round | None] = [None] * len(turns)
        for group in [together] if together else []:
            for i, run in zip(group, self._session.run([parts[i] for i in group]), strict=True):
                rounds[i] = self._took(turns[i], *work[i], run)
        for i in set(range(len(parts))).difference(together):
            rounds[i] = self._took(turns[i], *work[i], self._session.run([parts[i]])[0])
        return [each for each in rounds if each is not None]

    def _ask(self, turn: Turn) -> tuple[Proposal, Part]:
        """What the row verifies, and its part of the run."""
        backend, line = self._rows[turn.row], self._lines[turn.row]
        backend.go_on(turn.token)
        room = self.capacity - backend.length - 1
        if turn.num_draft_tokens is None:
            backend.drafting.align(backend.tokens, turn.token)
            proposal = backend.drafting.propose(room)
        else:
            proposal = Proposal(heads(min(turn.num_draft_tokens, self._manifest.num_heads, room)))
        drafting = backend.asked(turn.token, proposal)
        return proposal, line.part([turn.token, *proposal.drafts], backend.length, 0, backend.recent(), drafting)

    def _that_fit(self, parts: Sequence[Part]) -> list[int]:
        """Which of them run together: not those whose heads read much, nor those without room for the longest line's rows."""
        narrow = [i for i, part in enumerate(parts) if part.window <= WIDE]
        while narrow:
            rows = max(2, *(parts[i].rows for i in narrow))
            window = max(2, *(parts[i].window for i in narrow))
            fit = [i for i in narrow if parts[i].past + max(rows, window) <= self.capacity]
            if len(fit) == len(narrow):
                break
            narrow = fit
        return narrow

    def _took(self, turn: Turn, proposal: Proposal, part: Part, run: Verified) -> Round:
        backend = self._rows[turn.row]
        emitted = run.emitted[: run.accepted + 1]
        if NO_TOKEN in emitted:
            accepted = emitted.index(NO_TOKEN)
            run = Verified(accepted, max(accepted, run.proposed), emitted, run.hidden)
        result = backend.took(turn.token, proposal, part.drafting, run)
        if turn.num_draft_tokens is None:
            backend.drafting.observe(proposal, result.emitted, result.proposed)
        return result

    def check(self) -> None:
        if self._rows.keys() != self._lines.keys() or not self._rows.keys() <= set(range(self.max_rows)):
            raise RuntimeError(f"rows: got {sorted(self._rows)} and lines {sorted(self._lines)}, expected the same")
        keys = self._session.arrays.get("past_key_values.0.key")  # of a CPU
        for row, backend in self._rows.items():
            if not 0 <= (length := backend.length) <= self.capacity:
                raise RuntimeError(f"row {row}: got {length} positions, expected 0..{self.capacity}")
            if keys is not None and not np.any(keys[row, 0, :length] != 0, axis=-1).all():
                raise RuntimeError(f"row {row}: a position below {length} was never written")
