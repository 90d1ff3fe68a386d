"""`MLXBatch`: the Batch of MLX (speculative/batch.py). Each row is a decoder; rounds of several are one pass.
Called by decoding/open_rows.py."""

from collections.abc import Callable, Sequence

from mtpd_mlx.decoding.batch_rounds import Member, round_together
from mtpd_mlx.decoding.batch_row import Alone, Row
from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.stacked_rows import Stacks
from mtpd_mlx.decoding.tuning.choice import HEAD_COUNTS, ROW, ROW_ON_CPU, head_share
from mtpd_mlx.model.runtime import mx, on_cpu
from mtpd_mlx.speculative.batch import Turn, check_turns
from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.load_choice import costs_of_rows
from mtpd_mlx.speculative.one_by_one import same_text
from mtpd_mlx.speculative.protocol import Backend, Round
from mtpd_mlx.speculative.round_costs import Kind, heads
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.saved import Saved, load_into, save_from

HEAD = 0.4  # what a head's pass over several texts costs, of its share of the bytes that are read (measured on a CPU)


class MLXBatch:
    """`open_row`: a new decoder with an empty text, that samples so; all of the same model. `fixed`: drafts of every round,
    where they are not chosen. `alone`: other decoders for a row that is alone, where these are faster. `stacked`: rounds of
    several are over caches that lie in one buffer (stacked_rows.py)."""

    def __init__(
        self,
        open_row: Callable[[Sampling], ChoosingDecoder],
        max_rows: int,
        max_together: int,
        fixed: int | None = None,
        alone: Alone | None = None,
        stacked: bool = False,
        costs_key: str | None = None,
    ):
        self._open, self._rows, self._fixed, self._alone = open_row, dict[int, Row](), fixed, alone
        self.max_rows, self.max_together, self.regular = max_rows, max_together, True
        first = open_row(Sampling())
        self.num_draft_tokens, self.capacity = first.num_draft_tokens, first.capacity
        self._model = first.model
        self._seen: set[tuple[int, int]] = set()
        self._stacks, self.costs_key = Stacks() if stacked else None, costs_key

    def join(self, sampling: Sampling) -> int:
        if len(self._rows) >= self.max_rows:
            raise ValueError(f"join: {self.max_rows} rows are taken, expected a free one")
        row = next(i for i in range(self.max_rows) if i not in self._rows)
        self._rows[row] = Row(sampling, self._open(sampling), self._alone)
        return row

    def restart(self, row: int, sampling: Sampling, length: int) -> int:
        held = self._whole(row)
        if sampling.seed is not None and not sampling.greedy:
            length = 0
        held.decoder.rewind_to(length)
        mx.clear_cache()
        if not same_text(held.sampling, sampling):
            decoder = self._open(sampling)
            if length:
                host = held.decoder.settled()
                decoder.resume(host.tokens, host.caches, host.head_caches)
            self._rows[row] = Row(sampling, decoder, self._alone)
        elif length and not sampling.greedy:
            held.decoder.renew()
        return length

    def length(self, row: int) -> int:
        return self._rows[row].length

    def prefill(self, row: int, tokens: Sequence[int]) -> int:
        return self._whole(row).decoder.prefill(tokens)

    def round(self, turns: Sequence[Turn]) -> list[Round]:
        check_turns(turns, self._rows, self.max_together)
        if not all(self._rows[turn.row].ready for turn in turns):
            self._give_back()
        decoders = [self._rows[turn.row].decoder for turn in turns]
        proposals = [self._proposal(decoder, turn) for decoder, turn in zip(decoders, turns, strict=True)]
        members = [
            Member(decoder.at_rest(), turn.token, 0 if p.drafts else p.count, p.drafts)
            for decoder, turn, p in zip(decoders, turns, proposals, strict=True)
        ]
        rounds, late = round_together(members, self._stacks)
        shape = len(turns), max(member.count for member in members)
        self.regular = not late and shape in self._seen
        self._seen.add(shape)
        for decoder, turn, proposal, result in zip(decoders, turns, proposals, rounds, strict=True):
            decoder.went_on(result.emitted[-1])
            if turn.num_draft_tokens is None:
                decoder.drafting.observe(proposal, result.emitted, result.proposed)
        return rounds

    def _proposal(self, decoder: ChoosingDecoder, turn: Turn) -> Proposal:
        """What the row verifies."""
        length = decoder.at_rest().length
        most = self.capacity - length - 1
        if most < 0:
            raise ValueError(f"context full: got {length} + 1 positions, expected at most {self.capacity}")
        if turn.num_draft_tokens is None:
            return decoder.proposed(turn.token)
        count = turn.num_draft_tokens if self._fixed is None else self._fixed
        return Proposal(heads(min(count, self.num_draft_tokens, most) if length else 0))

    def costs(self, rows: int) -> dict[Kind, float]:
        own = self._model.heads
        if own is None or self._fixed is not None:
            return costs_of_rows(rows, (), ROW, 0.0)
        counts = {k for k in HEAD_COUNTS if k < self.num_draft_tokens} | {self.num_draft_tokens}
        share = HEAD * head_share(self._model.base, own)
        return costs_of_rows(rows, sorted(counts), ROW_ON_CPU if on_cpu() else ROW, share)

    def alone(self, row: int) -> Backend | None:
        """None for a seeded text: its drafts are proposed and observed in another order where rounds are launched ahead."""
        held = self._whole(row)
        return None if held.sampling.seed is not None and not held.sampling.greedy else held.by_itself()

    def rewind_to(self, row: int, length: int) -> None:
        if length and self._rows[row].at_home:
            self._rows[row].decoder.rewind_to(length)
        else:
            self._whole(row).decoder.rewind_to(length)

    def _whole(self, row: int) -> Row:
        """The row with all of its text in its own caches."""
        self._give_back()
        return self._rows[row]

    def _give_back(self) -> None:
        if self._stacks is not None:
            self._stacks.give_back()

    def save(self, row: int) -> Saved | None:
        return save_from(self._whole(row).decoder)

    def load(self, row: int, saved: Saved, length: int) -> int:
        return load_into(self._whole(row).decoder, saved, length, self._rows[row].sampling)

    def leave(self, row: int) -> None:
        del self._rows[row]
        mx.clear_cache()

    def check(self) -> None:
        self._give_back()
        for row, held in self._rows.items():
            held.decoder.check(f"row {row}")
