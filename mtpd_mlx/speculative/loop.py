"""`generate`: the decoder loop, one for every runtime, speculative or plain.
Called by whatever writes a text with a Backend."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mtpd_mlx.speculative.protocol import Backend, Chooses, Round


@dataclass(frozen=True)
class Chunk:
    """Tokens that one call of the backend brought, and what the call was.

    prompt_tokens > 0: a prefill, whose one token comes from the prompt's last position. round: a decoding round (its
    own `emitted` is longer than `tokens` where the text ended inside it; it may have verified nothing). Neither: a plain
    step. seconds: wall time of the call. finish_reason is set on the last chunk: "stop" (EOS or the caller's stop),
    "length" (max_tokens) or "context" (the cache is full).
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    round: Round | None = None
    prompt_tokens: int = 0
    seconds: float = 0.0

    @property
    def num_drafted(self) -> int:
        """How many of `tokens`, from the first, were accepted drafts; the others are the main head's own."""
        return 0 if self.round is None else min(self.round.accepted, len(self.tokens))


def generate(
    backend: Backend,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    eos_token_ids: Collection[int] = frozenset(),
    plain: bool = False,
    stop: Callable[[int], bool] | None = None,
) -> Iterator[Chunk]:
    """Decodes greedily from `prompt`, appended to what the backend already holds (rewind_to(0) starts afresh).

    The tokens are those of plain decoding, whatever the drafts. Nothing is emitted beyond max_tokens, an EOS token or
    the first token for which `stop` is true (each of which is itself emitted); `stop` sees every emitted token once, in
    order, except EOS. Where K drafts no longer fit the cache, plain steps fill it. Whenever a chunk is out, the cache
    holds prompt and emitted tokens except the last: a conversation goes on by prefilling that one and the new prompt.
    Raises ValueError (at the call) for an empty prompt or one that leaves no position free behind it.
    """
    free = backend.capacity - backend.length
    if len(prompt) == 0:
        raise ValueError("prompt: got no tokens, expected at least one")
    if len(prompt) > free - 1:
        raise ValueError(f"prompt: got {len(prompt)} tokens, expected at most {free - 1} (one less than the free context)")
    if max_tokens < 1:
        raise ValueError(f"max_tokens: got {max_tokens}, expected at least 1")
    return _generate(backend, list(prompt), max_tokens, eos_token_ids, plain, stop)


def _generate(
    backend: Backend,
    prompt: list[int],
    max_tokens: int,
    eos_token_ids: Collection[int],
    plain: bool,
    stop: Callable[[int], bool] | None,
) -> Iterator[Chunk]:
    first, emitted = backend.length + len(prompt), 0  # position of the first token to emit
    chunk = timed(lambda: Chunk([backend.prefill(prompt)], prompt_tokens=len(prompt)))
    while True:
        tokens, reason = cut(chunk.tokens, max_tokens - emitted, eos_token_ids, stop)
        emitted += len(tokens)
        cached = first + emitted - 1
        if backend.length != cached:
            backend.rewind_to(cached)
        if reason is None and cached >= backend.capacity:
            reason = "context"
        yield replace(chunk, tokens=tokens, finish_reason=reason)
        if reason is not None:
            return
        chunk = advance(backend, tokens[-1], plain)


def advance(backend: Backend, token: int, plain: bool = False) -> Chunk:
    """A round behind `token`, or a plain step where the backend has no drafts or no room for them."""
    most = 0 if plain else backend.num_draft_tokens
    chooses = not plain and isinstance(backend, Chooses)  # then it sees to the room itself
    if not chooses and (most == 0 or backend.length + 1 + most > backend.capacity):
        return timed(lambda: Chunk([backend.step(token)]))

    def speculate() -> Chunk:
        result = backend.round(token)
        return Chunk(result.emitted, round=result)

    return timed(speculate)


def timed(call: Callable[[], Chunk]) -> Chunk:
    """The chunk, with the seconds that it took."""
    began = time.perf_counter()
    chunk = call()
    return replace(chunk, seconds=time.perf_counter() - began)


def cut(
    tokens: list[int], room: int, eos_token_ids: Collection[int], stop: Callable[[int], bool] | None
) -> tuple[list[int], str | None]:
    """The tokens up to the one that ends the text, and why it ends there; room >= 1 tokens may still be emitted."""
    kept = [int(t) for t in tokens[:room]]
    for i, token in enumerate(kept, start=1):
        if token in eos_token_ids or (stop is not None and stop(token)):
            return kept[:i], "stop"
    return kept, "length" if len(kept) == room else None
