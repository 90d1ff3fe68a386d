"""`mtpd serve`: the HTTP server over MLX.
Called by mtpd_mlx/cli.py."""

from pathlib import Path
from typing import Any

from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.sampling import SamplingOptions
from mtpd_mlx.options.serve import ServeDecodingOptions
from mtpd_mlx.speculative.sampling import Sampling

OPTIONS = (RunnableOptions, ServeDecodingOptions, DecodingConfig, SamplingOptions)
EXAMPLES = ("mtpd serve heads --port 8080",)


class MLXRuntime:
    """Base and heads in memory once; a decoder for every way of sampling."""

    def __init__(self, place: RunnableOptions, options: DecodingConfig, num_draft_tokens: int | None):
        from mtpd_mlx.checkpoints.format import CONFIG_NAME
        from mtpd_mlx.commands.loading import load_model
        from mtpd_mlx.hub.pull import resolve_folder
        from mtpd_mlx.model.finite import type_name
        from mtpd_mlx.model.runtime import on_cpu
        from mtpd_mlx.text.tokenizer import Tokenizer

        self._options = options.of_server()
        with_heads = num_draft_tokens != 0 and (Path(resolve_folder(place.checkpoint)) / CONFIG_NAME).is_file()
        self.base, self.heads = load_model(place, alone=not with_heads)
        self._place, self._drafts = place, num_draft_tokens
        self.tokenizer = Tokenizer.from_folder(self.base.path)
        self.capacity, self.vocab_size = self.base.context_length, self.base.vocab_size
        heads = 0 if self.heads is None else self.heads.num_heads
        device = "CPU" if on_cpu() else "GPU"
        self.info: dict[str, Any] = {"runtime": "mlx", "device": device, "dtype": type_name(self.base.dtype), "heads": heads}

    def batch(self, most: int) -> Any:
        from mtpd_mlx.commands.loading import tuned_for, xtc_special_tokens
        from mtpd_mlx.decoding.open_rows import open_batch

        tuned, special = tuned_for(self._place, self.base), xtc_special_tokens(self.tokenizer)
        costs = None if tuned is None else tuned.kinds or None
        drafts: dict[str, Any] = {"num_draft_tokens": self._drafts, "costs": costs, "xtc_special_tokens": special}
        return open_batch(self.base, self.heads, self._options, most, self.decoder, **drafts)

    def decoder(self, sampling: Sampling) -> Any:
        from mtpd_mlx.commands.loading import open_rounds

        return open_rounds(self._place, self._options, self.base, self.heads, self._drafts, True, **self._drawing(sampling))

    def bound(self, most: int) -> Any:
        from mtpd_mlx.speculative.bound_rows import BoundRows

        return BoundRows(self.constrained, most, self.capacity)

    def constrained(self, sampling: Sampling) -> Any:
        from mtpd_mlx.commands.loading import open_bound

        return open_bound(self._place, self._options, self.base, self.heads, self._drafts, True, **self._drawing(sampling))

    def _drawing(self, sampling: Sampling) -> dict[str, Any]:
        from mtpd_mlx.commands.loading import xtc_special_tokens

        special = xtc_special_tokens(self.tokenizer) if sampling.xtc_probability else ()
        return {"sampling": sampling, "xtc_special_tokens": special}


def run(place: RunnableOptions, server: ServeDecodingOptions, decoding: DecodingConfig, sampling: SamplingOptions) -> int:
    from mtpd_mlx.serving.run import need_packages, serve

    need_packages()
    return serve(lambda: MLXRuntime(place, decoding, server.num_draft_tokens), place.checkpoint, server, sampling)
