"""Opening an exported folder: the right backend for its layout."""

from pathlib import Path

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.errors import say_once
from mtpd_onnx.layouts import BATCHED, HEADS, MAIN
from mtpd_onnx.manifest import FORMAT_VERSION, Manifest, graph_name, read_manifest
from mtpd_onnx.precision import export_options
from mtpd_onnx.runtime.batched import BatchedDecoder, check_batches
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.memory import check_memory
from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.sessions import choose_provider, import_onnxruntime, open_session
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
) -> Backend:
    """Checks the folder and loads what decoding needs: for plain decoding the main model alone.

    captured: on CUDA, replay rounds and steps as CUDA graphs.
    """
    manifest = read_manifest(folder, verify)
    if num_draft_tokens is not None and not plain:
        check_drafts(manifest, num_draft_tokens)
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
    name = graph_name(plain, sampling is not None)
    stream = Stream.new() if captured else None
    session = open_session(folder / name, chosen, num_threads, captured, stream)
    state = None if sampling is None else SamplingState(sampling, manifest)
    make = PlainBackend if plain else FusedBackend
    return make(session, manifest, chosen, captured=captured, sampling=state, stream=stream)


def say_what_is_old(folder: Path, manifest: Manifest) -> None:
    if manifest.format_version < FORMAT_VERSION:
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


def open_batched(
    folder: Path,
    batch_size: int,
    *,
    provider: str = RuntimeOptions.provider,
    num_threads: int | None = None,
    verify: bool = False,
) -> BatchedDecoder:
    """Several texts at once, greedily and never as CUDA graphs (a run has as many rows as it needs). ValueError where this
    onnxruntime or this folder cannot."""
    manifest = read_manifest(folder, verify)
    if batch_size < 1:
        raise ValueError(f"--batch-size: got {batch_size}, expected at least 1")
    if manifest.layout != "fused":
        raise ValueError("--batch-size: the split layout decodes one text at a time; export with --layout fused")
    if manifest.activations == "bf16":  # its tails pass through numpy, which has no such type
        other = export_options(manifest.precision, "cuda")
        raise ValueError(f"--batch-size: bf16 texts are decoded one at a time; export with {other}")
    check_batches(import_onnxruntime().__version__)
    chosen = choose_provider(provider, manifest.precision, manifest.activations)
    check_memory(folder, manifest, chosen, plain=False, sampled=False, batch_size=batch_size)
    say_what_is_old(folder, manifest)
    session = open_session(folder / BATCHED, chosen, num_threads)
    return BatchedDecoder(session, manifest, chosen, batch_size)


def check_drafts(manifest: Manifest, wanted: int) -> None:
    if not 1 <= wanted <= manifest.num_heads:
        raise ValueError(f"--num-draft-tokens: got {wanted}, expected 0..{manifest.num_heads}")
    if manifest.layout == "fused" and wanted != manifest.num_heads:
        raise ValueError(
            f"--num-draft-tokens: the fused graph drafts {manifest.num_heads}; for {wanted}, export again with "
            f"--num-draft-tokens {wanted}"
        )
