"""`BoundFolder`: an exported folder opened for texts that are bound by a grammar.
Called by `mtpd-onnx generate` and `serve`."""

from pathlib import Path

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.speculative.choice import Chooser
from mtpd_mlx.speculative.constrained import ConstrainedBackend
from mtpd_mlx.speculative.drafting import ChosenDrafting, Drafting, FixedDrafting
from mtpd_mlx.speculative.lookup import Lookup
from mtpd_mlx.speculative.round_costs import RoundCosts
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.manifest import graph_name, read_manifest
from mtpd_onnx.runtime.logit_model import PlainLogits
from mtpd_onnx.runtime.measured_costs import guessed, kinds_of
from mtpd_onnx.runtime.memory import check_memory
from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.sessions import choose_provider, open_session


class BoundFolder:
    """The folder's main graph, in memory once; decoders of it have caches of their own."""

    def __init__(
        self,
        folder: Path,
        *,
        provider: str = RuntimeOptions.provider,
        num_threads: int | None = None,
        verify: bool = False,
    ):
        self.manifest = read_manifest(folder, verify)
        if self.manifest.layout == "split":
            raise ValueError("a bound text: the split layout has no graph for it; export with --layout fused")
        self._provider = choose_provider(provider, self.manifest.precision, self.manifest.activations)
        check_memory(folder, self.manifest, self._provider, plain=True, sampled=False)
        self._session = open_session(folder / graph_name(True, False), self._provider, num_threads)

    def decoder(
        self, sampling: Sampling | None = None, num_draft_tokens: int | None = None, lookup: bool = True
    ) -> ConstrainedBackend:
        """num_draft_tokens None: drafts are chosen for every round; 0: none but the grammar's own."""
        manifest = self.manifest
        drafting: Drafting = FixedDrafting(0)
        if num_draft_tokens is None:
            kinds = kinds_of(0, manifest.capacity - 1, lookup)
            known = manifest.any_drafts  # of older folders for CUDA nothing is known
            precision, activations = (manifest.precision, manifest.activations) if known else ("fp32", "fp32")
            repeatable = sampling is not None and not sampling.greedy and sampling.seed is not None
            chooser = Chooser(RoundCosts(guessed(kinds, precision, activations)), [])
            drafting = ChosenDrafting(chooser, Lookup() if lookup else None, not repeatable)
        plain = PlainBackend(self._session, manifest, self._provider)
        return ConstrainedBackend(PlainLogits(plain), drafting, sampling)
