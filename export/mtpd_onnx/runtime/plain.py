"""`PlainBackend`: the main model alone, the baseline of every speed-up.
Called by runtime/open.py, bound.py and `mtpd parity`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtpd_mlx.speculative.finite import check_logits, check_tokens
from mtpd_mlx.speculative.protocol import Round
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime import limits
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.limits import check_rewind, need_room, need_tokens
from mtpd_onnx.runtime.reach import Reach
from mtpd_onnx.runtime.runner import Runner, cache_state, device_array
from mtpd_onnx.runtime.sampling_state import SamplingState


class PlainBackend:
    """One token a step. The token and its position come back from the device into the next step's inputs; `ahead`: the next
    step is started before the token of this one is read."""

    num_draft_tokens = 0

    def __init__(
        self,
        session: Any,
        manifest: Manifest,
        provider: str,
        *,
        captured: bool = False,
        sampling: SamplingState | None = None,
        stream: Stream | None = None,
    ):
        self.capacity, self.provider, self._sampling = manifest.capacity, provider, sampling
        self._computed_in = manifest.activations
        self._tokens: list[int] = []
        self.reach = Reach(manifest)
        self._next = -1  # the token that the device goes on with
        caches = cache_state(manifest, provider, 0)
        self.caches = {name: value for name, (_, value) in caches.items()}
        state = caches | {
            "tokens": ("next_tokens", device_array(np.zeros(1, np.int64), provider)),
            "main_seqlens": ("next_main_seqlens", device_array(np.zeros(1, np.int32), provider)),
        }
        constants = {"checked": np.zeros(1, np.int64)}
        if sampling is not None:
            state["recent"] = ("next_recent", device_array(sampling.inputs([], 0)["recent"], provider))
            constants |= sampling.constants()
        results = {"next_tokens": np.zeros(1, np.int64)}
        self.runner = Runner(session, provider, state, constants=constants, results=results, captured=captured, stream=stream)
        self.ahead = stream is not None
        if captured:
            self.runner.capture({})
            self.runner.clear()

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        """The cached text."""
        return list(self._tokens)

    def go_on(self, tokens: Sequence[int]) -> None:
        """`caches` hold the positions of `tokens` now, whatever the text was before."""
        self.runner.drain()
        self._tokens, self._next = list(tokens), -1

    def prefill(self, tokens: Sequence[int]) -> int:
        need_tokens(self, tokens)
        for start in range(0, len(tokens), limits.PREFILL_CHUNK):
            self._run(tokens[start : start + limits.PREFILL_CHUNK])
        return self._next

    def step(self, token: int) -> int:
        need_room(self, 1)
        if token != self._next:
            self._run([token])
            return self._next
        self._next = -1  # should the run be interrupted, the next one starts from the host's tokens
        self.reach.before_run(self.length, 1)
        if not self.runner.pending:
            self.runner.start()
        if self.ahead and self.length + 2 <= self.capacity:
            self.runner.start()
        (following,) = self.runner.wait()
        check_tokens(following, self.length + 1, self._computed_in)
        self._tokens.append(token)
        self._next = int(following[0])
        return self._next

    def renew(self) -> None:
        """What follows is drawn anew (protocol.Renews)."""
        if self._sampling is not None:
            self.runner.drain()
            self._sampling.begin(self.runner)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends `tokens`; float32 logits [n, V] (parity reports, verification)."""
        need_room(self, len(tokens))
        logits = self._run(tokens, ("logits",))[0].astype(np.float32)
        check_logits(logits, self.length - len(tokens) + 1, self._computed_in)
        return logits

    def _run(self, tokens: Sequence[int], outputs: tuple[str, ...] = ()) -> list[np.ndarray]:
        self.runner.drain()
        if self._sampling is not None and not self._tokens:
            self._sampling.begin(self.runner)
        self._next = -1  # as in `step`
        self.reach.restore(self._tokens, self._free)
        self.reach.before_run(self.length, len(tokens))
        results = self._free(self.length, tokens, outputs)
        self._tokens += [int(t) for t in tokens]
        following = self.runner.get("tokens")
        check_tokens(following, self.length, self._computed_in)
        self._next = int(following[0])
        return results

    def _free(self, past: int, tokens: Sequence[int], outputs: tuple[str, ...] = ()) -> list[np.ndarray]:
        size = len(tokens)
        inputs: dict[str, np.ndarray] = {
            "tokens": np.asarray(tokens, dtype=np.int64),
            "checked": np.arange(0 if outputs else size - 1, size, dtype=np.int64),
            "main_seqlens": np.array([past + size - 1], dtype=np.int32),
        }
        if self._sampling is not None:
            inputs |= self._sampling.inputs(self._tokens[:past], int(tokens[0]))
        return self.runner.free(inputs, outputs)

    def round(self, token: int) -> Round:
        return Round([self.step(token)], 0, 0)

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        if length < self.length:
            del self._tokens[length:]
            self._next = -1
            self.runner.drain()
