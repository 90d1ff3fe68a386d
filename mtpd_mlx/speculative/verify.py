"""`examine`, `judge`: speculative text against plain decoding, and sampled text against its distribution.
Called by `mtpd verify`, `mtpd-onnx verify` and `mtpd bench`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mtpd_mlx.speculative.finite import check_logits, naming
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.sampling import Sampling, marginal
from mtpd_mlx.speculative.significance import Evidence

LOGIT_ROWS = 32  # rows of [V] logits held at a time
SIGNIFICANCE = 1e-3


class Reference(Protocol):
    """A plain backend that also gives logits."""

    def rewind_to(self, length: int) -> None: ...
    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends `tokens`; float32 logits [n, V] after each."""
        ...


@dataclass(frozen=True)
class Divergence:
    """Where a speculative text first differs from the plain one; None where it ended. top2_margin: the plain model's best
    logit less its second best there: how near to a tie it was."""

    prompt: str
    position: int
    plain: int | None
    speculative: int | None
    top2_margin: float


@dataclass
class Report:
    """sampling_p_value: the smaller, the less the sampled text can come from the model's distribution; None: not tried."""

    prompts: int = 0
    tokens: int = 0
    divergences: list[Divergence] = field(default_factory=list)
    sampled_tokens: int = 0
    sampling_p_value: float | None = None
    top_deviate: float | None = None
    tau: dict[str, float] = field(default_factory=dict)

    @property
    def identical(self) -> int:
        return self.prompts - len(self.divergences)

    def passed(self, tolerance: float) -> bool:
        """Every divergence within `tolerance` of a tie, and the distribution not refuted."""
        near = all(d.top2_margin <= tolerance for d in self.divergences)
        return near and (self.sampling_p_value is None or self.sampling_p_value > SIGNIFICANCE)

    def to_dict(self) -> dict[str, Any]:
        values = {k: v for k, v in vars(self).items() if k != "divergences"}
        return values | {"identical": self.identical, "first_divergences": [vars(d) for d in self.divergences]}


Texts = list[list[int]]
Prompts = Sequence[tuple[str, list[int]]]  # (id, tokens)


def decode(backend: Backend, prompts: Prompts, max_tokens: int, see: Callable[[], None] = lambda: None) -> tuple[Texts, float]:
    """Each prompt's text from an empty cache, to the very end (no token ends it), and tau over all of them."""
    texts, accepted, rounds = [], 0, 0
    for name, tokens in prompts:
        backend.rewind_to(0)
        text: list[int] = []
        with naming([name]):
            for chunk in generate(backend, tokens, max_tokens=max_tokens):
                text += chunk.tokens
                if chunk.round is not None and chunk.round.proposed:
                    accepted, rounds = accepted + chunk.round.accepted, rounds + 1
        texts.append(text)
        see()
    return texts, 1 + accepted / max(rounds, 1)


def compare(reference: Reference, prompts: Prompts, plain: Texts, speculative: Texts) -> list[Divergence]:
    """The first difference of every pair of texts that differ."""
    found = []
    for (name, prompt), a, b in zip(prompts, plain, speculative, strict=True):
        if a == b:
            continue
        i = next((j for j, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        row = text_logits(reference, prompt, [*a[:i], 0])[-1]  # the token that is chosen from it is not read
        second, first = np.partition(row, -2)[-2:]
        pair = [text[i] if i < len(text) else None for text in (a, b)]
        found.append(Divergence(name, i, pair[0], pair[1], float(first - second)))
    return found


def text_logits(reference: Reference, prompt: Sequence[int], text: Sequence[int]) -> np.ndarray:
    """float32 [len(text), V]: the logits that each token of `text` was chosen from, after `prompt`."""
    reference.rewind_to(0)
    rows, whole = [], [*prompt, *text]
    for start in range(0, len(whole) - 1, LOGIT_ROWS):
        chunk = whole[start : min(start + LOGIT_ROWS, len(whole) - 1)]
        logits = reference.logits(chunk)
        check_logits(logits, start + 1)
        wanted = max(0, len(prompt) - 1 - start)
        rows.append(logits[wanted:])
    return np.concatenate(rows)


def judge(reference: Reference, prompts: Prompts, texts: Texts, options: Sampling, special: Sequence[int] = ()) -> Evidence:
    """What sampled texts say about the distribution that they come from."""
    evidence, size = Evidence(), options.repetition_context_size
    for (_, prompt), text in zip(prompts, texts, strict=True):
        whole = [*prompt, *text]
        padded = [whole[0]] * size + whole
        contexts = np.array([padded[len(prompt) + i : len(prompt) + i + size] for i in range(len(text))])
        evidence.add(marginal(text_logits(reference, prompt, text), options, contexts, special), np.array(text))
    return evidence


def examine(
    reference: Reference,
    plain: Backend,
    open_rounds: Callable[[Sampling | None], Backend],
    prompts: Prompts,
    *,
    max_tokens: int,
    sampling: Sampling | None,
    special: Sequence[int] = (),
    see: Callable[[], None] = lambda: None,
) -> Report:
    """Every text of `prompts`, plain, speculative and (where `sampling` is given) sampled. `open_rounds`: makes what decodes
    speculatively, greedily or under a sampling. The logits of `reference` judge the texts."""
    texts, _ = decode(plain, prompts, max_tokens, see)
    speculative, tau = decode(open_rounds(None), prompts, max_tokens, see)
    report = Report(len(prompts), sum(map(len, texts)), compare(reference, prompts, texts, speculative), tau={"greedy": tau})
    if sampling is not None:
        drawn, report.tau["sampled"] = decode(open_rounds(sampling), prompts, max_tokens, see)
        evidence = judge(reference, prompts, drawn, sampling, special)
        report.sampled_tokens, report.sampling_p_value = evidence.count, evidence.p_value
        report.top_deviate = evidence.top_deviate
    return report


def describe(report: Report, tolerance: float) -> str:
    same = f"greedy: {report.identical} of {report.prompts} prompts identical to plain decoding over {report.tokens} tokens"
    lines = [same]
    for d in report.divergences:
        near = "a near-tie" if d.top2_margin <= tolerance else "NOT a near-tie"
        lines.append(
            f"  {d.prompt}: first difference at token {d.position} (plain {d.plain}, speculative {d.speculative}), "
            f"top-2 margin {d.top2_margin:.3g}: {near}"
        )
    if report.sampling_p_value is not None:
        lines.append(
            f"sampling: p = {report.sampling_p_value:.3g} over {report.sampled_tokens} tokens that they follow the model's "
            f"distribution (refuted below {SIGNIFICANCE}); most probable token off by {report.top_deviate:+.2f} deviations"
        )
    taus = ", ".join(f"{name} {tau:.3f}" for name, tau in report.tau.items())
    return "\n".join([*lines, f"tau: {taus}", "passed" if report.passed(tolerance) else "FAILED"])
