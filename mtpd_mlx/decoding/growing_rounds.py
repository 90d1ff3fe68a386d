"""`GrowingRounds`: rounds over mlx-lm's own caches.
Called by decoding/decoder.py.

The host knows all lengths, so it reads a round before it builds the next one. Draft chain and verify pass are one graph and one
evaluation, enqueued before the caller sees the tokens of the round before.
"""

from mtpd_mlx.decoding.rewind import Transaction, begin
from mtpd_mlx.decoding.text_state import HostState, read_token, read_tokens
from mtpd_mlx.decoding.token_rules import contexts_of
from mtpd_mlx.model.finite import marked
from mtpd_mlx.model.runtime import mx


class GrowingRounds:
    """Advances a HostState round by round. Between rounds the state is whole; `leave` makes it so after a launch ahead."""

    def __init__(self, host: HostState, capacity: int):
        self._host, self._capacity = host, capacity
        self._ahead: tuple[mx.array, mx.array, Transaction] | None = None  # (result [K+2], rows [<= 2K+1, d], the pass)

    def advance(self) -> tuple[int, list[int]]:
        """(accepted drafts, tokens emitted) of one round."""
        host, k = self._host, self._host.model.num_draft_tokens
        assert host.next is not None
        result, rows, verified = self._ahead or self._launch()
        token = read_token(host.next)
        accepted, *emitted = read_tokens(result)
        emitted = emitted[: accepted + 1]
        host.model.check(emitted, host.length + 1)
        before = rows.shape[0] - (k + 1)
        host.tokens += [token, *emitted[:-1]]
        host.next = result[accepted + 1 : accepted + 2]
        verified.commit(accepted + 1)
        end = before + accepted + 1
        host.draft(rows[max(0, end - (k + 1)) : end])
        self._ahead = self._launch() if host.length + 1 + k <= self._capacity else None
        if self._ahead is None:
            mx.async_eval(host.drafts)
        return accepted, emitted

    def _launch(self) -> tuple[mx.array, mx.array, Transaction]:
        host, model = self._host, self._host.model
        assert host.next is not None and host.drafts is not None
        tokens = mx.concatenate([host.next.astype(mx.uint32), host.drafts.astype(mx.uint32)])  # x_P, d_1..d_K
        verified = begin(host.caches, tokens.size)
        hidden, normed, logits = model.verify_pass(tokens[None], host.caches)
        logits = model.processed(logits, host.tokens, tokens)
        size = model.rule.context
        contexts = contexts_of(host.recent(size), tokens, size) if size else None
        text, count = model.rule.verify(logits, tokens[1:], host.length + 1, contexts, host.table, host.kept)
        result = mx.concatenate([count[None], marked(text, logits)])
        host.quantise()
        mx.async_eval(result)
        return result, host.rows(hidden, normed), verified

    def leave(self) -> None:
        """Forgets a round launched ahead."""
        self._ahead = None
        self._host.rewind(self._host.length)
