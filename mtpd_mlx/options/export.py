"""Options of `mtpd export`, `mtpd-onnx export` and `mtpd export-heads`.
Called by these commands and the exporter."""

from dataclasses import dataclass
from pathlib import Path

from mtpd_onnx.layouts import LAYOUTS
from mtpd_onnx.precision import ACTIVATIONS, DRAFT_HEAD_BITS, GROUP_SIZES, INTEGER_ACTIVATIONS, PRECISIONS, choose_activations

from mtpd_mlx.checkpoints.shipped.layouts import DEFAULT_LAYOUT
from mtpd_mlx.checkpoints.shipped.layouts import LAYOUTS as HEAD_LAYOUTS
from mtpd_mlx.checkpoints.shipped.vllm import VLLM
from mtpd_mlx.options.base import CheckpointOptions
from mtpd_mlx.options.schema import POSITIVE, REQUIRED, argument, option, same, switch
from mtpd_mlx.options.train import RunConfig

DEFAULT_CAPACITY = 4096  # cache positions at most, where no number is asked for


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """From which checkpoint to which folder."""

    GROUP = ""

    checkpoint: str = same(CheckpointOptions, "checkpoint")
    out: Path = same(RunConfig, "out", default=REQUIRED)


@dataclass(frozen=True, kw_only=True)
class GraphPlaceOptions(PlaceOptions):
    checkpoint: str = argument(
        "heads checkpoint, or a base, which then drafts by prompt lookup alone: a folder or a hub id", path=True
    )


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """ValueError in one line where they exclude each other."""

    model: str | None = same(CheckpointOptions, "model")
    adapter_path: str | None = same(CheckpointOptions, "adapter_path")
    allow_base_mismatch: bool = same(CheckpointOptions, "allow_base_mismatch")
    layout: str = option(
        "fused", "fused: one graph per decoding round; split: main and heads in standard ONNX operators", tuple(LAYOUTS)
    )
    precision: str = option(
        "fp32", "of the weights: fp32 runs on CPU, fp16 and bf16 on CUDA, int4 and int8 on either", PRECISIONS
    )
    activations: str | None = option(
        None,
        "with int4 and int8: int8 for CPU, inputs of products rounded to 8 bits; fp32 for CPU, slower; fp16 or bf16 for CUDA",
        ACTIVATIONS,
        unset=f"{INTEGER_ACTIVATIONS} with int4 and int8",
    )
    group_size: int = option(
        64,
        "weights that share a scale, where int4 and int8 weights are made here; with int8 activations at most 32 in 4 bits and "
        "64 in 8, so that a row has the same bits alone and among others",
        GROUP_SIZES,
    )
    draft_head_bits: int | None = option(
        None,
        "an output head for the drafts alone, rounded to this many bits: faster drafts; verification keeps the whole one",
        DRAFT_HEAD_BITS,
    )
    draft_vocab: int | None = option(
        None,
        "let heads draft among this many tokens only: faster drafts; verification uses the whole vocabulary",
        takes=POSITIVE,
        metavar="D",
        unset="what the heads have",
    )
    draft_data: tuple[str, ...] = option(
        (),
        "with --draft-vocab: rows as for mtpd train, best of the model's own text, whose most frequent tokens these are "
        "(default: the tokenizer's first ones)",
        path=True,
    )
    num_draft_tokens: int | None = option(None, "export only the first heads", takes=POSITIVE, metavar="K", unset="all")
    capacity: int | None = option(
        None,
        "cache positions",
        takes=POSITIVE,
        metavar="N",
        unset=f"the model's context, at most {DEFAULT_CAPACITY}",
    )
    overwrite: bool = same(RunConfig, "overwrite")

    @property
    def rounds(self) -> bool:
        """Whether weights share scales in groups."""
        return self.precision in ("int4", "int8") or self.draft_head_bits is not None

    def __post_init__(self) -> None:
        choose_activations(self.precision, self.activations)
        if self.group_size != ExportOptions.group_size and not self.rounds:
            raise ValueError("--group-size: expected --precision int4 or int8, or --draft-head-bits")
        if self.draft_data and self.draft_vocab is None:
            raise ValueError("--draft-data: expected --draft-vocab, the number of tokens to choose")
        if self.layout == "split" and self.precision not in ("fp32", "fp16"):
            raise ValueError(
                f"--layout split: got --precision {self.precision}, expected fp32 or fp16 (standard operators only)"
            )
        if self.layout == "split" and self.draft_head_bits is not None:
            raise ValueError("--draft-head-bits: the split layout has standard operators only; use --layout fused")


@dataclass(frozen=True, kw_only=True)
class ExportHeadsOptions(PlaceOptions):
    model: str | None = same(CheckpointOptions, "model")
    format: str = option(
        DEFAULT_LAYOUT,
        "names of the tensors; vllm: for the plug-in mtpd_vllm, which runs any number of heads",
        (*HEAD_LAYOUTS, VLLM),
    )
    with_base: bool = switch("write one folder of base and heads (not all programs load it; with --format vllm they do)")
    link: bool = switch("with --with-base: hard-link the base's weights instead of copying them")
    copy_ends: bool = switch("repeat the base's ends per head, as DeepSeek-V3 does")
    allow_base_mismatch: bool = same(CheckpointOptions, "allow_base_mismatch")

    def __post_init__(self) -> None:
        if self.link and not self.with_base:
            raise ValueError("--link: expected --with-base (nothing of the base is copied without it)")
        if self.format == VLLM and self.copy_ends:
            raise ValueError("--copy-ends: the plug-in of --format vllm shares the base's own embedding and output head")
