"""`round_together`: one round of several texts (drafts, one pass of the base, acceptance by each text's own rule).
Called by decoding/batch.py.

Between rounds every text is a ChoosingState (choosing_rounds.py), as it is when it is decoded alone; the round below is that
file's round with one more dimension. Shapes: B texts, L tokens of each in a pass (1 + the most drafts that any of them has; the
others are padded behind their own, and what padding leaves in a cache is cut off), V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtpd_mlx.decoding.batch_heads import draft_together
from mtpd_mlx.decoding.choosing_rounds import ChoosingState
from mtpd_mlx.decoding.lagging_heads import LaggingHeads
from mtpd_mlx.decoding.rewind import trim_to
from mtpd_mlx.decoding.rows_cache import RowsAttention, rows_caches
from mtpd_mlx.decoding.stacked_rows import Stacks
from mtpd_mlx.decoding.text_state import read_tokens
from mtpd_mlx.decoding.token_rules import contexts_of, one_hot
from mtpd_mlx.model.finite import marked
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import NO_TOKEN
from mtpd_mlx.speculative.protocol import Round
from mtpd_mlx.speculative.rounds import accept_greedy


@dataclass
class Member:
    """A text's part in a round. token: it goes on with; count: the heads' drafts to verify, or `lookup`, those to verify
    instead. drafts uint32 [m]; kept [m, V]: what each was drawn from, where the text's rule needs it."""

    host: ChoosingState
    token: int
    count: int = 0
    lookup: tuple[int, ...] = ()
    drafts: mx.array | None = field(init=False, default=None)
    kept: mx.array | None = field(init=False, default=None)

    @property
    def greedy(self) -> bool:
        """Its tokens are the most probable ones, and nothing else."""
        return not self.host.model.rule.keeps_drafts and not self.host.model.logits_processors

    @property
    def verified(self) -> int:
        return 0 if self.drafts is None else self.drafts.size


def round_together(members: Sequence[Member], stacks: Stacks | None = None) -> tuple[list[Round], bool]:
    """Advances every text, at rest, by one round, over `stacks` where they are given. Returns what each emitted, NO_TOKEN where
    its logits were not finite, and whether the round was longer than others of its kind, since heads had to catch up."""
    model = members[0].host.model
    for member in members:
        member.host.next = mx.array([member.token], mx.uint32)
    with RowsAttention(model.base):
        late = _draft(members, stacks)
        width = 1 + max(member.verified for member in members)
        tokens = mx.stack([_padded(member, width) for member in members])  # [B, L]
        texts = [member.host.caches for member in members]
        caches = rows_caches(texts) if stacks is None else stacks.base.caches(texts, width)
        hidden = model.base.trunk(tokens, caches)
        normed = model.base.norm(hidden)
        logits = model.base.logits(normed)  # [B, L, V]
        results = [_verify(member, tokens[i], logits[i]) for i, member in enumerate(members) if not member.greedy]
        best = marked(mx.argmax(logits, axis=-1), logits)
        source = None if model.heads is None else model.heads.source(model.base, hidden, normed)  # [B, L, d]
        flat = mx.concatenate([tokens.astype(mx.int32).reshape(-1), best.reshape(-1), *results])
        mx.eval(flat, *([] if source is None else [source]))
    said, size = read_tokens(flat), tokens.size
    rounds, rest = [], said[2 * size :]
    for i, member in enumerate(members):
        m, row = member.verified, slice(i * width, i * width + member.verified + 1)
        if member.greedy:
            predicted = said[size : 2 * size][row]
            accepted = accept_greedy(predicted, said[:size][row][1:])
        else:
            accepted, predicted, rest = rest[0], rest[1 : m + 2], rest[m + 2 :]
        rounds.append(_take(member, accepted, predicted[: accepted + 1], None if source is None else source[i]))
    return rounds, late


def _padded(member: Member, width: int) -> mx.array:
    """The tokens of its pass [L]."""
    own = [mx.array([member.token], mx.uint32)] + ([] if member.drafts is None else [member.drafts])
    return mx.pad(mx.concatenate(own), [(0, width - 1 - member.verified)])


def _verify(member: Member, tokens: mx.array, logits: mx.array) -> mx.array:
    """tokens [L], logits [L, V] -> int32 [m + 2] by the text's own rule: accepted drafts, then m + 1 marked tokens."""
    host, rule, own = member.host, member.host.model.rule, member.verified + 1
    tokens, logits = tokens[:own], host.model.processed(logits[:own], host.tokens, tokens[:own])
    contexts = contexts_of(host.recent(rule.context), tokens, rule.context) if rule.context else None
    text, count = rule.verify(logits, tokens[1:], host.length + 1, contexts, host.table, member.kept)
    return mx.concatenate([count[None].astype(mx.int32), marked(text, logits)])


def _take(member: Member, accepted: int, emitted: list[int], source: mx.array | None) -> Round:
    """What was accepted becomes the text."""
    host, drafts = member.host, member.verified
    host.tokens += [member.token, *emitted[:-1]]
    host.next = mx.array([max(emitted[-1], 0)], mx.uint32)
    trim_to(host.caches, host.length)
    host.quantise()
    if host.lagging is not None and source is not None:
        if member.count:
            host.lagging.accepted(accepted)
        host.lagging.add(source[: accepted + 1])
    if NO_TOKEN in emitted:
        emitted = [NO_TOKEN]
    kind = "lookup" if member.lookup else "heads" if drafts else "plain"
    return Round(emitted, accepted if emitted[0] != NO_TOKEN else 0, drafts, source=kind)


def _draft(members: Sequence[Member], stacks: Stacks | None) -> bool:
    """Makes the drafts of all members; whether one of them had to catch up by itself."""
    for member in members:
        if member.lookup:
            member.drafts = mx.array(member.lookup, mx.uint32)
            member.kept = one_hot(member.drafts, member.host.model.base.vocab_size) if not member.greedy else None
    if not (drafting := [member for member in members if member.count]):
        return False
    model, most = drafting[0].host.model, max(member.count for member in drafting)
    assert model.heads is not None and model.head_logits is not None
    choices = [None if member.greedy else member.host.drafting() for member in drafting]
    guess = None if model.heads.draft_tokens is None else model.heads.draft_tokens

    def choose(depth: int, logits: mx.array) -> mx.array:
        best = mx.argmax(logits, axis=-1)
        best = (best if guess is None else guess[best]).astype(mx.uint32)
        own = [
            best[i : i + 1] if choice is None or depth >= member.count else choice[0](depth, logits[i : i + 1])
            for i, (member, choice) in enumerate(zip(drafting, choices, strict=True))
        ]
        return best if all(c is None for c in choices) else mx.concatenate([token.astype(mx.uint32) for token in own])

    lagging = [lag_of(member) for member in drafting]
    texts, following = [member.host.tokens for member in drafting], [member.token for member in drafting]
    made = (model.base, model.heads, model.head_logits)
    drafts, late = draft_together(*made, lagging, texts, following, most, choose, stacks)
    for i, (member, choice) in enumerate(zip(drafting, choices, strict=True)):
        member.drafts = drafts[i, : member.count]
        if choice is not None and member.host.model.rule.keeps_drafts:
            member.kept = mx.concatenate(choice[1][: member.count])
    return late


def lag_of(member: Member) -> LaggingHeads:
    assert member.host.lagging is not None
    return member.host.lagging
