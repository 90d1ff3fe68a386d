"""From a heads checkpoint and its base to one self-contained folder for mtpd-onnx."""

import argparse
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mtpd_mlx.checkpoints.adapter_format import fingerprint_model
from mtpd_mlx.checkpoints.format import WEIGHTS_NAME, CheckpointConfig, read_config, read_draft_tokens
from mtpd_mlx.families.config import weights_say_tied
from mtpd_mlx.hub.pull import resolve_folder
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_onnx.dims import Dims, read_dims
from mtpd_onnx.export.save import WeightsFile, put_in_place, save_graph
from mtpd_onnx.graphs.batched import build_batched_round
from mtpd_onnx.graphs.builder import Spec, build_plain
from mtpd_onnx.graphs.round import build_round
from mtpd_onnx.graphs.split import build_heads, build_main
from mtpd_onnx.manifest import LAYOUTS, Manifest, describe_files
from mtpd_onnx.manifest import NAME as MANIFEST_NAME
from mtpd_onnx.precision import (
    ACTIVATIONS,
    DEFAULT_GROUP_SIZE,
    DRAFT_HEAD_BITS,
    GROUP_SIZES,
    PRECISIONS,
    WEIGHT_BITS,
    choose_activations,
    describe,
)
from mtpd_onnx.weights.adapted import AdaptedTensors
from mtpd_onnx.weights.parameters import Parameters
from mtpd_onnx.weights.quantised_layouts import Policy, plan
from mtpd_onnx.weights.tensors import Tensors

