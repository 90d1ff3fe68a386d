"""`open_rows`: an exported folder opened for texts side by side.
Called by `mtpd-onnx serve` and runtime/batched_generate.py."""

import logging
from contextlib import suppress
from pathlib import Path

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.speculative.choice import Chooser
from mtpd_mlx.speculative.drafting import ChosenDrafting, Drafting, FixedDrafting
from mtpd_mlx.speculative.finite import NotFiniteError
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.round_costs import PLAIN, RoundCosts
from mtpd_mlx.speculative.round_costs import heads as heads_of
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.layouts import BATCH
from mtpd_onnx.manifest import Manifest, read_manifest
from mtpd_onnx.precision import PROVIDERS, export_options
from mtpd_onnx.runtime.alone_rows import AloneElsewhere, Lone
from mtpd_onnx.runtime.batch import OnnxBatch
from mtpd_onnx.runtime.batch_session import BatchSession, RowSession
from mtpd_onnx.runtime.choosing import ChoosingBackend
from mtpd_onnx.runtime.measured_costs import costs_key, guessed, kinds_of
from mtpd_onnx.runtime.memory import check_memory, rows_that_fit
from mtpd_onnx.runtime.open import can_capture, check_drafts
from mtpd_onnx.runtime.open_device import open_device
from mtpd_onnx.runtime.sessions import choose_provider, import_onnxruntime, open_session
from mtpd_onnx.runtime.shared_weights import SharedWeights

logger = logging.getLogger(__name__)
MINIMUM = (1, 32)


def why_not(manifest: Manifest, version: str) -> str | None:
    """Why this folder cannot be decoded side by side with onnxruntime `version`; None where it can."""
    if manifest.layout != "fused":
        return "the split layout decodes one text at a time; export with --layout fused"
    if manifest.activations == "bf16":  # states pass through numpy, which has no such type
        return f"bf16 texts are decoded one at a time; export with {export_options(manifest.precision, 'cuda')}"
    if manifest.reach is not None:
        return "texts with recurrent state are decoded one at a time"
    if not manifest.batches or (PROVIDERS[manifest.activations] == "cuda" and not manifest.whole):
        return "the folder was exported by an earlier version; export the checkpoint again"
    if not manifest.whole and tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        least = ".".join(map(str, MINIMUM))
        return f"onnxruntime {version} cannot decode texts of different lengths together, {least} and later can"
    return None


def open_rows(
    folder: Path,
    most: int,
    *,
    resting: int = 0,
    provider: str = RuntimeOptions.provider,
    num_threads: int | None = None,
    verify: bool = False,
    num_draft_tokens: int | None = None,
    lookup: bool = True,
    measure: bool = True,
    captured: bool = RuntimeOptions.cuda_graph,
) -> OnnxBatch | AloneElsewhere:
    """Up to `most` texts at a time, and so many more that rest; fewer where memory does not hold their caches.

    num_draft_tokens: of every round of a text that is alone, and the most of others; None: chosen. measure: what rounds of one
    text cost, for that choice. ValueError in one line where it cannot be.
    """
    manifest = read_manifest(folder, verify)
    if (reason := why_not(manifest, import_onnxruntime().__version__)) is not None:
        raise ValueError(f"--batch-size: {reason}")
    heads = manifest.num_heads
    if num_draft_tokens is not None and not 0 <= num_draft_tokens <= heads:
        raise ValueError(f"--num-draft-tokens: got {num_draft_tokens}, expected 0..{heads}")
    chosen = choose_provider(provider, manifest.precision, manifest.activations)
    check_memory(folder, manifest, chosen, plain=False, sampled=True)
    lines = rows_that_fit(folder, manifest, chosen, most + resting)
    if lines < most + resting:
        logger.warning("memory holds the caches of %d texts, not of %d: a smaller --capacity takes less", lines, most + resting)
    weights = SharedWeights(folder, manifest, chosen) if on_device(chosen) else None
    opened = open_session(folder / BATCH, chosen, num_threads, weights=None if weights is None else weights.values, tuned=False)
    session = BatchSession(opened, manifest, chosen, lines)
    choices = _Choices(manifest, num_draft_tokens, lookup)
    if measure and not on_device(chosen):
        choices.measure(session, manifest)
    together = max(1, min(most, lines - min(resting, lines - 1)))
    drafts = heads if num_draft_tokens is None else num_draft_tokens
    key = None
    if num_draft_tokens is None:
        kinds = [PLAIN, *(heads_of(n) for n in range(1, heads + 1))]
        key = f"{costs_key(folder, chosen, num_threads, kinds, sampled=False)}; side by side"
    rows = OnnxBatch(session, manifest, choices.of, most=drafts, max_together=together, costs_key=key)
    if not on_device(chosen):
        return rows
    if num_draft_tokens:
        check_drafts(manifest, num_draft_tokens)
    captured = captured and can_capture(manifest)

    def lone(sampled: bool) -> Lone:
        how = Sampling(temp=1.0) if sampled else None  # what requests say takes its place
        return open_device(
            folder,
            manifest,
            chosen,
            num_threads,
            num_draft_tokens=num_draft_tokens,
            sampling=how,
            lookup=lookup,
            captured=captured,
            weights=weights,
        )

    return AloneElsewhere(rows, lone)


def on_device(provider: str) -> bool:
    return provider != "cpu"


class _Choices:
    """What texts draft that are decoded alone. What rounds cost is known to all that may go by the clock."""

    def __init__(self, manifest: Manifest, num_draft_tokens: int | None, lookup: bool):
        self._fixed, self._lookup = num_draft_tokens, lookup
        kinds = kinds_of(manifest.num_heads, manifest.capacity - 1, lookup)
        self._counts = [kind.num_drafts for kind in kinds if kind.source == "heads"]
        self._table = guessed(kinds, manifest.precision, manifest.activations)
        self._costs = RoundCosts(self._table)

    def measure(self, session: BatchSession, manifest: Manifest) -> None:
        """In a line that nobody has joined."""
        if self._fixed is None:
            line = RowSession(session, 0, None)
            backend = ChoosingBackend(line, manifest, FixedDrafting(0), most=manifest.num_heads)
            with suppress(NotFiniteError):  # decoding says so, and where
                self._costs = RoundCosts(backend.seconds_of(list(self._table)), measured=True)

    def of(self, sampling: Sampling) -> Drafting:
        """Of a new text. One with a seed goes by the guess: times would make another text of it."""
        if self._fixed is not None:
            return FixedDrafting(self._fixed)
        timed = sampling.greedy or sampling.seed is None
        costs = self._costs if timed else RoundCosts(self._table)
        return ChosenDrafting(Chooser(costs, self._counts), Lookup() if self._lookup else None, timed)
