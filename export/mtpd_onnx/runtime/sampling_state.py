"""`SamplingState`: the sampling inputs of a graph, kept up to date.
Called by the backends."""

from collections.abc import Sequence

import numpy as np

from mtpd_mlx.speculative.sampling import Sampling, uniforms
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.runner import Runner

CONTEXT = Sampling.repetition_context_size  # what graphs are built for


def settings(options: Sampling, vocab: int) -> np.ndarray:
    """The input `settings`, float32 in the order of SETTINGS in graphs/sampling.py."""
    top_p = options.top_p if 0 < options.top_p < 1 else 2.0
    values = (options.inverse_temperature, top_p, options.min_p, options.kept or vocab, options.repetition_penalty)
    return np.array(values, np.float32)


class SamplingState:
    """One table of random numbers per text: the next one is drawn when a text begins."""

    def __init__(self, options: Sampling, manifest: Manifest):
        if options.repetition_context_size != CONTEXT:
            raise ValueError(
                f"--repetition-context-size: got {options.repetition_context_size}, exported graphs look at {CONTEXT} tokens"
            )
        if options.xtc_probability:
            raise ValueError(f"--xtc-probability: got {options.xtc_probability}, exported graphs sample without XTC (0)")
        self.options = options
        self._rng = np.random.default_rng(options.seed)
        self._positions = manifest.capacity + manifest.num_heads + 2
        vocab = manifest.dims["vocab_size"]
        if options.kept > vocab:
            raise ValueError(f"--top-k: got {options.top_k}, expected at most {vocab} (the vocabulary)")
        self.settings = settings(options, vocab)
        self.table = np.zeros((0, 0), np.float32)  # of the text under way, where its backend begins it by `renew`

    def constants(self) -> dict[str, np.ndarray]:
        return {"settings": self.settings, "uniforms": uniforms(self._positions, self._rng)}

    def begin(self, runner: Runner) -> None:
        runner.set("uniforms", uniforms(self._positions, self._rng))

    def renew(self) -> None:
        """Another text begins, whose backend reads `table`."""
        self.table = uniforms(self._positions, self._rng)

    def inputs(self, tokens: Sequence[int], first: int) -> dict[str, np.ndarray]:
        """`recent`: the last tokens, and before the text the first one (`first` where there is none yet)."""
        held = list(tokens[-CONTEXT:])
        fill = tokens[0] if len(tokens) else first
        return {"recent": np.array([fill] * (CONTEXT - len(held)) + held, np.int64)}
