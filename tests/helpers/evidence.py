"""What sampled texts of a backend say about its distribution."""

import numpy as np
from mtpd_onnx.runtime.plain import PlainBackend

from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.sampling import Sampling, probabilities
from mtpd_mlx.speculative.significance import Evidence

PROMPTS = [list(range(5, 20)), list(range(40, 60)), [9, 9, 9, 9, 4], list(range(90, 60, -1))]
LENGTH, REPEATS = 60, 8


def sample(backend: Backend, prompt: list[int], length: int = LENGTH) -> tuple[list[int], int]:
    """(text, accepted drafts)."""
    backend.rewind_to(0)
    chunks = list(generate(backend, prompt, max_tokens=length))
    return [t for c in chunks for t in c.tokens], sum(c.num_drafted for c in chunks)


def evidence(backend: Backend, reference: PlainBackend, options: Sampling) -> tuple[Evidence, int]:
    """What the texts of `backend` say about its distribution, given the plain model's logits."""
    collected, accepted = Evidence(), 0
    for prompt in PROMPTS * REPEATS:
        text, drafted = sample(backend, prompt)
        accepted += drafted
        reference.rewind_to(0)
        whole = prompt + text
        logits = reference.logits(whole[:-1])[len(prompt) - 1 :]
        contexts = [([whole[0]] * 20 + whole[: len(prompt) + i])[-20:] for i in range(len(text))]
        collected.add(probabilities(logits, options, np.array(contexts)), np.array(text))
    return collected, accepted
