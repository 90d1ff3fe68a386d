"""The same prompts on both runtimes: are the tokens the same, and how far apart are the logits?"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtpd_mlx.acceptance import Generation
from mtpd_mlx.backend import MLXModel
from mtpd_mlx.base import Base
from mtpd_mlx.prompts import EncodedPrompt
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.stats import DecodeStats


@dataclass
class Decoded:
    """One prompt decoded by one backend."""

    prompt: EncodedPrompt
    tokens: list[int]


@dataclass
class Divergence:
    """The first position where two runtimes differ, with the margin between the two best logits of MLX there."""

    prompt: str
    position: int
    mlx_token: int
    onnx_token: int
    top2_margin: float


@dataclass
class ParityReport:
    prompts: int
    tokens: int
    divergences: list[Divergence]
    max_logit_diff: float
    car: dict[str, list[float]] = field(default_factory=dict)
    tau: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_equal(self) -> bool:
        return not self.divergences

    def to_dict(self) -> dict[str, Any]:
        values = {k: v for k, v in vars(self).items() if k != "divergences"}
        return {"tokens_equal": self.tokens_equal} | values | {"divergences": [vars(d) for d in self.divergences]}


def decode_all(
    backend: Backend, prompts: list[EncodedPrompt], max_tokens: int, eos: frozenset[int], plain: bool = False
) -> tuple[list[Decoded], DecodeStats]:
    """Decodes each prompt from an empty cache."""
    decoded, stats = [], DecodeStats(backend.num_draft_tokens)
    for prompt in prompts:
        backend.rewind_to(0)
        tokens: list[int] = []
        for chunk in generate(backend, prompt.tokens, max_tokens=max_tokens, eos_token_ids=eos, plain=plain):
            tokens += chunk.tokens
            stats.add(chunk)
        decoded.append(Decoded(prompt, tokens))
    return decoded, stats


def find_divergence(base: Base, ours: Decoded, other: Decoded) -> Divergence | None:
    """The first differing position, or None. A shorter output that is a prefix differs where it ends."""
    a, b = ours.tokens, other.tokens
    if a == b:
        return None
    i = next((j for j, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    logits = MLXModel(base, None).logits(ours.prompt.tokens + a[:i])[-1]
    second, first = np.partition(logits, -2)[-2:]
    token = [t[i] if i < len(t) else -1 for t in (a, b)]
    return Divergence(ours.prompt.id, i, token[0], token[1], float(first - second))


def compare(
    base: Base, mlx: tuple[list[Decoded], DecodeStats], onnx: tuple[list[Decoded], DecodeStats], max_logit_diff: float
) -> ParityReport:
    found = [find_divergence(base, a, b) for a, b in zip(mlx[0], onnx[0], strict=True)]
    report = ParityReport(len(mlx[0]), sum(len(d.tokens) for d in mlx[0]), [d for d in found if d is not None], max_logit_diff)
    for name, (_, stats) in (("mlx", mlx), ("onnx", onnx)):
        report.car[name], report.tau[name] = stats.car, stats.tau
    return report


def max_logit_difference(base: Base, onnx_logits: Any, texts: list[Generation]) -> float:
    """Largest |MLX - ONNX| main-head logit over whole texts; `onnx_logits(tokens) -> float [n, V]`."""
    worst = 0.0
    for text in texts:
        tokens = text.prompt + text.tokens
        worst = max(worst, float(np.abs(MLXModel(base, None).logits(tokens) - onnx_logits(tokens)).max()))
    return worst
