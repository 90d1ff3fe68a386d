"""`open_folder`: a Backend for an exported folder, by its layout and provider.
Called by the commands that decode, `mtpd parity` and tools."""

from pathlib import Path

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.speculative.drafting import FixedDrafting
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.errors import say_once
from mtpd_onnx.layouts import DECODER, HEADS, MAIN, draft_counts
from mtpd_onnx.manifest import MARKED, Manifest, graph_name, read_manifest
from mtpd_onnx.runtime.choosing import ChoosingBackend
from mtpd_onnx.runtime.chosen import opened_drafting
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.decoder_session import DecoderSession
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.measured_costs import kinds_of
from mtpd_onnx.runtime.memory import check_memory
from mtpd_onnx.runtime.open_device import open_device
from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.sessions import choose_provider, open_session
from mtpd_onnx.runtime.split import SplitModel

CAPTURE_RUNS = 8  # capturing runs the graph a few times, and each run may advance by a whole round


def open_folder(
    folder: Path,
    *,
    provider: str = RuntimeOptions.provider,
    plain: bool = False,
    num_threads: int | None = None,
    num_draft_tokens: int | None = None,
    verify: bool = False,
    sampling: Sampling | None = None,
    captured: bool = RuntimeOptions.cuda_graph,
    choose: bool = False,
    lookup: bool = True,
    fixed_rounds: bool = False,
    remeasure: bool = False,
) -> Backend:
    """Checks the folder and loads what decoding needs: for plain decoding the main model alone.

    num_draft_tokens: verified in every round; None: all heads, or, with `choose`, a number chosen for every round, of the
    heads' drafts or (with `lookup`) of looked up ones, where the folder can (Manifest.any_drafts). captured: on CUDA, replay
    rounds and steps as CUDA graphs. fixed_rounds: the graph of folders that cannot choose, in any folder.
    remeasure: the costs of rounds are measured even if they are known (mtpd_mlx/files/measured.py).
    """
    manifest = read_manifest(folder, verify)
    plain = plain or (manifest.num_heads == 0 and not (choose and manifest.any_drafts))
    if num_draft_tokens is not None:
        check_drafts(manifest, num_draft_tokens, fixed_rounds)
    chosen = choose_provider(provider, manifest.precision, manifest.activations)
    if sampling is not None and sampling.greedy:
        sampling = None
    check_memory(folder, manifest, chosen, plain=plain, sampled=sampling is not None)
    say_what_is_old(folder, manifest)
    if manifest.layout == "split":
        if sampling is not None:
            raise ValueError("sampling: the split layout decodes greedily; export with --layout fused")
        main, heads = (open_session(folder / n, chosen, num_threads) for n in (MAIN, HEADS))
        return StepBackend(SplitModel(main, heads, manifest), 0 if plain else num_draft_tokens)
    captured = captured and chosen == "cuda" and can_capture(manifest)
    if manifest.any_drafts and not plain and not fixed_rounds:
        fixed = manifest.num_heads if num_draft_tokens is None and not choose else num_draft_tokens
        if manifest.any_drafts == "cpu":
            return open_choosing(folder, manifest, num_threads, fixed, sampling, lookup, remeasure)
        return open_device(
            folder,
            manifest,
            chosen,
            num_threads,
            num_draft_tokens=fixed,
            sampling=sampling,
            lookup=lookup,
            captured=captured,
            remeasure=remeasure,
        )
    name = graph_name(plain, sampling is not None)
    stream = Stream.new() if captured else None
    session = open_session(folder / name, chosen, num_threads, captured, stream)
    state = None if sampling is None else SamplingState(sampling, manifest)
    make = PlainBackend if plain else FusedBackend
    return make(session, manifest, chosen, captured=captured, sampling=state, stream=stream)


def open_choosing(
    folder: Path,
    manifest: Manifest,
    num_threads: int | None,
    num_draft_tokens: int | None,
    sampling: Sampling | None,
    lookup: bool,
    remeasure: bool = False,
) -> ChoosingBackend:
    """Rounds of `num_draft_tokens` of the heads' drafts, or of a number and an origin chosen for each by what this text accepts
    and what rounds cost here, which is measured
    now, unless it was before. With a seed times decide nothing: the same texts would not come again."""
    session = open_session(folder / DECODER[sampling is not None], "cpu", num_threads)
    state = None if sampling is None else SamplingState(sampling, manifest)
    decoder = DecoderSession(session, manifest, state)
    if num_draft_tokens is not None:
        return ChoosingBackend(decoder, manifest, FixedDrafting(num_draft_tokens), most=num_draft_tokens, sampling=state)
    backend = ChoosingBackend(decoder, manifest, FixedDrafting(0), most=manifest.num_heads, sampling=state)
    kinds = kinds_of(manifest.num_heads, manifest.capacity - 1, lookup)
    backend.drafting = opened_drafting(
        backend.seconds_of,
        kinds,
        folder,
        manifest,
        "cpu",
        num_threads=num_threads,
        sampling=sampling,
        lookup=lookup,
        remeasure=remeasure,
    )
    return backend


def say_what_is_old(folder: Path, manifest: Manifest) -> None:
    """One message for a folder whose graphs do not mark logits that are not finite."""
    if manifest.format_version < MARKED:
        say_once(f"{folder}: of an earlier version: logits that are not finite go unnoticed; export the checkpoint again")


def can_capture(manifest: Manifest) -> bool:
    """Is there room for the runs that capturing takes? Says so where there is not."""
    needed = CAPTURE_RUNS * (manifest.num_heads + 1)
    if manifest.capacity < needed:
        say_once(
            f"decoding without CUDA graphs, which need a capacity of {needed} (the folder has {manifest.capacity}); "
            "export with a larger --capacity"
        )
    return manifest.capacity >= needed


def check_drafts(manifest: Manifest, wanted: int, fixed_rounds: bool = False) -> None:
    """ValueError if the folder's graphs cannot draft `wanted` tokens per round."""
    if not 1 <= wanted <= manifest.num_heads:
        raise ValueError(f"--num-draft-tokens: got {wanted}, expected 0..{manifest.num_heads}")
    any_drafts = None if fixed_rounds else manifest.any_drafts
    if any_drafts == "cuda" and wanted not in (counts := draft_counts(manifest.num_heads)):
        raise ValueError(f"--num-draft-tokens: got {wanted}, expected one of 0, {', '.join(map(str, counts))} on CUDA")
    if manifest.layout == "fused" and wanted != manifest.num_heads and not any_drafts:
        raise ValueError(
            f"--num-draft-tokens: the fused graph drafts {manifest.num_heads}; for {wanted}, export again with "
            f"--num-draft-tokens {wanted}"
        )
