"""The graphs of rounds whose kind is chosen, over fixed buffers: the drafts of any number of heads, the pass that verifies any
number of drafts, and the window with which lagging heads catch up. Called by fixed_choosing.py.

All that a round needs of the text lies on the device by position, so a round of any kind can follow one of any other before its
tokens are read. All shapes repeat, so each graph can be compiled: one for each width, when it is first used.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mtpd_mlx.decoding.draft_chain import draft_chain, fill_chain
from mtpd_mlx.decoding.fixed_buffers import Layers, kept
from mtpd_mlx.decoding.fixed_cache import Span
from mtpd_mlx.decoding.row_products import RowProducts
from mtpd_mlx.decoding.text_state import Model
from mtpd_mlx.decoding.token_rules import contexts_of, rows_from
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.finite import marked
from mtpd_mlx.model.runtime import mx

Text = dict[str, mx.array]
"""length [] (P); words [..]: x_i at N + i, i <= P, behind x_0 repeated N times (N: the rule's context); with heads: states
[C, d], the cascade's input at positions below P; where the rule needs it: table [U, 4]. Entries beyond P are written before
they are read."""
Graph = Callable[..., Any]

FILLS = (32, 128)  # positions that heads which lag read at once


class ChosenGraphs:
    """window: the positions that heads read before they draft, all that can have changed since a round of heads."""

    def __init__(self, model: Model, plan: Plan):
        self.model, self.window = model, model.num_draft_tokens + 1
        self.layers = Layers(model.base, model.num_draft_tokens)
        self._write, self._compiled, self._made = plan.write, plan.compiled, dict[object, Graph]()
        self._rows: RowProducts | None = None
        if plan.products == "rows":
            self._rows = RowProducts(model.base.model, *([] if model.heads is None else [model.heads]))
        self._used: set[tuple[object, int]] = set()

    def first_use(self, graph: object, capacity: int) -> bool:
        """Whether this width has not run over buffers of this capacity before: then it is traced and compiled meanwhile."""
        known = (graph, capacity) in self._used
        self._used.add((graph, capacity))
        return not known

    def verify(self, text: Text, buffers: list[Any], drafts: mx.array | None, drawn: mx.array | None) -> Any:
        """x_P and drafts [m] (None: a plain step), drawn from `drawn` [m, V] where the rule asks -> (result [m+2]: accepted
        drafts, then tokens, marked; the text and the base's buffers after them)."""
        if drafts is None:
            return self._graph("plain", self._verify)(text, buffers)
        given = [drafts] if drawn is None else [drafts, drawn]
        return self._graph("verify", self._verify)(text, buffers, *given)

    def draft(self, count: int, text: Text, buffers: list[Any]) -> Any:
        """buffers of the first `count` heads -> (drafts [count] behind x_P, what each was drawn from [count, V] or None, the
        buffers). Needs P >= window."""
        drafts, drawn, after = self._graph(("draft", count), self._draft)(text, buffers)
        return drafts, drawn[0] if drawn else None, after

    def fill(self, width: int, start: int, text: Text, buffers: list[Any]) -> list[Any]:
        """All heads read positions start..start+width-1; entries without a token yet are written again. The buffers."""

        def graph(text: Text, start: mx.array, buffers: list[Any]) -> list[Any]:
            return self._fill(width, text, start, buffers)

        filled: list[Any] = self._graph(("fill", width), graph)(text, mx.array(start, mx.int32), buffers)
        return filled

    def _graph(self, name: object, graph: Graph) -> Graph:
        if name not in self._made:
            whole = graph if self._rows is None else self._by_rows(graph)
            self._made[name] = mx.compile(whole) if self._compiled else whole
        return self._made[name]

    def _by_rows(self, graph: Graph) -> Graph:
        rows = self._rows
        assert rows is not None

        def run(*inputs: Any) -> Any:
            with rows:
                return graph(*inputs)

        return run

    def _verify(
        self, text: Text, buffers: list[Any], drafts: mx.array | None = None, drawn: mx.array | None = None
    ) -> tuple[mx.array, Text, list[Any]]:
        model, rule, length, words = self.model, self.model.rule, text["length"], text["words"]
        tokens = rows_from(words, length + rule.context, 1)
        if drafts is not None:
            tokens = mx.concatenate([tokens, drafts])
        caches = self.layers.caches(buffers, Span(length), self._write)
        run = model.plain_pass if drafts is None else model.verify_pass
        hidden, normed, logits = run(tokens[None], caches)
        contexts = contexts_of(rows_from(words, length, rule.context), tokens, rule.context) if rule.context else None
        chosen, count = rule.verify(logits, tokens[1:], length + 1, contexts, text.get("table"), drawn)
        result = mx.concatenate([count[None], marked(chosen, logits)])
        after = text | {
            "words": mx.slice_update(words, chosen.astype(mx.uint32), (length + rule.context + 1)[None], (0,)),
            "length": length + 1 + count,
        }
        if model.heads is not None:
            rows = model.heads.source(model.base, hidden, normed)[0].astype(text["states"].dtype)
            after["states"] = mx.slice_update(text["states"], rows, length[None], (0,))
        return result, after, kept(caches, count)

    def _draft(self, text: Text, buffers: list[Any]) -> tuple[mx.array, list[mx.array], list[Any]]:
        model, rule, length, words = self.model, self.model.rule, text["length"], text["words"]
        assert model.heads is not None and model.head_logits is not None
        start, chosen, drawn = length - self.window, [rows_from(words, length + rule.context, 1)], list[mx.array]()
        caches = self._head_caches(buffers, start)
        recent = rows_from(words, length, rule.context) if rule.context else None

        def choose(depth: int, logits: mx.array) -> mx.array:
            contexts = None if recent is None else contexts_of(recent, mx.concatenate(chosen), rule.context)
            row = None if contexts is None else contexts[-1:]
            token, weights = rule.draft(logits, length + 1 + depth, row, text.get("table"))
            chosen.append(token.astype(mx.uint32))
            drawn.extend([] if weights is None else [weights])
            return token

        states = rows_from(text["states"], start, self.window)
        following = rows_from(words, start + rule.context + 1, self.window)  # x_{s+1}
        drafts = draft_chain(model.base, model.heads, model.head_logits, states[None], following[None], caches, choose)
        rows = [mx.concatenate(drawn)] if rule.keeps_drafts else []
        return drafts.astype(mx.uint32), rows, [cache.rows for cache in caches]

    def _fill(self, width: int, text: Text, start: mx.array, buffers: list[Any]) -> list[Any]:
        model, context = self.model, self.model.rule.context
        assert model.heads is not None
        caches = self._head_caches(buffers, start)
        states = rows_from(text["states"], start, width)
        following = rows_from(text["words"], start + context + 1, width + model.num_draft_tokens - 1)
        fill_chain(model.base, model.heads, states[None], following[None], caches)
        return [cache.rows for cache in caches]

    def _head_caches(self, buffers: Sequence[Any], start: mx.array) -> list[Any]:
        return self.layers.caches(buffers, Span(start), self._write, len(self.model.base.layers))
