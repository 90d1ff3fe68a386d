"""`with_heads`: our heads as a draft model of stock mlx_lm (stream_generate, speculative_generate_step).
Called by scripts of users (docs/decoding.md, "Stock mlx_lm").

    model, tokenizer = mlx_lm.load("base")
    model = with_heads(model, "heads")
    draft_model = model.make_draft_model(num_draft_tokens=4)
    mlx_lm.stream_generate(model, tokenizer, prompt, draft_model=draft_model, num_draft_tokens=4)

mlx_lm calls the draft model first (once for each draft, with the token before it), then the main model over all of them. A
draft model sees tokens only, heads need the main model's hidden states: the wrapped main model leaves them where the draft
model finds them. With P positions cached, the draft call whose last token is at P+k-1 is head k's.
"""

from collections import deque
from pathlib import Path
from typing import Any

from mtpd_mlx.decoding.draft_chain import fill_chain, head_logits, run_head
from mtpd_mlx.decoding.mlx_lm_cache import MTPDraftCache, register
from mtpd_mlx.decoding.text_state import PREFILL_CHUNK
from mtpd_mlx.decoding.token_rules import spread
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.finite import finite_rows, type_name
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.speculative.finite import not_finite

LOST = 2  # rounds without hidden states before that is an error
LAG = 2  # calls of the main model after which its logits are looked at
LOOKED_AT = 32  # rows of a call whose logits mlx_lm reads; a call of more prefills
BEHIND = 64  # rows that deeper heads may lag before they are filled (calls for fewer drafts leave them out)


class Captured:
    """The cascade's input at the last positions of the text that the main model saw last."""

    def __init__(self) -> None:
        self._rows: mx.array | None = None
        self._start = 0
        self.calls = 0  # of the main model
        self._caches: list[Any] = []  # mlx_lm trims them, and puts quantised ones into the list

    @property
    def end(self) -> int:
        """How many positions the main model's cache holds."""
        return self._caches[0].offset if self._caches else 0

    def rows(self) -> tuple[mx.array, int] | None:
        """(rows [n, d], position of the first one), up to `end`."""
        return None if self._rows is None else (self._rows[: self.end - self._start], self._start)

    def add(self, rows: mx.array, offset: int, caches: list[Any]) -> None:
        """States of positions offset..; a text that does not go on from what is held replaces it."""
        self.calls += 1
        if self._rows is not None and self._start < offset <= self._start + self._rows.shape[0]:
            rows = mx.concatenate([self._rows[: offset - self._start], rows])
            offset = self._start
        self._rows, self._start, self._caches = rows, offset, caches

    def forget(self, keep: int) -> None:
        """All but the last `keep` rows."""
        if self._rows is not None and self._rows.shape[0] > keep:
            self._start += self._rows.shape[0] - keep
            self._rows = self._rows[-keep:]


class ModelWithHeads(nn.Module):
    """An mlx-lm model that remembers its hidden states; in all else the model itself."""

    def __init__(self, base: Base, heads: MTPHeads):
        super().__init__()
        self.inner = base.model
        self._base, self._heads, self._captured = base, heads, Captured()
        self._seen = deque[tuple[mx.array, int]]()  # of the last calls: finite first rows, after how many tokens

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None, **options: Any) -> mx.array:
        if cache is None or any(value is not None for value in options.values()) or inputs.shape[0] != 1:
            return self.inner(inputs, cache=cache, **options)
        base, offset = self._base, cache[0].offset
        hidden = base.trunk(inputs, cache)
        normed = base.norm(hidden)
        self._captured.add(self._heads.source(base, hidden, normed)[0], offset, cache)
        logits = base.logits(normed)
        if inputs.shape[1] <= LOOKED_AT:
            self._look(logits, offset)
        return logits

    def _look(self, logits: mx.array, offset: int) -> None:
        """mlx_lm reads a call's tokens before it makes the second one after: then reading its logits waits for nothing.
        NotFiniteError where those of an earlier call were not finite."""
        seen = self._seen
        if len(seen) == LAG:
            finite, after = seen.popleft()
            if not bool(finite.item()):
                seen.clear()
                raise not_finite(after, type_name(self._base.dtype))
        seen.append((finite_rows(logits[0, :1]).all(), offset + 1))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "inner" not in self:
                raise
            return getattr(self["inner"], name)

    @property
    def base(self) -> Base:
        return self._base

    def make_draft_model(self, num_draft_tokens: int | None = None) -> "DraftModel":
        """Call mlx_lm with the same num_draft_tokens (default: all heads). ValueError outside 1..number of heads."""
        k = self._heads.num_heads if num_draft_tokens is None else num_draft_tokens
        if not 1 <= k <= self._heads.num_heads:
            raise ValueError(f"num_draft_tokens: got {k}, expected 1..{self._heads.num_heads} (the checkpoint's heads)")
        return DraftModel(self._base, self._heads, self._captured, k)


