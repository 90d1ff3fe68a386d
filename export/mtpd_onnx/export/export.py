"""`export_checkpoint`: one self-contained folder from a heads checkpoint and its base.
Called by commands/export.py and the demo."""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mtpd_mlx.checkpoints.adapter_format import fingerprint_model
from mtpd_mlx.checkpoints.format import WEIGHTS_NAME, BaseRef, CheckpointConfig, read_config, read_draft_tokens
from mtpd_mlx.checkpoints.shipped.left_out import of_base
from mtpd_mlx.families.shapes import contradiction
from mtpd_mlx.families.stored import StoredBase, read_base
from mtpd_mlx.families.table import check_float16
from mtpd_mlx.files.atomic import replacing_folder
from mtpd_mlx.files.lock import is_empty, locked
from mtpd_mlx.files.safetensors import RawTensors
from mtpd_mlx.hub.pull import local_folder, resolve_folder
from mtpd_mlx.options.export import DEFAULT_CAPACITY, ExportOptions
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_mlx.text.tokenizer_files import MODEL as CONFIG_FILE
from mtpd_mlx.text.tokenizer_files import copy_tokenizer
from mtpd_onnx.dims import Dims, check_expressible, has_state, objection_on_cuda
from mtpd_onnx.export.base_alone import check_base_alone, config_of_base, is_base
from mtpd_onnx.export.draft_vocabulary import choose_draft_tokens
from mtpd_onnx.export.save import WeightsFile, save_graph
from mtpd_onnx.graphs.batch import build_batch
from mtpd_onnx.graphs.builder import Spec, build_plain, cache_sizes
from mtpd_onnx.graphs.decoder import build_decoder
from mtpd_onnx.graphs.delta import REACH
from mtpd_onnx.graphs.device_rounds import device_builders
from mtpd_onnx.graphs.round import build_round
from mtpd_onnx.graphs.split import build_heads, build_main
from mtpd_onnx.layouts import BATCH, DECODER, FUSED, HEADS, MAIN, device_round, draft_counts, graphs_of
from mtpd_onnx.manifest import NAME as MANIFEST_NAME
from mtpd_onnx.manifest import Manifest, describe_files
from mtpd_onnx.precision import PROVIDERS, WEIGHT_BITS, choose_activations
from mtpd_onnx.weights.adapted import AdaptedTensors
from mtpd_onnx.weights.parameters import Parameters
from mtpd_onnx.weights.quantised_layouts import Policy, plan
from mtpd_onnx.weights.tensors import Tensors

