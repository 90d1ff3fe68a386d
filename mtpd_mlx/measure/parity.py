"""`compare`: the same prompts on both runtimes, token by token, and the largest difference of logits.
Called by `mtpd parity` and the demo.

MLX decodes as `mtpd generate` does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.options.measure import ParityOptions
from mtpd_mlx.speculative.finite import largest_difference, naming
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.prompts import EncodedPrompt


@dataclass
class Decoded:
    """One prompt decoded by one backend."""

    prompt: EncodedPrompt
    tokens: list[int]


@dataclass
class Divergence:
    """The first position where the runtimes differ, and the margin between MLX's two best logits there."""

    prompt: str
    position: int
    mlx_token: int | None
    onnx_token: int | None
    top2_margin: float


@dataclass
class ParityReport:
    """`max_logit_diff`: largest difference of any main-head logit over the prompts and their continuations."""

    prompts: int
    tokens: int
    max_logit_diff: float
    divergences: list[Divergence] = field(default_factory=list)
    car: dict[str, list[float]] = field(default_factory=dict)
    ar: dict[str, list[float]] = field(default_factory=dict)
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
        with naming([prompt.id]):
            for chunk in generate(backend, prompt.tokens, max_tokens=max_tokens, eos_token_ids=eos, plain=plain):
                tokens += chunk.tokens
                stats.add(chunk)
        decoded.append(Decoded(prompt, tokens))
    return decoded, stats


def find_divergence(base: Base, ours: Decoded, other: Decoded) -> Divergence | None:
    """The first differing position, or None. Where one output ends before the other, its token there is None."""
    a, b = ours.tokens, other.tokens
    if a == b:
        return None
    i = next((j for j, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    second, first = np.partition(MLXModel(base, None).logits(ours.prompt.tokens + a[:i])[-1], -2)[-2:]
    pair = [t[i] if i < len(t) else None for t in (a, b)]
    return Divergence(ours.prompt.id, i, pair[0], pair[1], float(first - second))


def compare(
    base: Base,
    heads: MTPHeads,
    folder: Path,
    prompts: list[EncodedPrompt],
    max_tokens: int,
    eos: frozenset[int],
    *,
    provider: str = ParityOptions.provider,
    step_by_step: bool = False,
) -> ParityReport:
    """Decodes `prompts` speculatively on MLX and on onnxruntime and holds tokens, logits and acceptance against each other.
    `step_by_step`: on MLX by the oracle of decoding/ (measure/step_model.py)."""
    from mtpd_onnx.manifest import read_manifest
    from mtpd_onnx.runtime.open import open_folder

    drafts = read_manifest(folder).num_heads
    ours: Backend = (
        StepBackend(MLXModel(base, heads, drafts)) if step_by_step else open_decoder(base, heads, num_draft_tokens=drafts)
    )
    mlx, mlx_stats = decode_all(ours, prompts, max_tokens, eos)
    theirs = open_folder(folder, provider=provider, num_draft_tokens=drafts)
    onnx, onnx_stats = decode_all(theirs, prompts, max_tokens, eos)
    report = ParityReport(len(prompts), sum(len(d.tokens) for d in mlx), 0.0)
    report.divergences = [d for d in map(lambda a, b: find_divergence(base, a, b), mlx, onnx) if d is not None]
    report.max_logit_diff = max_logit_difference(base, onnx_logits(folder, provider), mlx)
    for name, stats in (("mlx", mlx_stats), ("onnx", onnx_stats)):
        report.car[name], report.ar[name], report.tau[name] = stats.car, stats.ar, stats.tau
    return report


def onnx_logits(folder: Path, provider: str) -> Callable[[list[int]], np.ndarray]:
    """tokens -> float32 logits [n, V] of the exported main model, from an empty cache."""
    from mtpd_onnx.runtime.open import open_folder
    from mtpd_onnx.runtime.plain import PlainBackend

    backend: Any = open_folder(folder, provider=provider, plain=True)
    model = backend if isinstance(backend, PlainBackend) else backend.model

    def logits(tokens: list[int]) -> np.ndarray:
        model.rewind_to(0)
        return model.logits(tokens)

    return logits


def max_logit_difference(base: Base, logits: Callable[[list[int]], np.ndarray], texts: list[Decoded]) -> float:
    """The largest absolute difference between MLX's logits and `logits` along the texts, in logits."""
    worst = 0.0
    for text in texts:
        tokens = (text.prompt.tokens + text.tokens)[: base.context_length]
        with naming([text.prompt.id]):
            worst = max(worst, largest_difference(MLXModel(base, None).logits(tokens), logits(tokens)))
    return worst
