"""`FusedBackend`: the Backend over round.onnx, one run of the device per round.
Called by runtime/open.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mtpd_mlx.speculative.cancel import cancel_point
from mtpd_mlx.speculative.finite import check_tokens
from mtpd_mlx.speculative.protocol import Round
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime import limits
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.limits import check_rewind, need_room, need_tokens
from mtpd_onnx.runtime.reach import Reach
from mtpd_onnx.runtime.runner import Runner, cache_state, device_array, device_zeros
from mtpd_onnx.runtime.sampling_state import SamplingState


class FusedBackend:
    """Verify, accept and the whole draft chain in one run (graphs/round.py, build_round); the host reads what was emitted.

    The tokens to verify, the position and the tails stay on the device. The host sets them where it does something else
    than the next round: prefill, a step, another token than the device goes on with, a rewind. `ahead`: the next round is
    started before the results of this one are read, so that the device never waits for the host.
    """

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
        k, width = manifest.num_heads, manifest.dims["hidden_size"]
        self.num_draft_tokens, self.capacity, self.provider, self._sampling = k, manifest.capacity, provider, sampling
        numbers = {"tokens": k + 1, "token_tail": k}
        positions = ("main_seqlens", "past_length")
        state = cache_state(manifest, provider, k)
        state |= {n: (f"next_{n}", device_array(np.zeros(size, np.int64), provider)) for n, size in numbers.items()}
        state |= {n: (f"next_{n}", device_array(np.zeros(1, np.int32), provider)) for n in positions}
        state["hidden_tail"] = ("next_hidden_tail", device_zeros((k, width), manifest, provider))
        constants = {"checked": np.arange(k + 1, dtype=np.int64), "window": np.arange(k + 1, dtype=np.int64)}
        if sampling is not None:
            state["recent"] = ("next_recent", device_array(sampling.inputs([], 0)["recent"], provider))
            probs = np.zeros((k, manifest.dims["vocab_size"]), np.float32)
            state["draft_probs"] = ("next_draft_probs", device_array(probs, provider))
            constants |= sampling.constants()
        self.runner = Runner(
            session,
            provider,
            state,
            constants=constants,
            results={"result": np.zeros(k + 2, np.int64)},
            captured=captured,
            stream=stream,
        )
        self.ahead, self._computed_in = stream is not None, manifest.activations
        self._tokens: list[int] = []
        self._reach = Reach(manifest)
        self._clear()
        if captured:
            self.runner.capture({"past_length": np.array([k], np.int32), "main_seqlens": np.array([2 * k], np.int32)})
            self.runner.clear()

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def drafts(self) -> list[int]:
        """What the next round verifies."""
        self._refresh()
        return self.runner.get("tokens")[1:].tolist()

    def _clear(self) -> None:
        self._next = -1  # the token that the device goes on with
        self._stale = 0  # trailing positions whose states must be computed again after a rewind
        self._begun = False

    def prefill(self, tokens: Sequence[int]) -> int:
        need_tokens(self, tokens)
        self._refresh()
        for start in range(0, len(tokens), limits.PREFILL_CHUNK):
            cancel_point()
            self._force(tokens[start : start + limits.PREFILL_CHUNK])
        return self._next

    def step(self, token: int) -> int:
        need_room(self, 1)
        self._refresh()
        self._force([token])
        return self._next

    def round(self, token: int) -> Round:
        """Proposes nothing, and takes a plain step through the same graph, in a context of fewer than K tokens and where
        `token` is not the one that the device goes on with."""
        k = self.num_draft_tokens
        need_room(self, 1 + k)
        if self._stale or token != self._next:
            self._refresh()
        if self.length < k or token != self._next:
            self._force([token])
            return Round([self._next], 0, 0)
        self._stale = k  # should the run be interrupted, the state is made again from the tokens
        if not self.runner.pending:
            self._reach.before_run(self.length, 1 + k)
            self.runner.start()
        if self.ahead and self.length + 2 * (1 + k) <= self.capacity:
            self.runner.start()
        (result,) = self.runner.wait()
        accepted, *emitted = result.tolist()
        emitted = emitted[: accepted + 1]
        check_tokens(emitted, self.length + 1, self._computed_in)
        self._tokens += [token, *emitted[:-1]]
        self._next, self._stale = emitted[-1], 0
        return Round(emitted, accepted, k)

    def rewind_to(self, length: int) -> None:
        check_rewind(self, length)
        if length == self.length:
            return
        del self._tokens[length:]
        if length == 0:
            self._clear()
        else:
            self._stale = min(self.num_draft_tokens, length)
        self.runner.drain()

    def renew(self) -> None:
        """What follows is drawn anew (protocol.Renews)."""
        if self._sampling is not None:
            if self.runner.drain():
                self._stale = min(self.num_draft_tokens, self.length)
            self._sampling.begin(self.runner)

    def _refresh(self) -> None:
        """After a rewind, and where the device is ahead: runs the last K kept tokens again, which restores the tails, the
        heads' caches and drafts."""
        if self.runner.drain():
            self._stale = min(self.num_draft_tokens, self.length)
        if self._stale:
            self._force(self._tokens[-self._stale :], again=True)

    def _force(self, tokens: Sequence[int], again: bool = False) -> None:
        """Runs tokens that are all known, whatever the model thinks of them: new ones, or the last ones `again`."""
        k, size = self.num_draft_tokens, len(tokens)
        past = self.length - size if again else self.length
        window = size if again else min(k, past) + size  # rows of the heads' window
        if not self._begun and self._sampling is not None:
            self._sampling.begin(self.runner)
        self._next, self._stale = -1, min(k, self.length)  # should the run be interrupted, as in `round`
        self._reach.restore(self._tokens[:past], lambda start, read: self._free(start, read, min(k, start) + len(read)))
        self._reach.before_run(past, size)
        result = self._free(past, tokens, window)
        self._begun = True
        self._tokens[past:] = [int(t) for t in tokens]
        check_tokens(result[-1:], self.length, self._computed_in)
        self._next, self._stale = int(result[-1]), 0

    def _free(self, past: int, tokens: Sequence[int], window: int) -> np.ndarray:
        """A run of known tokens at position `past`. The heads run over `window` rows, up to the last one."""
        k, size = self.num_draft_tokens, len(tokens)
        inputs: dict[str, np.ndarray] = {
            "tokens": np.asarray(tokens, dtype=np.int64),
            "checked": np.array([size - 1], dtype=np.int64),
            "main_seqlens": np.array([past + size - 1], np.int32),
            "past_length": np.array([past], np.int32),
            "window": np.arange(k - window + 1, k + 1, dtype=np.int64),
        }
        if self._sampling is not None:
            inputs |= self._sampling.inputs(self._tokens[:past], int(tokens[0]))
        (result,) = self.runner.free(inputs, ("result",))
        return result
