"""Opening an exported folder: the right backend for its layout."""

from pathlib import Path

from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_onnx.backends import FusedBackend, PlainBackend, SplitModel
from mtpd_onnx.manifest import Manifest, read_manifest
from mtpd_onnx.sessions import choose_provider, open_session


def open_folder(
    folder: Path,
    *,
    provider: str = "auto",
    plain: bool = False,
    num_threads: int | None = None,
    num_draft_tokens: int | None = None,
    verify: bool = False,
) -> Backend:
    """Checks the folder and loads what decoding needs: for plain decoding the main model alone."""
    manifest = read_manifest(folder, verify)
    if num_draft_tokens is not None and not plain:
        check_drafts(manifest, num_draft_tokens)
    chosen = choose_provider(provider, manifest.precision, manifest.activations)
    if manifest.layout == "split":
        main, heads = (open_session(folder / n, chosen, num_threads) for n in ("main.onnx", "mtp_heads.onnx"))
        return StepBackend(SplitModel(main, heads, manifest), 0 if plain else num_draft_tokens)
    if plain:
        return PlainBackend(open_session(folder / "plain.onnx", chosen, num_threads), manifest, chosen)
    return FusedBackend(open_session(folder / "round.onnx", chosen, num_threads), manifest, chosen)


def check_drafts(manifest: Manifest, wanted: int) -> None:
    if not 1 <= wanted <= manifest.num_heads:
        raise ValueError(f"--num-draft-tokens: got {wanted}, expected 1..{manifest.num_heads}")
    if manifest.layout == "fused" and wanted != manifest.num_heads:
        raise ValueError(
            f"--num-draft-tokens: the fused graph drafts {manifest.num_heads}; for {wanted}, export again with "
            f"--num-draft-tokens {wanted}"
        )
