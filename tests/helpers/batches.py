"""A scripted Batch: rows whose texts are pure functions of their prefixes, with drafts as right as a script says."""

from collections.abc import Iterator, Sequence
from typing import Any

from helpers.fakes import ScriptedModel, Target, hashed
from mtpd_mlx.speculative.batch import Turn, check_turns
from mtpd_mlx.speculative.load_choice import costs_of_rows
from mtpd_mlx.speculative.protocol import Backend, Round
from mtpd_mlx.speculative.round_costs import Kind
from mtpd_mlx.speculative.rounds import StepBackend, accept_greedy
from mtpd_mlx.speculative.sampling import Sampling


class Letters:
    """A tokenizer of one letter a token."""

    eos_token_ids = frozenset[int]()

    def stream(self) -> Any:
        return lambda token: chr(33 + token)

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(33 + i) for i in ids)

    def special_tokens(self) -> dict[int, str]:
        return {}


class ScriptedBatch:
    """`right`: how many of a round's drafts are right. `rounds`: the turns of every round; `pieces`: what was prefilled.
    `singly`: whether the row that is alone has a decoder of its own."""

    regular = True

    def __init__(self, rows: int = 8, drafts: int = 4, capacity: int = 512, target: Target = hashed, singly: bool = True):
        self.max_rows = self.max_together = rows
        self.num_draft_tokens, self.capacity = drafts, capacity
        self.target, self.singly, self.right = target, singly, 2
        self.rounds, self.pieces = list[list[Turn]](), list[tuple[int, int]]()
        self.rows: dict[int, ScriptedModel] = {}
        self.samplings: dict[int, Sampling] = {}

    def _script(self) -> Iterator[int]:
        while True:
            yield self.right

    def join(self, sampling: Sampling) -> int:
        row = next(i for i in range(self.max_rows) if i not in self.rows)
        self.rows[row] = ScriptedModel(self.target, self._script(), self.num_draft_tokens, self.capacity)
        self.samplings[row] = sampling
        return row

    def restart(self, row: int, sampling: Sampling, length: int) -> int:
        self.rows[row].rewind_to(length)
        self.samplings[row] = sampling
        return length

    def length(self, row: int) -> int:
        return self.rows[row].length

    def prefill(self, row: int, tokens: Sequence[int]) -> int:
        self.pieces.append((row, len(tokens)))
        return int(self.rows[row].verify(tokens)[-1])

    def round(self, turns: Sequence[Turn]) -> list[Round]:
        check_turns(turns, self.rows, self.max_together)
        self.rounds.append(list(turns))
        return [self._turn(turn) for turn in turns]

    def _turn(self, turn: Turn) -> Round:
        model = self.rows[turn.row]
        start = model.length
        count = self.num_draft_tokens if turn.num_draft_tokens is None else turn.num_draft_tokens
        drafts = model.draft(turn.token)[: max(0, min(count, self.capacity - start - 1))]
        predicted = model.verify([turn.token, *drafts]).tolist()
        accepted = accept_greedy(predicted, drafts)
        model.rewind_to(start + 1 + accepted)
        return Round(predicted[: accepted + 1], accepted, len(drafts), source="heads" if drafts else "plain")

    def costs(self, rows: int) -> dict[Kind, float]:
        return costs_of_rows(rows, range(1, self.num_draft_tokens + 1), 0.1, 0.1)

    def alone(self, row: int) -> Backend | None:
        return StepBackend(self.rows[row]) if self.singly else None

    def rewind_to(self, row: int, length: int) -> None:
        self.rows[row].rewind_to(length)

    def leave(self, row: int) -> None:
        del self.rows[row], self.samplings[row]

    def check(self) -> None:
        assert self.rows.keys() == self.samplings.keys()