logger = logging.getLogger(__name__)
DEFAULT_CAPACITY = 4096
DTYPES = {  # of activations, caches and what is not in integers
    "fp32": ir.DataType.FLOAT,
    "int8": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
BUILDERS: dict[str, tuple[Callable[[Spec], ir.Model], ...]] = {
    "fused": (
        build_round,
        build_plain,
        partial(build_round, sampled=True),
        partial(build_plain, sampled=True),
        build_batched_round,
    ),
    "split": (build_main, build_heads),
}
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="heads checkpoint: a folder or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", help="the base, where it is not where the checkpoint says")
    parser.add_argument("--adapter-path", type=Path, metavar="DIR", help="adapter of mlx-lm (LoRA) to apply to the base")
    parser.add_argument("--allow-base-mismatch", action="store_true", help="export the heads with another base than their own")
    parser.add_argument(
        "--layout",
        choices=list(LAYOUTS),
        default="fused",
        help="fused: one graph per decoding round; split: main and heads in standard ONNX operators (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the weights: fp32 runs on CPU, fp16 and bf16 on CUDA, int4 and int8 on either (default: %(default)s)",
    )
    parser.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        help="with int4 and int8: fp32 for CPU (the default), fp16 or bf16 for CUDA, int8 for CPU: faster, inputs of products "
        "rounded to 8 bits",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        default=DEFAULT_GROUP_SIZE,
        help="weights that share a scale, where int4 and int8 weights are made here (default: %(default)s)",
    )
    parser.add_argument(
        "--draft-head-bits",
        type=int,
        choices=DRAFT_HEAD_BITS,
        help="an output head for the drafts alone, rounded to so many bits: quicker drafts, verified as ever",
    )
    parser.add_argument("--num-draft-tokens", type=int, help="export only the first heads (default: all)")
    parser.add_argument(
        "--capacity", type=int, help=f"cache positions (default: the model's context, at most {DEFAULT_CAPACITY})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run_export(args: argparse.Namespace) -> int:
    manifest = export_checkpoint(
        resolve_folder(args.checkpoint),
        args.out,
        model=args.model,
        adapter=args.adapter_path,
        allow_mismatch=args.allow_base_mismatch,
        layout=args.layout,
        precision=args.precision,
        activations=args.activations,
        group_size=args.group_size,
        draft_head_bits=args.draft_head_bits,
        num_draft_tokens=args.num_draft_tokens,
        capacity=args.capacity,
        overwrite=args.overwrite,
    )
    size = sum(entry["bytes"] for entry in manifest.files.values())
    print(
        f"{args.out}: {manifest.layout} {describe(manifest.precision, manifest.activations)}, "
        f"{manifest.num_heads} draft tokens, {manifest.capacity} positions, {size / 1e6:.1f} MB"
    )
    for line in weights_lines(manifest.record["weights"]):
        print(line)
    return 0


def weights_lines(weights: dict[str, Any]) -> Iterator[str]:
    """How the matrices of base and heads were stored, and the largest absolute difference of a weight from its checkpoint."""
    for name, account in weights.items():
        if not isinstance(account, dict) or not any(account[kind] for kind in ("kept", "rounded", "floating")):
            continue
        kinds = {
            "kept": "with MLX's integers",
            "rounded": f"rounded here in groups of {weights['group_size']}",
            "floating": "in floating point",
        }
        counts = ", ".join(f"{account[kind]} {words}" for kind, words in kinds.items() if account[kind])
        where = f" (absolute, in {account['largest_error_in']})" if account["largest_error"] else ""
        yield f"{name.replace('_', ' ')} matrices: {counts}; largest weight error {account['largest_error']:.3g}{where}"


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    model: str | None = None,
    adapter: Path | None = None,
    allow_mismatch: bool = False,
    layout: str = "fused",
    precision: str = "fp32",
    activations: str | None = None,
    group_size: int = DEFAULT_GROUP_SIZE,
    draft_head_bits: int | None = None,
    num_draft_tokens: int | None = None,
    capacity: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Writes `out` under a temporary name, checks it, then renames. ValueError in one line on anything that does not fit."""
    activations = choose_activations(precision, activations)
    check_layout(layout, precision, draft_head_bits)
    config = read_config(checkpoint)
    base_folder = locate_base(checkpoint, config, model)
    dims = read_dims(base_folder, tied=weights_say_tied(base_folder))
    num_heads = config.num_heads if num_draft_tokens is None else num_draft_tokens
    if not 1 <= num_heads <= config.num_heads:
        raise ValueError(f"--num-draft-tokens: got {num_heads}, expected 1..{config.num_heads}")
    capacity = min(dims.context_length, DEFAULT_CAPACITY) if capacity is None else capacity
    if not num_heads + 2 <= capacity <= dims.context_length:
        raise ValueError(f"--capacity: got {capacity}, expected {num_heads + 2}..{dims.context_length}")
    if adapter is None and (model is None or not allow_mismatch):
        adapter = config.base.locate_adapter(checkpoint)
    check_fit(checkpoint, config, base_folder, dims, None if allow_mismatch else fingerprint_model(base_folder, adapter))
    check_target(out, overwrite)
    base = Tensors.of_base(base_folder, dims.quantization)
    if adapter is not None:
        base = AdaptedTensors(base, adapter)
    heads = Tensors([checkpoint / WEIGHTS_NAME], config.quantization)
    ids = read_draft_tokens(checkpoint, config)
    drafts = None if ids is None else tuple(ids.tolist())
    if draft_head_bits is not None and dims.hidden_size % group_size:
        raise ValueError(f"--draft-head-bits: hidden size {dims.hidden_size} is not a multiple of --group-size {group_size}")
    spec = Spec(
        dims, num_heads, config.hidden_source, DTYPES[activations], capacity, drafts, config.post_norms, draft_head_bits
    )
    policy = Policy(WEIGHT_BITS.get(precision), group_size, activations == "int8", draft_head_bits)
    spec = replace(spec, layouts=plan(spec, policy, base, heads))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        parameters = Parameters(spec, policy, base, heads)
        graphs = write_graphs(temporary, spec, layout, parameters)
        copy_tokenizer(base_folder, temporary)
        kinds = (layout, precision, activations)
        manifest = describe_folder(temporary, spec, kinds, config, graphs, parameters.report())
        put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def check_layout(layout: str, precision: str, draft_head_bits: int | None) -> None:
    if layout == "split" and precision not in ("fp32", "fp16"):
        raise ValueError(f"--layout split: got --precision {precision}, expected fp32 or fp16 (standard operators only)")
    if layout == "split" and draft_head_bits is not None:
        raise ValueError("--draft-head-bits: the split layout has standard operators only; use --layout fused")


def check_target(out: Path, overwrite: bool) -> None:
    """A new or empty folder, or with `overwrite` an earlier export: never somebody's checkpoint or model."""
    if out.is_symlink() or out.name in ("", ".."):
        raise ValueError(
            f"--out {out}: got {'a symbolic link' if out.is_symlink() else 'no name'}, expected a folder's own name"
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"--out {out}: exists already; use --overwrite or another folder")
    if not (out / MANIFEST_NAME).is_file():
        raise ValueError(f"--out {out}: exists and is not an exported folder (no {MANIFEST_NAME}); use another folder")


def locate_base(checkpoint: Path, config: CheckpointConfig, model: str | None) -> Path:
    """The base's folder; a hub id is looked up among the downloaded snapshots and fetched when it is not there."""
    name = model or config.base.locate(checkpoint)
    try:
        return resolve_folder(name, config.base.revision if model is None else None)
    except ValueError as error:
        raise ValueError(f"base {error}") from None


def check_fit(checkpoint: Path, config: CheckpointConfig, base_folder: Path, dims: Dims, fingerprint: str | None) -> None:
    """`fingerprint`: of the base; None: not compared."""
    for name in ("hidden_size", "vocab_size"):
        expected, got = getattr(config.base, name), getattr(dims, name)
        if got != expected:
            raise ValueError(f"{checkpoint}: heads are for a base of {name} {expected}, {base_folder} has {got}")
    if fingerprint not in (None, config.base.fingerprint):
        raise ValueError(
            f"{checkpoint}: these heads belong to another base than {base_folder} (fingerprints differ); adapt them with "
            "mtpd refit, or pass --allow-base-mismatch"
        )
    tokens = Tokenizer.from_folder(base_folder).vocab_size
    if tokens > dims.vocab_size:
        raise ValueError(f"{base_folder}: the tokenizer has {tokens} tokens, the model's vocabulary only {dims.vocab_size}")


def write_graphs(folder: Path, spec: Spec, layout: str, parameters: Parameters) -> tuple[dict[str, Any], dict[str, int]]:
    """Writes the graphs of `layout` and the weights they share; returns the manifest's io and weights_read."""
    weights = WeightsFile(folder)
    builders = BUILDERS[layout]
    io: dict[str, Any] = {}
    weights_read: dict[str, int] = {}
    for name, build in zip(LAYOUTS[layout], builders, strict=True):
        graph = build(spec)
        logger.info("writing %s", name)
        weights_read[name] = save_graph(graph, folder / name, weights, parameters.value)
        io[name] = {
            "inputs": [str(v.name) for v in graph.graph.inputs],
            "outputs": [str(v.name) for v in graph.graph.outputs],
        }
    return io, weights_read


def copy_tokenizer(base_folder: Path, folder: Path) -> None:
    for name in COPIED:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)


def describe_folder(
    folder: Path,
    spec: Spec,
    kinds: tuple[str, str, str],
    config: CheckpointConfig,
    graphs: tuple[dict[str, Any], dict[str, int]],
    weights: dict[str, Any],
) -> Manifest:
    """Writes the manifest of what lies in `folder`. kinds: layout, precision, activations; graphs: io, weights_read."""
    names = ("num_layers", "num_kv_heads", "head_dim", "hidden_size", "vocab_size")
    manifest = Manifest(
        *kinds,
        spec.num_heads,
        spec.hidden_source,
        spec.capacity,
        {name: getattr(spec.dims, name) for name in names},
        vars(config.base),
        describe_files(folder),
        *graphs,
        versions(),
        {"eval": config.record.get("eval", {}), "weights": weights},
        config.draft_vocab,
    )
    manifest.write(folder)
    return manifest


def versions() -> dict[str, Any]:
    from importlib.metadata import version

    from mtpd_mlx import __version__

    return {"mtpd-mlx": __version__} | {name: version(name) for name in ("onnx", "onnx-ir", "onnxscript")}
