"""mtpd-onnx serve."""

from typing import Any

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import GraphSampling
from mtpd_mlx.options.serve import ServeDecodingOptions
from mtpd_mlx.speculative.sampling import Sampling

OPTIONS = (RuntimeOptions, ServeDecodingOptions, GraphSampling)
EXAMPLES = ("mtpd-onnx serve onnx --port 8080",)


BOUND = 4  # bound texts at a time: each has caches of the folder's whole capacity


class OnnxRuntime:
    """An exported folder; a decoder for every way of sampling."""

    def __init__(self, options: RuntimeOptions, num_draft_tokens: int | None):
        from mtpd_mlx.text.tokenizer import Tokenizer
        from mtpd_onnx.manifest import read_manifest

        self._options, self._drafts = options, num_draft_tokens
        self._first: Any = self._open(Sampling())  # what cannot be opened is told before the server starts
        self._of_bound: Any = None  # opened when a request needs it
        manifest = read_manifest(options.folder)
        self.tokenizer = Tokenizer.from_folder(options.folder)
        self.capacity, self.vocab_size = manifest.capacity, manifest.dims["vocab_size"]
        names = {
            "runtime": "onnxruntime",
            "device": self._first.provider.upper() if hasattr(self._first, "provider") else "CPU",
        }
        self.info: dict[str, Any] = names | {"precision": manifest.precision, "heads": manifest.num_heads}

    def _open(self, sampling: Sampling) -> Any:
        from mtpd_onnx.runtime.open import open_folder

        plain = self._drafts == 0
        return open_folder(
            self._options.folder,
            plain=plain,
            num_draft_tokens=self._drafts or None,
            choose=True,
            sampling=sampling,
            **self._options.of_folder(),
        )

    def batch(self, most: int) -> Any:
        from mtpd_mlx.speculative.one_by_one import OneByOne

        return OneByOne(self.decoder, 2)

    def decoder(self, sampling: Sampling) -> Any:
        if sampling.greedy and self._first is not None:
            first, self._first = self._first, None
            return first
        return self._open(sampling)

    def bound(self, most: int) -> Any:
        from mtpd_mlx.speculative.bound_rows import BoundRows

        return BoundRows(self.constrained, min(most, BOUND), self.capacity)

    def constrained(self, sampling: Sampling) -> Any:
        from mtpd_onnx.runtime.bound import BoundFolder

        if self._of_bound is None:
            self._of_bound = BoundFolder(self._options.folder, **self._options.of_batches())
        return self._of_bound.decoder(sampling, self._drafts)


def run(runtime: RuntimeOptions, server: ServeDecodingOptions, sampling: GraphSampling) -> int:
    from mtpd_mlx.serving.run import need_packages, serve

    need_packages()
    return serve(lambda: OnnxRuntime(runtime, server.num_draft_tokens), str(runtime.folder), server, sampling)
