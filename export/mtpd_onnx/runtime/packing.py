"""`pack`, `unpack`: the inputs and outputs of graphs/batch.py for several texts. numpy alone.
Called by runtime/batch_session.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mtpd_mlx.speculative.sampling import ACCEPT, DRAFT, REPLACE
from mtpd_onnx.runtime.decoder_session import Drafting, Verified
from mtpd_onnx.runtime.sampling_state import CONTEXT, SamplingState

Inputs = dict[str, np.ndarray]
SETTINGS = 5  # numbers of each text's settings
REACH = 256  # positions that are looked at are so many, or twice as many ...: shapes come again


@dataclass(frozen=True)
class Part:
    """One text's share of a run: `known` tokens from position `past` on, in line `line`, the drafts of `drafting` behind them;
    the main head is asked after the rows from `first` on. sampling: None where it is greedy; recent: the tokens before."""

    line: int
    known: Sequence[int]
    past: int
    first: int = 0
    drafting: Drafting | None = None
    sampling: SamplingState | None = None
    recent: np.ndarray | None = None

    @property
    def drafts(self) -> int:
        """Drafts of the heads that it verifies."""
        return 0 if self.drafting is None else min(self.drafting.count, self.drafting.verified)

    @property
    def rows(self) -> int:
        return len(self.known) + self.drafts

    @property
    def window(self) -> int:
        """Rows of the heads."""
        return 0 if self.drafting is None else len(self.drafting.tokens)


@dataclass(frozen=True)
class Shape:
    """What makes the graph: heads, vocabulary, hidden size and its type, capacity. whole: it attends over whole caches, and
    wants to know how far (graphs/whole_caches.py)."""

    num_heads: int
    vocab: int
    width: int
    kind: type
    capacity: int
    whole: bool = False

    def computed(self, rows: int, past: int) -> int:
        """Rows that attention computes of a text's `rows`."""
        return rows if self.whole else with_spare(rows, past, self.capacity)

    def reach(self, end: int) -> np.ndarray:
        """int64 [1], for texts of at most `end` positions."""
        return np.array([min(self.capacity, -(-end // REACH) * REACH)], np.int64)


def pack(parts: Sequence[Part], lines: int, shape: Shape) -> Inputs:
    """Of different lines below `lines`. Arrays that the same shapes of texts share are the same objects."""
    if len(parts) == 1 and lines == 1:
        (part,) = parts
        computed = shape.computed(part.rows, part.past)
        inputs: Inputs = {
            "known": np.asarray(part.known, np.int64),
            "last": np.array([part.past + computed - 1], np.int32),
            **_lone(len(part.known), part.drafts, part.first, computed),
        }
    else:
        inputs = _several(parts, lines, shape)
    if shape.whole:
        inputs["reach"] = shape.reach(max(part.past + part.rows for part in parts))
    if shape.num_heads:
        drafting = [part for part in parts if part.drafting is not None]
        inputs |= _windows(drafting, lines, shape) if drafting else _no_windows(lines, shape.width, shape.kind, shape.whole)
    return inputs | _sampled(parts, shape)


def unpack(parts: Sequence[Part], result: np.ndarray, hidden: np.ndarray) -> list[Verified]:
    """What each text got, of the graph's outputs."""
    asked = sum(part.rows - part.first for part in parts)
    right, kept = result[:asked].tolist(), result[asked:].tolist()
    found, place, row = [], 0, 0
    for part in parts:
        count = part.rows - part.first
        accepted = next(i for i in range(count) if not right[place + i])  # no token stands behind the last row
        proposed = count - 1
        found.append(Verified(accepted, proposed, kept[place : place + count], hidden[row : row + part.rows]))
        place, row = place + count, row + part.rows
    return found


def with_spare(rows: int, past: int, capacity: int) -> int:
    """Rows that attention computes of a text's `rows`: two of one, where there is room, since onnxruntime's CPU kernel for one
    row sums up otherwise than that for several. Nothing looks at what the second one leaves in the cache."""
    return 2 if rows == 1 and past + 2 <= capacity else rows


@lru_cache(256)
def _lone(known: int, drafts: int, first: int, computed: int) -> Inputs:
    rows = known + drafts
    made: Inputs = {
        "order": np.arange(rows),
        "rows": np.minimum(np.arange(computed), rows - 1)[None],
        "places": np.stack([np.zeros(rows, np.int64), np.arange(rows)], 1),
        "lengths": np.array([computed], np.int32),
        "checked": np.arange(first, rows),
        "after": np.arange(first + 1, rows + 1),
    }
    return {name: array if array.dtype == np.int32 else array.astype(np.int64) for name, array in made.items()}


def _several(parts: Sequence[Part], lines: int, shape: Shape) -> Inputs:
    rows = [part.rows for part in parts]
    starts = np.cumsum([0, *rows])
    total, known = int(starts[-1]), sum(len(part.known) for part in parts)
    texts = sum(part.drafting is not None for part in parts)
    order, checked, after = list[int](), list[int](), list[int]()
    place = drafting = 0
    for part, start in zip(parts, starts.tolist(), strict=False):
        order += range(place, place + len(part.known))
        order += [known + k * texts + drafting for k in range(part.drafts)]
        place, drafting = place + len(part.known), drafting + (part.drafting is not None)
        end = start + part.rows
        checked += range(start + part.first, end)
        after += [*range(start + part.first + 1, end), total]
    last, lengths, table, places = _lines([(part.line, part.rows, part.past) for part in parts], lines, shape)
    return {
        "known": np.concatenate([np.asarray(part.known, np.int64) for part in parts]),
        "order": np.array(order, np.int64),
        "checked": np.array(checked, np.int64),
        "after": np.array(after, np.int64),
        "rows": table,
        "places": places,
        "last": last,
        "lengths": lengths,
    }


def _lines(texts: Sequence[tuple[int, int, int]], lines: int, shape: Shape) -> tuple[np.ndarray, ...]:
    """last, lengths [lines], rows [lines, most], places [all rows, 2] of texts (line, rows, positions cached before)."""
    last, lengths = np.zeros(lines, np.int32), np.zeros(lines, np.int32)
    computed = [shape.computed(rows, past) for _, rows, past in texts]
    most = max(computed)
    table, places, start = np.zeros((lines, most), np.int64), [], 0
    steps = np.arange(most)
    for (line, rows, past), count in zip(texts, computed, strict=True):
        last[line], lengths[line] = past + count - 1, count
        table[line] = start + np.minimum(steps, rows - 1)
        places.append(np.stack([np.full(rows, line, np.int64), steps[:rows]], 1))
        start += rows
    return last, lengths, table, np.concatenate(places)


def _windows(parts: Sequence[Part], lines: int, shape: Shape) -> Inputs:
    """Of texts that draft."""
    work = [part.drafting for part in parts]
    sizes = [len(each.tokens) for each in work if each is not None]
    total, ends = sum(sizes), np.cumsum(sizes) - 1
    shift = np.arange(1, total + 1)
    shift[ends] = total + np.arange(len(sizes))
    texts = [(part.line, part.window, each.last + 1 - part.window) for part, each in zip(parts, work, strict=True) if each]
    last, lengths, table, places = _lines(texts, lines, shape)
    reach = {"window_reach": shape.reach(max(past + rows for _, rows, past in texts))} if shape.whole else {}
    return reach | {
        "num_drafts": np.array([max(each.count for each in work if each)], np.int64),
        "window_hidden": np.concatenate([each.hidden for each in work if each]).astype(shape.kind, copy=False),
        "window_tokens": np.concatenate([np.asarray(each.tokens, np.int64) for each in work if each]),
        "window_rows": table,
        "window_places": places,
        "window_last": last,
        "window_lengths": lengths,
        "shift": shift.astype(np.int64),
        "ends": ends.astype(np.int64),
    }


@lru_cache(64)
def _no_windows(lines: int, width: int, kind: type, whole: bool) -> Inputs:
    """No head runs: one row of no text."""
    nothing = np.zeros(lines, np.int32)
    reach = {"window_reach": np.ones(1, np.int64)} if whole else {}
    return reach | {
        "num_drafts": np.zeros(1, np.int64),
        "window_hidden": np.zeros((1, width), kind),
        "window_tokens": np.zeros(1, np.int64),
        "window_rows": np.zeros((lines, 1), np.int64),
        "window_places": np.zeros((1, 2), np.int64),
        "window_last": nothing,
        "window_lengths": nothing,
        "shift": np.zeros(1, np.int64),
        "ends": np.zeros(1, np.int64),
    }


@lru_cache(4)
def _greedy(num_heads: int) -> Inputs:
    """No row is sampled."""
    found: Inputs = {
        "sampled": np.zeros(0, np.int64),
        "settings": np.zeros((0, SETTINGS), np.float32),
        "uniforms": np.zeros((0, 2), np.float32),
        "recent": np.zeros(0, np.int64),
        "contexts": np.zeros((0, CONTEXT), np.int64),
        "certain": np.zeros(0, np.int64),
        "probs_of": np.zeros(0, np.int64),
    }
    return found | (_greedy_drafts(num_heads) if num_heads else {})


@lru_cache(4)
def _greedy_drafts(num_heads: int) -> Inputs:
    return {
        "draft_sampled": np.zeros(0, np.int64),
        "draft_settings": np.zeros((0, SETTINGS), np.float32),
        "draft_uniforms": np.zeros((0, num_heads), np.float32),
        "draft_contexts": np.zeros((0, CONTEXT), np.int64),
    }


def _sampled(parts: Sequence[Part], shape: Shape) -> Inputs:
    """How rows are sampled, of those texts that are."""
    if all(part.sampling is None for part in parts):
        return _greedy(shape.num_heads)
    texts = sum(part.sampling is not None for part in parts)
    among = sum(part.sampling is not None and part.drafting is not None for part in parts)
    found: dict[str, list[np.ndarray]] = {name: [] for name in _greedy(0)}
    drafted: list[tuple[int, SamplingState, Part]] = []
    asked = start = number = drafting = 0
    for part in parts:
        count = part.rows - part.first
        if (state := part.sampling) is not None:
            assert part.recent is not None
            rows = np.arange(part.first, part.rows)
            span = rows[:, None] + np.arange(1, CONTEXT + 1)  # in the tokens before and the text's own, one after the other
            behind = rows + 1 - len(part.known)  # the number of the draft behind each row, below 0 of a known token
            known = np.array([*part.known[part.first + 1 :], *[shape.vocab] * (part.drafts + 1)], np.int64)
            is_draft = (behind >= 0) & (behind < part.drafts)
            found["sampled"].append(np.arange(asked, asked + count))
            found["settings"].append(np.repeat(state.settings[None], count, 0))
            found["uniforms"].append(state.table[part.past + rows + 1][:, [ACCEPT, REPLACE]])
            found["recent"].append(part.recent)
            found["contexts"].append(np.where(span < CONTEXT, number * CONTEXT + span, (texts - 1) * CONTEXT + start + span))
            found["certain"].append(known)
            found["probs_of"].append(np.where(is_draft, 1 + behind * among + len(drafted), 0))
            number += 1
            if part.drafting is not None:
                drafted.append((drafting, state, part))
        drafting += part.drafting is not None
        asked, start = asked + count, start + part.rows
    joined = {name: np.concatenate(arrays) for name, arrays in found.items()}
    made: Inputs = {n: a.astype(np.float32 if n in ("settings", "uniforms") else np.int64) for n, a in joined.items()}
    if not shape.num_heads:
        return made
    return made | (_sampled_drafts(drafted, shape) if drafted else _greedy_drafts(shape.num_heads))


def _sampled_drafts(drafted: Sequence[tuple[int, SamplingState, Part]], shape: Shape) -> Inputs:
    """drafted: number among the texts that draft, how it is sampled, and the text."""
    steps = np.arange(1, shape.num_heads + 1)
    contexts = [[*part.recent[1:], part.known[0]] for *_, part in drafted if part.recent is not None]
    return {
        "draft_sampled": np.array([number for number, *_ in drafted], np.int64),
        "draft_settings": np.stack([state.settings for _, state, _ in drafted]),
        "draft_uniforms": np.stack([state.table[part.past + steps, DRAFT] for _, state, part in drafted]),
        "draft_contexts": np.array(contexts, np.int64),
    }
