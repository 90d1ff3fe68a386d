"""Decoded texts: a backend's, and what they are held against, the base's own greedy text."""

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import Base
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend

_KNOWN: dict[int, tuple[Base, dict]] = {}  # the base is held, so that no other one gets its id


def decoded(backend: Backend, prompt: list[int], length: int = 40, plain: bool = False) -> tuple[list[int], list[int]]:
    """What `backend` writes after `prompt`, from an empty cache, and the accepted drafts of each round that had some."""
    backend.rewind_to(0)
    tokens, accepted = [], []
    for chunk in generate(backend, prompt, max_tokens=length, plain=plain):
        tokens += chunk.tokens
        if chunk.round is not None and chunk.round.proposed:
            accepted.append(chunk.round.accepted)
    return tokens, accepted


def text(backend: Backend, prompt: list[int], length: int = 40, plain: bool = False) -> list[int]:
    return decoded(backend, prompt, length, plain)[0]


def oracle(base: Base, prompt: list[int], length: int = 40) -> list[int]:
    """The text of plain greedy decoding, a token a pass. Remembered: every plan is held against the same one."""
    _, texts = _KNOWN.setdefault(id(base), (base, {}))
    if (key := (tuple(prompt), length)) not in texts:
        texts[key] = text(StepBackend(MLXModel(base, None)), prompt, length, plain=True)
    return list(texts[key])
