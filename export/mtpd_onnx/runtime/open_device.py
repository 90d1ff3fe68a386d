"""`open_device`: a folder whose rounds are captured runs of a device (graphs/device_rounds.py).
Called by runtime/open.py."""

from pathlib import Path

from mtpd_mlx.speculative.drafting import FixedDrafting
from mtpd_mlx.speculative.round_costs import Kind
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.layouts import device_round, draft_counts
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.chosen import opened_drafting
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.device_rounds import DeviceBackend
from mtpd_onnx.runtime.device_runs import DeviceRuns
from mtpd_onnx.runtime.measured_costs import kinds_of
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.sessions import open_session
from mtpd_onnx.runtime.shared_weights import SharedWeights


def open_device(
    folder: Path,
    manifest: Manifest,
    provider: str,
    num_threads: int | None = None,
    *,
    num_draft_tokens: int | None,
    sampling: Sampling | None = None,
    lookup: bool = True,
    captured: bool = False,
    remeasure: bool = False,
    weights: SharedWeights | None = None,
) -> DeviceBackend:
    """Rounds of `num_draft_tokens` of the heads' drafts, or (None) of a number and an origin chosen for each, by what this text
    accepts and what rounds cost here, which is measured now, unless it was before (`remeasure`: all the same). With a seed
    times decide nothing. weights: those of the folder, where they are on the device already."""
    counts = draft_counts(manifest.num_heads) if num_draft_tokens is None else (num_draft_tokens,)
    kinds = device_kinds(manifest, counts, lookup and num_draft_tokens is None)
    stream = Stream.new() if captured else None
    weights = weights or SharedWeights(folder, manifest, provider)
    sessions = {
        count: open_session(
            folder / device_round(count, sampling is not None), provider, num_threads, captured, stream, weights.values
        )
        for count in (0, *counts)
    }
    state = None if sampling is None else SamplingState(sampling, manifest)
    runs = DeviceRuns(sessions, manifest, provider, kinds, captured=captured, sampling=state, stream=stream, weights=weights)
    if captured:
        runs.capture()
    fixed = FixedDrafting(num_draft_tokens or 0)
    backend = DeviceBackend(runs, manifest, provider, fixed, most=max(counts, default=0), ahead=stream is not None)
    if num_draft_tokens is not None:
        return backend
    backend.drafting = opened_drafting(
        backend.seconds_of,
        kinds,
        folder,
        manifest,
        provider,
        num_threads=num_threads,
        sampling=sampling,
        lookup=lookup,
        remeasure=remeasure,
    )
    return backend


def device_kinds(manifest: Manifest, counts: tuple[int, ...], lookup: bool) -> list[Kind]:
    """The kinds of rounds that there are graphs for."""
    kinds = kinds_of(manifest.num_heads, manifest.capacity - 1, lookup)
    return [kind for kind in kinds if kind.source != "heads" or kind.num_drafts in counts]