class DraftModel(nn.Module):
    """What mlx_lm calls a draft model. Its logits are the heads'; during prefill they are zeros that nobody looks at."""

    def __init__(self, base: Base, heads: MTPHeads, captured: Captured, num_draft_tokens: int):
        super().__init__()
        register()
        self.heads = heads
        self._base, self._captured, self._drafts = base, captured, num_draft_tokens
        self._logits = head_logits(base, heads)

    @property
    def layers(self) -> list[nn.Module]:
        return [head.block for head in self.heads.heads[: self._drafts]]

    def make_cache(self) -> list[Any]:
        return [MTPDraftCache(self._base.make_cache(self._drafts))]

    def __call__(self, inputs: mx.array, cache: list[Any] | None = None) -> mx.array:
        """tokens [1, n] -> logits [1, 1, V] of the draft after them."""
        if cache is None or len(cache) != 1 or not isinstance(cache[0], MTPDraftCache):
            got = "no cache" if cache is None else ", ".join(type(c).__name__ for c in cache) or "an empty one"
            raise ValueError(f"draft model's cache: got {got}, expected what make_prompt_cache(draft_model) gives")
        state = cache[0]
        state.add(inputs[0])
        depth, new = state.offset - self._captured.end, inputs.shape[1]
        drafting = state.depth == depth - 1 if depth > 1 else depth == 1 and self._captured.rows() is not None
        if not drafting or new > (2 if depth == 1 else 1):
            self._prefills(state, new)
            return mx.zeros((1, 1, self._base.vocab_size))
        if depth > self._drafts:
            raise ValueError(f"num_draft_tokens: got more than {self._drafts}, expected at most that (the draft model's heads)")
        if depth == 1:
            self._begin(state)
        return self._head(state, depth)

    def _prefills(self, state: MTPDraftCache, new: int) -> None:
        """The text is another one than the main model saw last: a prompt begins. Round after round, it is a mistake."""
        state.depth = 0
        state.lost += new <= 2 and state.calls != self._captured.calls
        state.calls = self._captured.calls
        if state.lost > LOST:
            raise ValueError(
                f"draft model: its cache holds {state.offset} tokens, the model's {self._captured.end}: "
                "both must have seen the same prompt (pass make_prompt_cache(model) + make_prompt_cache(draft_model))"
            )

    def _begin(self, state: MTPDraftCache) -> None:
        """A round begins: rows that heads have not seen, and the last K that may have been drafts, from the main model."""
        captured, k, state.lost = self._captured, self._drafts, 0
        held, length = captured.rows(), captured.end
        assert held is not None
        seen = min(length, *(head.offset for head in state.heads))
        rows, first = state.joined(*held)
        if first > seen:  # the last states of this text were lost to another one, or are not in a loaded file
            rows, first = mx.concatenate([self._states(state.tokens[:first], max(0, seen - k)), rows]), max(0, seen - k)
        start = max(0, seen - k, first)
        state.take(rows, first, start)
        if length - start > k + BEHIND:
            end = length - k  # tokens up to x_{end - 1 + k} are text
            tokens = state.tokens[start + 1 : end + k][None]
            state.cut_heads(start)
            last = fill_chain(self._base, self.heads, state.rows[: end - start][None], tokens, state.heads)
            mx.async_eval(last)
            state.take(state.rows, start, max(0, end - k))
        captured.forget(3 * k + 3)

    def _states(self, tokens: mx.array, start: int) -> mx.array:
        """The cascade's input at positions start.. of a text [n], computed again from its beginning."""
        base, caches, rows = self._base, self._base.make_cache(), []
        for i in range(0, tokens.size, PREFILL_CHUNK):
            hidden = base.trunk(tokens[i : i + PREFILL_CHUNK][None], caches)
            rows.append(self.heads.source(base, hidden, base.norm(hidden))[0])
            mx.eval(rows[-1], [c.state for c in caches])
        return mx.concatenate(rows)[start:]

    def _head(self, state: MTPDraftCache, depth: int) -> mx.array:
        base, start = self._base, state.start
        states = state.rows[None] if depth == 1 else state.states
        cache = state.heads[depth - 1]
        if cache.offset > start:
            cache.trim(cache.offset - start)
        tokens = state.tokens[start + depth :][None]  # x_{s+depth} of every row s
        assert states is not None
        state.states, normed = run_head(base, self.heads, self.heads.heads[depth - 1], states, tokens, cache)
        state.depth = depth
        logits = self._logits(normed[:, -1:])[0]
        if self.heads.draft_tokens is not None:
            logits = spread(logits, self.heads.draft_tokens, base.vocab_size)
        return logits[None]


def with_heads(model: Any, checkpoint: str | Path) -> ModelWithHeads:
    """`model`: what mlx_lm.load gave for the base of these heads, or this function before. ValueError where its dimensions are
    another base's: a loaded model does not say whose weights it holds, and with others of that shape only drafts are worse."""
    from mtpd_mlx.decoding.mlx_lm_base import wrapped_base
    from mtpd_mlx.model.load_save import load_heads

    base = model.base if isinstance(model, ModelWithHeads) else wrapped_base(model)
    heads, _ = load_heads(Path(checkpoint), base)
    heads.set_dtype(base.dtype)
    mx.eval(heads.parameters())
    return ModelWithHeads(base, heads)


def load(checkpoint: str | Path, model: str | None = None) -> tuple[ModelWithHeads, Any, DraftModel]:
    """(model, tokenizer, draft model) of a heads checkpoint, the tokenizer as mlx_lm.load gives it."""
    from mlx_lm.tokenizer_utils import load as load_tokenizer

    from mtpd_mlx.model.load_save import load_for_decoding

    base, heads, _ = load_for_decoding(Path(checkpoint), model)
    assert base.path is not None
    whole = ModelWithHeads(base, heads)
    return whole, load_tokenizer(base.path), whole.make_draft_model()
