"""The decoder loop: one for every runtime, speculative or plain."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mtpd_mlx.speculative.protocol import Backend, Round


@dataclass(frozen=True)
class Chunk:
    """Tokens that one call of the backend brought. finish_reason is set on the last chunk: "stop" (EOS or the caller's stop),
    "length" (max_tokens) or "context" (the cache is full). round is None for prefill and plain steps."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    round: Round | None = None


def generate(
    backend: Backend,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    eos_token_ids: frozenset[int] = frozenset(),
    plain: bool = False,
    stop: Callable[[int], bool] | None = None,
) -> Iterator[Chunk]:
    """Decodes greedily from `prompt`, appended to what the backend already holds.

    Nothing is emitted beyond max_tokens, an EOS token or the first token for which `stop` is true (each of which is itself
    emitted). When it returns, the cache holds prompt and emitted tokens except the last, so a conversation can go on.
    Raises ValueError for an empty prompt or one that leaves no room.
    """
    if len(prompt) == 0:
        raise ValueError("empty prompt: expected at least one token")
    if max_tokens < 1:
        raise ValueError(f"max_tokens: got {max_tokens}, expected at least 1")
    start = backend.length
    room = backend.capacity - start - len(prompt)
    if room < 0:
        raise ValueError(f"prompt of {len(prompt)} tokens does not fit: {backend.capacity - start} positions are free")
    emitted = 0

    def cut(tokens: list[int]) -> tuple[list[int], str | None]:
        for i, token in enumerate(tokens, start=1):
            if token in eos_token_ids or (stop is not None and stop(token)):
                return tokens[:i], "stop"
            if emitted + i == max_tokens:
                return tokens[:i], "length"
        return tokens, None

    def finish(tokens: list[int], reason: str | None, result: Round | None) -> Chunk:
        if reason is not None:
            backend.rewind_to(start + len(prompt) + emitted + len(tokens) - 1)
        return Chunk(tokens, reason, result)

    tokens, reason = cut([backend.prefill(prompt)])
    result: Round | None = None
    while True:
        chunk = finish(tokens, reason, result)
        emitted += len(tokens)
        if reason is None and backend.length >= backend.capacity:
            chunk, reason = Chunk(tokens, "context", result), "context"
        yield chunk
        if reason is not None:
            return
        last = tokens[-1]
        if plain or backend.num_draft_tokens == 0 or backend.length + 1 + backend.num_draft_tokens > backend.capacity:
            result = None
            tokens, reason = cut([backend.step(last)])
        else:
            result = backend.round(last)
            tokens, reason = cut(result.emitted)
