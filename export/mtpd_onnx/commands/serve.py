"""`mtpd-onnx serve`: the HTTP server over an exported folder.
Called by mtpd_onnx/cli.py."""

import logging
from typing import Any

from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.options.sampling import GraphSampling
from mtpd_mlx.options.serve import DeviceServeOptions, ServeDecodingOptions, ServeOptions
from mtpd_mlx.speculative.batch import Batch
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_onnx.precision import PROVIDERS

OPTIONS = (RuntimeOptions, ServeDecodingOptions, DeviceServeOptions, GraphSampling)
logger = logging.getLogger(__name__)
EXAMPLES = ("mtpd-onnx serve onnx --port 8080",)

BOUND = 4  # bound texts at a time: each has caches of the folder's whole capacity
RESTING = 4  # rows beyond those that are decoded, whose texts stay cached
KEPT = 2  # decoders that stay open where texts are decoded one at a time


class OnnxRuntime:
    """An exported folder: texts side by side over one session where it can, else a decoder for every way of sampling."""

    def __init__(
        self,
        options: RuntimeOptions,
        num_draft_tokens: int | None,
        most: int = ServeOptions.max_batch,
        cuda_batches: bool = DeviceServeOptions.cuda_batches,
    ):
        from mtpd_mlx.text.tokenizer import Tokenizer
        from mtpd_onnx.manifest import read_manifest

        self._options, self._drafts, self._cuda_batches = options, num_draft_tokens, cuda_batches
        self._of_bound: Any = None  # opened when a request needs it
        self._batch = self._open_batch(most)  # what cannot be opened is told before the server starts
        manifest = read_manifest(options.folder)
        self.tokenizer = Tokenizer.from_folder(options.folder)
        self.capacity, self.vocab_size = manifest.capacity, manifest.dims["vocab_size"]
        device = PROVIDERS[manifest.activations].upper()
        names = {"runtime": "onnxruntime", "device": device, "precision": manifest.precision, "heads": manifest.num_heads}
        self.info: dict[str, Any] = names

    def _open_batch(self, most: int) -> Batch:
        from mtpd_onnx.manifest import read_manifest
        from mtpd_onnx.runtime.open_rows import open_rows, why_not
        from mtpd_onnx.runtime.sessions import import_onnxruntime

        manifest = read_manifest(self._options.folder)
        why = why_not(manifest, import_onnxruntime().__version__)
        if PROVIDERS[manifest.activations] == "cuda" and not self._cuda_batches:
            why = why or "on CUDA that is for --cuda-batches to say"
        if why is None:
            place = self._options.of_folder()
            return open_rows(self._options.folder, most, resting=RESTING, num_draft_tokens=self._drafts, **place)
        if most > 1:
            logger.info("requests are decoded one at a time: %s", why)
        return OneByOne(self.decoder, KEPT)

    def batch(self, most: int) -> Batch:
        return self._batch

    def decoder(self, sampling: Sampling) -> Any:
        from mtpd_onnx.runtime.open import open_folder

        return open_folder(
            self._options.folder,
            plain=self._drafts == 0,
            num_draft_tokens=self._drafts or None,
            choose=True,
            sampling=sampling,
            **self._options.of_folder(),
        )

    def bound(self, most: int) -> Any:
        from mtpd_mlx.speculative.bound_rows import BoundRows

        return BoundRows(self.constrained, min(most, BOUND), self.capacity)

    def constrained(self, sampling: Sampling) -> Any:
        from mtpd_onnx.runtime.bound import BoundFolder

        if self._of_bound is None:
            self._of_bound = BoundFolder(self._options.folder, **self._options.of_batches())
        return self._of_bound.decoder(sampling, self._drafts)


def run(runtime: RuntimeOptions, server: ServeDecodingOptions, device: DeviceServeOptions, sampling: GraphSampling) -> int:
    from mtpd_mlx.serving.run import need_packages, serve

    need_packages()
    drafts, most = server.num_draft_tokens, server.max_batch
    return serve(lambda: OnnxRuntime(runtime, drafts, most, device.cuda_batches), str(runtime.folder), server, sampling)