logger = logging.getLogger(__name__)
DTYPES = {  # of activations, caches and what is not in integers
    "fp32": ir.DataType.FLOAT,
    "int8": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
Build = Callable[[Spec], ir.Model]
DECODERS: dict[str, Build] = {DECODER[sampled]: partial(build_decoder, sampled=sampled) for sampled in DECODER}
BUILDERS: dict[str, dict[str, Build]] = {  # by layout and file name
    "fused": {
        FUSED[sampled, plain]: partial(build_plain if plain else build_round, sampled=sampled) for sampled, plain in FUSED
    }
    | {BATCH: build_batch}
    | DECODERS,
    "split": {MAIN: build_main, HEADS: build_heads},
}
DEFAULT = ExportOptions()


def export_checkpoint(checkpoint: Path, out: Path, options: ExportOptions = DEFAULT) -> Manifest:
    """Replaces `out` whole, once it is checked. A base in place of heads becomes a folder without any. ValueError in one line
    on anything that does not fit."""
    activations = choose_activations(options.precision, options.activations)
    if alone := is_base(checkpoint):
        check_base_alone(checkpoint, options)
    config = None if alone else read_config(checkpoint)
    base_folder = checkpoint if config is None else locate_base(checkpoint, config, options.model)
    stored = read_exportable(base_folder)
    stored.say_remarks()
    dims = stored.dims
    if activations == "fp16":
        asked = "--precision" if options.precision == "fp16" else "--activations"
        check_float16(dims.model_type, f"{asked} fp16", f"{asked} bf16")
    if PROVIDERS[activations] == "cuda" and (why := objection_on_cuda(dims)) is not None:
        raise ValueError(f"ONNX export: {base_folder}: {why}; export with --precision fp32, int4 or int8")
    num_heads, capacity = sizes(config, dims, options)
    adapter = None if options.adapter_path is None else Path(options.adapter_path).expanduser()
    allow_mismatch = options.allow_base_mismatch
    if config is not None and adapter is None and (options.model is None or not allow_mismatch):
        adapter = config.base.locate_adapter(checkpoint)
    fingerprint = fingerprint_model(base_folder, adapter)
    if config is None:
        config = config_of_base(base_folder, dims, fingerprint)
    else:
        check_fit(checkpoint, config, base_folder, dims, None if allow_mismatch else fingerprint)
    check_target(out, options.overwrite)
    base = Tensors(stored.tensors, dims.quantization)
    if adapter is not None:
        base = AdaptedTensors(base, adapter)
    heads = base if alone else Tensors(RawTensors([checkpoint / WEIGHTS_NAME]), config.quantization)
    ids = None if alone else draft_tokens(checkpoint, config, base_folder, options)
    drafts = None if ids is None else tuple(ids.tolist())
    group_size, draft_head_bits = options.group_size, options.draft_head_bits
    if draft_head_bits is not None and dims.hidden_size % group_size:
        raise ValueError(f"--draft-head-bits: hidden size {dims.hidden_size} is not a multiple of --group-size {group_size}")
    spec = Spec(
        dims=dims,
        num_heads=num_heads,
        hidden_source=config.hidden_source,
        dtype=DTYPES[activations],
        capacity=capacity,
        draft_tokens=drafts,
        post_norms=config.post_norms,
        draft_bits=draft_head_bits,
    )
    policy = Policy(
        bits=WEIGHT_BITS.get(options.precision),
        group_size=group_size,
        int8_products=activations == "int8",
        draft_bits=draft_head_bits,
    )
    spec = replace(spec, layouts=plan(spec, policy, base, heads))
    with locked(out, beside=True), replacing_folder(out) as folder:
        check_target(out, options.overwrite)  # again: another export may have ended in between
        parameters = Parameters(spec, policy, base, heads, of_base(stored.tensors.table, dims))
        names = graphs_of(options.layout, num_heads, PROVIDERS[activations], batches=not has_state(dims))
        builders = BUILDERS[options.layout] | device_builders(draft_counts(num_heads), device_round)
        graphs = write_graphs(folder, spec, {name: builders[name] for name in names}, parameters)
        copy_tokenizer(base_folder, folder)
        shutil.copyfile(base_folder / CONFIG_FILE, folder / CONFIG_FILE)
        kinds = {"layout": options.layout, "precision": options.precision, "activations": activations}
        base_ref = exported_base(config.base, dims, fingerprint, options, adapter)
        config = replace(config, base=base_ref, draft_vocab=None if drafts is None else len(drafts))
        return describe_folder(folder, spec, kinds=kinds, config=config, graphs=graphs, weights=parameters.report())


def draft_tokens(checkpoint: Path, config: CheckpointConfig, base_folder: Path, options: ExportOptions) -> np.ndarray | None:
    """Ids of the draft vocabulary: the heads' own, or the one that is asked for. None: all tokens."""
    held, size = read_draft_tokens(checkpoint, config), options.draft_vocab
    if size is None:
        return held
    if held is not None:
        raise ValueError(f"--draft-vocab: got {size}, the heads have a draft vocabulary of {held.size} already")
    vocab_size = config.base.vocab_size
    return choose_draft_tokens(size, options.draft_data, Tokenizer.from_folder(base_folder, vocab_size), vocab_size)


def sizes(config: CheckpointConfig | None, dims: Dims, options: ExportOptions) -> tuple[int, int]:
    """(heads, cache positions) to export; ValueError in one line where they do not fit checkpoint or base."""
    available = 0 if config is None else config.num_heads
    num_heads = available if options.num_draft_tokens is None else options.num_draft_tokens
    if config is not None and not 1 <= num_heads <= available:
        raise ValueError(f"--num-draft-tokens: got {num_heads}, expected 1..{available}")
    capacity = min(dims.context_length, DEFAULT_CAPACITY) if options.capacity is None else options.capacity
    if not num_heads + 2 <= capacity <= dims.context_length:
        raise ValueError(f"--capacity: got {capacity}, expected {num_heads + 2}..{dims.context_length}")
    return num_heads, capacity


def read_exportable(folder: Path) -> StoredBase:
    """The base in `folder`; ValueError in one line where it is none that the graphs can express."""
    try:
        stored = read_base(folder)
        check_expressible(stored.dims)
        if (wrong := contradiction(stored.tensors.table, stored.dims)) is not None:
            raise ValueError(wrong)
    except ValueError as error:
        raise ValueError(f"ONNX export: {folder}: {error}") from error
    return stored


def exported_base(own: BaseRef, dims: Dims, fingerprint: str, options: ExportOptions, adapter: Path | None) -> BaseRef:
    """What the manifest says of the base: the heads' `own` where it is that, else the one that was exported in its place."""
    if fingerprint == own.fingerprint:
        return own
    merged = None if adapter is None else str(adapter.resolve())
    if (name := options.model) is None:  # changed since, or with another adapter
        return replace(own, fingerprint=fingerprint, adapter=merged)
    named = name if local_folder(name) is None else str(Path(name).expanduser().resolve())
    return BaseRef(named, fingerprint, dims.model_type, dims.hidden_size, dims.vocab_size, adapter=merged)


def check_target(out: Path, overwrite: bool) -> None:
    """A new or empty folder, or with `overwrite` an earlier export: never somebody's checkpoint or model."""
    if out.is_symlink() or out.name in ("", ".."):
        raise ValueError(
            f"--out {out}: got {'a symbolic link' if out.is_symlink() else 'no name'}, expected a folder's own name"
        )
    if not out.exists() or (out.is_dir() and is_empty(out)):
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
    if fingerprint is not None and not config.base.fits(fingerprint):
        raise ValueError(
            f"{checkpoint}: these heads belong to another base than {base_folder} (fingerprints differ); adapt them with "
            "mtpd refit, or pass --allow-base-mismatch"
        )
    Tokenizer.from_folder(base_folder, dims.vocab_size)  # refuses what cannot be decoded with


def write_graphs(
    folder: Path, spec: Spec, builders: Mapping[str, Build], parameters: Parameters
) -> tuple[dict[str, Any], dict[str, int], dict[str, list[Any]]]:
    """Writes the graphs, by file name, and the weights they share; returns the manifest's io, weights_read and tensors."""
    weights = WeightsFile(folder)
    io: dict[str, Any] = {}
    weights_read: dict[str, int] = {}
    for name, build in builders.items():
        graph = build(spec)
        logger.info("writing %s", name)
        weights_read[name] = save_graph(graph, folder / name, weights, parameters.value)
        io[name] = {
            "inputs": [str(v.name) for v in graph.graph.inputs],
            "outputs": [str(v.name) for v in graph.graph.outputs],
        }
    return io, weights_read, weights.table()


def describe_folder(
    folder: Path,
    spec: Spec,
    *,
    kinds: dict[str, str],
    config: CheckpointConfig,
    graphs: tuple[dict[str, Any], dict[str, int], dict[str, list[Any]]],
    weights: dict[str, Any],
) -> Manifest:
    """Writes the manifest of what lies in `folder`. kinds: layout, precision, activations; graphs: what write_graphs gave."""
    names = ("num_layers", "num_kv_heads", "head_dim", "hidden_size", "vocab_size")
    layers = [*spec.dims.layers, *spec.num_heads * [spec.dims.head_layer]]
    sizes_of_caches = [[own.num_kv_heads, own.head_dim] for own in map(spec.dims.geometry, layers)]
    manifest = Manifest(
        layout=kinds["layout"],
        precision=kinds["precision"],
        activations=kinds["activations"],
        num_heads=spec.num_heads,
        hidden_source=spec.hidden_source,
        capacity=spec.capacity,
        dims={name: getattr(spec.dims, name) for name in names},
        base=vars(config.base),
        files=describe_files(folder),
        io=graphs[0],
        weights_read=graphs[1],
        versions=versions(),
        record={"eval": config.record.get("eval", {}), "weights": weights},
        draft_vocab=config.draft_vocab,
        cache_sizes=None if all(layer.geometry is None for layer in spec.dims.layers) else sizes_of_caches,
        states=states(spec, kinds["layout"]),
        reach=REACH if has_state(spec.dims) and kinds["layout"] == "fused" else None,
        tensors=graphs[2] if PROVIDERS[kinds["activations"]] == "cuda" else {},
    )
    manifest.write(folder)
    return manifest


def states(spec: Spec, layout: str) -> dict[str, dict[str, list[int]]] | None:
    """What the layers keep that are no attention, as the manifest has it."""
    if spec.dims.recurrent is None:
        return None
    kept = enumerate(cache_sizes(spec, growing=layout == "split"))
    return {str(i): {n: list(shape) for n, shape in own.items()} for i, own in kept if "key" not in own}


def versions() -> dict[str, Any]:
    from importlib.metadata import version

    from mtpd_mlx import __version__

    return {"mtpd-mlx": __version__} | {name: version(name) for name in ("onnx", "onnx-ir", "onnxscript")}
