"""Options of commands that measure on prompts: bench, eval, parity, probe, tune, verify.
Called by these commands, on both runtimes."""

from dataclasses import dataclass, fields
from pathlib import Path

from mtpd_mlx.files.places import check_place
from mtpd_mlx.options.base import CheckpointOptions
from mtpd_mlx.options.runtime import FolderOptions, RuntimeOptions
from mtpd_mlx.options.schema import POSITIVE, REQUIRED, Range, flag, option, same, switch
from mtpd_mlx.options.text import (
    PROMPTS_HELP,
    GenerateOptions,
    GraphDraftOptions,
    LookupOptions,
    TextOptions,
    TunedGenerateOptions,
)
from mtpd_mlx.speculative.bench import LONGEST_REST
from mtpd_mlx.speculative.sampling import Sampling


@dataclass(frozen=True)
class JsonOptions:
    json: bool = switch("print one JSON object")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(JsonOptions):
    report: bool = switch("print one block of Markdown to send: the same, and how fast --heads decode here")
    heads: str | None = option(None, "with --report: heads to time, a folder or a hub id", metavar="CHECKPOINT", path=True)
    model: str | None = same(CheckpointOptions, "model")

    def __post_init__(self) -> None:
        if self.json and self.report:
            raise ValueError("--report: not with --json; each is a form of its own")
        if self.heads is not None and not self.report:
            raise ValueError("--heads: only with --report, which times them")
        if self.model is not None and self.heads is None:
            raise ValueError("--model: only with --heads, whose base it is")


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    prompts: Path = option(REQUIRED, PROMPTS_HELP, metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class FilesOptions:
    prompts: tuple[Path, ...] = option(REQUIRED, f"{PROMPTS_HELP}; or several files", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    GROUP = "measurement"

    max_tokens: int = same(TextOptions, "max_tokens", default=128)  # many texts, that nobody reads
    limit: int | None = option(None, "use only the first prompts of each file", takes=POSITIVE, metavar="N", unset="all")
    ignore_chat_template: bool = same(GenerateOptions, "ignore_chat_template")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(JsonOptions, MeasureOptions, FilesOptions):
    valid: Path | None = option(None, "text whose loss under the base is reported (.jsonl or .txt)", metavar="FILE")

    def __post_init__(self) -> None:
        if self.valid is not None and not self.valid.expanduser().is_file():
            raise ValueError(f"--valid {self.valid}: no such file")


@dataclass(frozen=True, kw_only=True)
class TimedOptions(MeasureOptions):
    """Of commands that time: several texts of each prompt, of two tokens at least (the first one is prefill's)."""

    max_tokens: int = same(MeasureOptions, "max_tokens", takes=Range(2))
    limit: int | None = same(MeasureOptions, "limit", default=8)
    repeats: int = option(3, "runs of each prompt", takes=POSITIVE, metavar="N")
    cool_down: float = option(0.0, "seconds of rest after every text", takes=Range(0, LONGEST_REST), metavar="S")


@dataclass(frozen=True, kw_only=True)
class BenchOptions(JsonOptions, TimedOptions, FilesOptions, LookupOptions):
    num_draft_tokens: int | None = same(TunedGenerateOptions, "num_draft_tokens")
    draft_model: str | None = option(
        None, "also time mlx_lm's own speculative decoding with this model", metavar="MODEL", path=True
    )
    svg: Path | None = option(None, "also draw the figures", metavar="FILE")

    def __post_init__(self) -> None:
        if self.svg is not None:
            check_place("--svg", self.svg)


@dataclass(frozen=True, kw_only=True)
class GraphBenchOptions(JsonOptions, TimedOptions, FileOptions, GraphDraftOptions):
    genai: Path | None = option(None, "the same model as an onnxruntime-genai folder", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class TuneOptions(JsonOptions, TimedOptions, FileOptions):
    """Few texts: every number of drafts is timed on each of them."""

    limit: int | None = same(TimedOptions, "limit", default=4)
    repeats: int = same(TimedOptions, "repeats", default=2)
    dry_run: bool = switch("measure, but store nothing")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(JsonOptions, MeasureOptions, FileOptions):
    tolerance: float | None = option(
        None,
        "top-2 margin below which a difference is a near-tie",
        takes=Range(0, infinite=True),
        metavar="X",
        unset="by the dtype that is computed in",
    )
    greedy_only: bool = switch("leave the sampling test out")


@dataclass(frozen=True, kw_only=True)
class DraftedVerifyOptions(LookupOptions, VerifyOptions):
    num_draft_tokens: int | None = same(TunedGenerateOptions, "num_draft_tokens")


@dataclass(frozen=True, kw_only=True)
class GraphVerifyOptions(GraphDraftOptions, VerifyOptions):
    """Of `mtpd-onnx verify`."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions(JsonOptions, MeasureOptions, FileOptions):
    folder: str = same(FolderOptions, "folder", path=True)
    provider: str = same(RuntimeOptions, "provider", default="cpu")  # MLX's float32 is compared with the same on a CPU
    step_by_step: bool = switch("on MLX pass by pass, not as mtpd generate decodes")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(JsonOptions):
    GROUP = "measurement"

    contexts: tuple[int, ...] = option((128, 512, 2048), "prompt lengths", metavar="N")
    prompts: Path | None = same(FileOptions, "prompts", default=None, unset="none: acceptance as recorded in training")
    ignore_chat_template: bool = same(GenerateOptions, "ignore_chat_template")


def check_sampled(verify: VerifyOptions, sampling: Sampling) -> None:
    """ValueError where the sampling test of verify would have nothing to draw, or there is none."""
    for field in fields(sampling):
        value = getattr(sampling, field.name)
        if verify.greedy_only and value != field.default and (field.name, value) != ("temp", 0):
            raise ValueError(f"{flag(field.name)}: not with --greedy-only, which draws nothing")
    if sampling.greedy and not verify.greedy_only:
        raise ValueError("--temp 0 leaves nothing to draw; give a temperature, or --greedy-only")
