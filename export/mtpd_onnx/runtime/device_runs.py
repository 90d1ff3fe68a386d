"""`DeviceRuns`: the captured runs of graphs/device_rounds.py, one per kind of round, over one state on the device.
Called by runtime/device_rounds.py; runtime/open_device.py opens the sessions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtpd_mlx.speculative.round_costs import Kind
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.runner import Runner, cache_state, device_array, device_zeros
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.shared_weights import SharedWeights

WINDOWS = (16, 32, 64, 128)  # positions that heads read in a round; as few as hold what they have missed
CAPTURE_RUNS = 8  # capturing executes a round a few times, and each time it may advance by all its rows


class DeviceRuns:
    """sessions: by number of heads, 0 for given drafts. `kinds`: the rounds wanted. The state: token, past_length, text,
    hidden, the caches; sampled: recent."""

    def __init__(
        self,
        sessions: Mapping[int, Any],
        manifest: Manifest,
        provider: str,
        kinds: list[Kind],
        *,
        captured: bool,
        sampling: SamplingState | None,
        stream: Stream | None,
        weights: SharedWeights,
    ):
        self._weights = weights  # kept as long as the sessions
        self._sessions, self._manifest, self._provider = sessions, manifest, provider
        self._captured, self._stream, self.sampling = captured, stream, sampling
        self._caches = cache_state(manifest, provider, max(sessions))
        self._small = {
            "token": ("next_token", device_array(np.zeros(1, np.int64), provider)),
            "past_length": ("next_past_length", device_array(np.zeros(1, np.int32), provider)),
            "text": ("next_text", device_array(np.zeros(manifest.capacity, np.int64), provider)),
        }
        if manifest.num_heads:
            size = manifest.capacity * manifest.dims["hidden_size"]
            self._small["hidden"] = ("next_hidden", device_zeros([size], manifest, provider))
        if sampling is not None:
            self._small["recent"] = ("next_recent", device_array(sampling.inputs([], 0)["recent"], provider))
        self._shared = {"origin": device_array(np.zeros(1, np.int32), provider)}
        if sampling is not None:
            self._shared |= {name: device_array(array, provider) for name, array in sampling.constants().items()}
        self.windows = [w for w in WINDOWS if w + CAPTURE_RUNS * (max(sessions) + 1) <= manifest.capacity]
        self.plain = self._given(0, 1)
        self.lookups = {
            kind.num_drafts: self._given(kind.num_drafts, 2 + i)
            for i, kind in enumerate(k for k in kinds if k.source == "lookup" and self._fits(k.num_drafts))
        }
        self.heads = {
            (count, window): self._drafted(count, window, 1 + i)
            for count in sorted({kind.num_drafts for kind in kinds if kind.source == "heads"})
            for i, window in enumerate(self.windows)
        }

    def _fits(self, drafts: int) -> bool:
        return 1 + CAPTURE_RUNS * (drafts + 1) <= self._manifest.capacity

    @property
    def runners(self) -> list[Runner]:
        return [self.plain, *self.lookups.values(), *self.heads.values()]

    def _given(self, drafts: int, graph: int) -> Runner:
        own = {"given": np.zeros(max(1, drafts), np.int64), "checked": np.arange(drafts + 1, dtype=np.int64)}
        return self._runner(0, drafts, own, graph)

    def _drafted(self, count: int, window: int, graph: int) -> Runner:
        return self._runner(count, count, {"window": np.arange(-window, 0, dtype=np.int64)}, graph)

    def _runner(self, heads: int, drafts: int, own: dict[str, np.ndarray], graph: int) -> Runner:
        own |= {"rows": np.arange(drafts + 1, dtype=np.int64), "last_row": np.array([drafts], np.int32)}
        others = tuple(f"past_mtp.{k}." for k in range(heads, max(self._sessions)))
        caches = {name: value for name, value in self._caches.items() if not name.startswith(others or "-")}
        shared = dict(self._shared)
        if not heads:
            del shared["origin"]
        return Runner(
            self._sessions[heads],
            self._provider,
            caches | self._small,
            constants=own,
            shared=shared,
            results={"result": np.zeros(drafts + 2, np.int64)},
            captured=self._captured,
            graph=graph,
            stream=self._stream,
        )

    def capture(self) -> None:
        """Every kind of round once, from a short text; then all is zero again."""
        for (_, window), runner in self.heads.items():
            runner.capture({"past_length": np.array([window], np.int32)})
        for runner in (self.plain, *self.lookups.values()):
            runner.capture({"past_length": np.zeros(1, np.int32)})
        widest = max(self.heads, default=None)
        (self.plain if widest is None else self.heads[widest]).clear()

    def settle(self, token: int, length: int, recent: np.ndarray | None) -> None:
        """The text on the device is its first `length` tokens, and `token` comes next. Nothing may be pending."""
        self.plain.set("token", np.array([token], np.int64))
        self.plain.set("past_length", np.array([length], np.int32))
        if recent is not None:
            self.plain.set("recent", recent)

    def set_origin(self, origin: int) -> None:
        """Where the heads' caches begin. Nothing may be pending."""
        self._shared["origin"].update_inplace(np.array([origin], np.int32))

    def begin(self) -> None:
        """Another text begins: other random numbers."""
        if self.sampling is not None:
            self._shared["uniforms"].update_inplace(self.sampling.constants()["uniforms"])

    def sample_as(self, sampling: Sampling) -> None:
        """Texts are sampled so from the next one on. Nothing may be pending."""
        if self.sampling is not None:
            self.sampling = SamplingState(sampling, self._manifest)
            self._shared["settings"].update_inplace(self.sampling.settings)

    def force(self, tokens: np.ndarray, length: int, recent: np.ndarray | None) -> np.ndarray:
        """Appends `tokens` [S], all known, at position `length`; the main head's token after them, marked, int64 [1]."""
        size = len(tokens)
        inputs = {
            "token": tokens[:1],
            "given": tokens[1:] if size > 1 else np.zeros(1, np.int64),
            "rows": np.arange(size, dtype=np.int64),
            "last_row": np.array([size - 1], np.int32),
            "checked": np.array([size - 1], np.int64),
            "past_length": np.array([length], np.int32),
        }
        if recent is not None:
            inputs["recent"] = recent
        return self.plain.free(inputs, ("result",))[0][1:]
