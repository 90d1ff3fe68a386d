"""`FixedRounds`: rounds as one lazy graph over fixed buffers, with every length an array.
Called by decoding/decoder.py.

Nothing in a round depends on a number that the host would have to read, so the next round is enqueued before the tokens of
this one are read, and all shapes repeat: a round can be compiled.
"""

from collections.abc import Callable
from typing import Any

from mtpd_mlx.decoding.draft_chain import draft_chain
from mtpd_mlx.decoding.fixed_buffers import Layers, kept, to_buffers
from mtpd_mlx.decoding.fixed_cache import FixedCache, Span, bucket
from mtpd_mlx.decoding.row_products import RowProducts
from mtpd_mlx.decoding.text_state import HostState, Model, read_token, read_tokens
from mtpd_mlx.decoding.token_rules import contexts_of, rows_from
from mtpd_mlx.model.finite import marked
from mtpd_mlx.model.runtime import mx

Small = dict[str, mx.array]
"""The state of a round but for its caches: tokens [K+1] (x_P, d_1..d_K), length [] (P); with drafts: tail [K, d] and past [K]
(h^0 and x at positions P-K..P-1); where the rule needs it: recent [N] (x_{P-N}..x_{P-1}), kept [K, V], table [U, 3]."""
Round = Callable[[Small, list[Any]], tuple[mx.array, Small, list[Any]]]
"""-> result [K+2] (accepted count a, then tokens, marked: a + 1 of them are the text), state and caches after the round."""


def round_graph(model: Model, write: str, products: str = "matrix") -> Round:
    """docs/architecture.md, "A decoding round", with t = P + a."""
    base, heads, k, rule = model.base, model.heads, model.num_draft_tokens, model.rule
    layers, count_of_layers = Layers(base, k), len(base.layers)

    def run(state: Small, buffers: list[Any]) -> tuple[mx.array, Small, list[Any]]:
        tokens, length, table = state["tokens"], state["length"], state.get("table")
        span = Span(length)
        caches = layers.caches(buffers[:count_of_layers], span, write)
        hidden, normed, logits = model.verify_pass(tokens[None], caches)
        contexts = contexts_of(state["recent"], tokens, rule.context) if rule.context else None
        text, count = rule.verify(logits, tokens[1:], length + 1, contexts, table, state.get("kept"))
        text = text.astype(mx.uint32)
        result = mx.concatenate([count[None], marked(text, logits)])
        new: Small = {"length": length + 1 + count} | ({} if table is None else {"table": table})
        if rule.context:
            new["recent"] = rows_from(mx.concatenate([state["recent"], tokens]), count + 1, rule.context)
        after = rows_from(text, count, 1)  # x_{t+1}
        if not k:
            return result, new | {"tokens": after}, kept(caches, count)
        assert heads is not None
        rows = mx.concatenate([state["tail"], heads.source(base, hidden, normed)[0]])  # [2K+1, d]: positions P-K..P+K
        known = mx.concatenate([state["past"], tokens[:1], text])  # [2K+2]: x_{P-K}.., true up to x_{t+1}
        window = rows_from(rows, count, k + 1)  # positions t-K..t
        following = rows_from(known, count + 1, k + 1)  # x_{s+1} there
        span = Span(length + count - k)
        head_caches = layers.caches(buffers[count_of_layers:], span, write, count_of_layers)
        drafts, drawn = _draft(model, window, following, after, new, head_caches)
        new |= {"tokens": mx.concatenate([after, drafts.astype(mx.uint32)]), "tail": window[1:], "past": following[:-1]}
        if drawn is not None:
            new["kept"] = drawn
        return result, new, kept([*caches, *head_caches], count)

    if products == "matrix":
        return run

    by_rows = RowProducts(base.model, *([] if heads is None else [heads]))

    def run_by_rows(state: Small, buffers: list[Any]) -> tuple[mx.array, Small, list[Any]]:
        with by_rows:
            return run(state, buffers)

    return run_by_rows


