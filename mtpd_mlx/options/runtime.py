"""Options of commands on an exported folder: the folder, provider and threads.
Called by the commands of `mtpd-onnx`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpd_mlx.options.schema import argument, option, switch

PROVIDERS = ("auto", "cuda", "cpu")


@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    folder: Path = argument("folder written by `mtpd export`")
    verify: bool = switch("check the sha256 of every file, weights included")


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(FolderOptions):
    GROUP = "runtime"

    provider: str = option("auto", "of onnxruntime; auto: the one that runs the folder", PROVIDERS)
    num_threads: int | None = option(None, "CPU threads", metavar="N", unset="onnxruntime's choice")
    cuda_graph: bool = option(True, "replay rounds as CUDA graphs")

    def __post_init__(self) -> None:
        if self.provider == "cpu" and not self.cuda_graph:
            raise ValueError("--no-cuda-graph: not with --provider cpu, which has none")

    def of_batches(self) -> dict[str, Any]:
        """Keywords of open_rows: texts side by side are never replayed."""
        return {"provider": self.provider, "num_threads": self.num_threads, "verify": self.verify}

    def of_folder(self) -> dict[str, Any]:
        """Keywords of open_folder."""
        return self.of_batches() | {"captured": self.cuda_graph}