def _draft(
    model: Model, window: mx.array, following: mx.array, after: mx.array, new: Small, caches: list[FixedCache]
) -> tuple[mx.array, mx.array | None]:
    """The drafts behind x_{t+1} = `after`, and what the rule keeps of them."""
    rule, chosen, drawn = model.rule, [after], []
    assert model.heads is not None and model.head_logits is not None

    def choose(depth: int, logits: mx.array) -> mx.array:
        contexts = contexts_of(new["recent"], mx.concatenate(chosen), rule.context) if rule.context else None
        row = None if contexts is None else contexts[-1:]
        token, weights = rule.draft(logits, new["length"] + 1 + depth, row, new.get("table"))
        chosen.append(token.astype(mx.uint32))
        drawn.extend([] if weights is None else [weights])
        return token

    drafts = draft_chain(model.base, model.heads, model.head_logits, window[None], following[None], caches, choose)
    return drafts, mx.concatenate(drawn) if rule.keeps_drafts else None


class FixedRounds:
    """Takes the state of a text over from a HostState, and gives it back with `leave`. Needs a text of K tokens at least."""

    def __init__(self, host: HostState, run: Round, limit: int):
        self._host, self._run, self._limit = host, run, limit
        k, model = host.model.num_draft_tokens, host.model
        assert host.next is not None and host.length >= k
        self._capacity = bucket(min(host.length + 2 * (k + 1), limit))
        caches: list[Any] = [*host.caches, *host.head_caches]
        self._layers = Layers(model.base, k, model.windows)
        self._buffers = to_buffers(caches, host.length, self._capacity)
        self._states = self._layers.states(self._buffers)  # of recurrent layers, behind the text that was read
        tokens = host.next.astype(mx.uint32)
        self._small: Small = {"length": mx.array(host.length, mx.int32), "tokens": tokens}
        if k:
            assert host.drafts is not None and host.tail is not None
            self._small["tokens"] = mx.concatenate([tokens, host.drafts.astype(mx.uint32)])
            self._small |= {"tail": host.tail, "past": mx.array(host.tokens[-k:], mx.uint32)}
            if host.kept is not None:
                self._small["kept"] = host.kept
        if host.table is not None:
            self._small["table"] = host.table
        if model.rule.context:
            self._small["recent"] = host.recent(model.rule.context)
        host.caches, host.head_caches = [], []  # a second reference would make every cache update a copy
        self._ahead: tuple[mx.array, Small] | None = None
        self._token: int | None = None  # x_P, once a round has been read

    @property
    def has_caches(self) -> bool:
        """False while a round is being launched with them."""
        return bool(self._buffers)

    def advance(self) -> tuple[int, list[int]]:
        """(accepted drafts, tokens emitted) of one round. The next one is enqueued first."""
        host, k = self._host, self._host.model.num_draft_tokens
        result, small = self._ahead or self._launch(self._small, host.length)
        states = self._layers.states(self._buffers)
        furthest = host.length + 1 + k  # where the next round begins at most
        ahead = self._launch(small, furthest) if furthest + 1 + k <= self._limit else None
        accepted, *emitted = read_tokens(result)
        emitted = emitted[: accepted + 1]
        host.model.check(emitted, host.length + 1)
        assert host.next is not None
        token = read_token(host.next) if self._token is None else self._token
        host.tokens += [token, *emitted[:-1]]
        self._token = emitted[-1]
        self._small, self._ahead, self._states = small, ahead, states
        host.mark(states)
        return accepted, emitted

    def _launch(self, small: Small, length: int) -> tuple[mx.array, Small]:
        needed = length + 1 + self._host.model.num_draft_tokens
        if needed > self._capacity:
            self._capacity = bucket(needed)
            self._buffers = self._layers.padded(self._buffers, self._capacity)
        buffers, self._buffers = self._buffers, []
        result, after, self._buffers = self._run(small, buffers)
        del buffers
        mx.async_eval(result, after, self._buffers)
        return result, after

    def leave(self) -> None:
        """Back to mlx-lm's caches. Rows that a round launched ahead has written lie beyond the text, or are written again by
        the window of whatever comes next."""
        host, k = self._host, self._host.model.num_draft_tokens
        caches = self._layers.to_growing(self._buffers, self._states, host.length)
        layers = len(host.model.base.layers)
        host.caches, host.head_caches = caches[:layers], caches[layers:]
        host.next, host.drafts = self._small["tokens"][:1], self._small["tokens"][1:]
        host.kept = self._small.get("kept")
        if k:
            host.tail = self._small["tail"]
        self._buffers, self._states, self._ahead = [], [], None
