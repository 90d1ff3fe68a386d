"""`describe`: everything known of a folder, as one dictionary.
Called by `mtpd inspect`, `pull`, `push` and `probe`."""

from typing import Any

from mtpd_onnx.dims import objection, objection_on_cuda

from mtpd_mlx.checkpoints.adapter_format import CONFIG as ADAPTER_CONFIG
from mtpd_mlx.checkpoints.format import CONFIG_NAME as HEADS_CONFIG
from mtpd_mlx.checkpoints.format import WEIGHTS_NAME, parse_base, parse_config
from mtpd_mlx.checkpoints.shipped.detect import shipped_heads
from mtpd_mlx.checkpoints.shipped.layouts import BASE, TRANSFORMERS, is_shipped
from mtpd_mlx.checkpoints.shipped.vllm import MODEL_TYPE
from mtpd_mlx.families.dims import Dims
from mtpd_mlx.families.multimodal import text_config, text_name
from mtpd_mlx.families.shapes import contradiction
from mtpd_mlx.families.stored import packed_names, settle, told_quantization
from mtpd_mlx.families.table import FAMILIES
from mtpd_mlx.files.model_files import INDEX, SINGLE, agree, choose
from mtpd_mlx.inspection.alone import speaks_of
from mtpd_mlx.inspection.counts import ITEM_BYTES, Counts, block_parameters, cache_bytes, count, head_parameters, state_bytes
from mtpd_mlx.inspection.folder_view import View
from mtpd_mlx.inspection.memory import CPU_ITEM, DEVICES, decode_bytes, train_bytes
from mtpd_mlx.inspection.sections import CACHE_INDEX, as_object, describe_adapter, describe_cache
from mtpd_mlx.options.hub import MemoryPlan

MANIFEST = "manifest.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def describe(view: View, plan: MemoryPlan | None = None) -> dict[str, Any]:
    """`kind`: model, heads, exported heads, onnx, cache, adapter or unknown, and what is known of each.

    ValueError on damaged files.
    """
    files = view.files()
    size = {"files": len(files), "bytes": sum(files.values())}
    if HEADS_CONFIG in files:
        return {"kind": "heads", "name": view.name} | size | _heads(view)
    if MANIFEST in files:
        return {"kind": "onnx", "name": view.name} | size | _onnx(view)
    if CACHE_INDEX in files:
        return {"kind": "cache", "name": view.name} | size | describe_cache(view)
    if ADAPTER_CONFIG in files:
        return {"kind": "adapter", "name": view.name} | size | describe_adapter(view, files)
    if "config.json" in files and BASE in view.json("config.json"):
        return {"kind": "exported heads", "name": view.name} | size | _exported_heads(view, files)
    if "config.json" in files:
        return {"kind": "model", "name": view.name} | size | _model(view, files, plan or MemoryPlan())
    return {"kind": "unknown", "name": view.name} | size


def _exported_heads(view: View, files: dict[str, int]) -> dict[str, Any]:
    """Heads that `mtpd export-heads` wrote without their base."""
    config = view.json("config.json")
    counts = count(view.table(SINGLE), None) if SINGLE in files else Counts(0, 0, [], 0)
    base = parse_base(config[BASE], f"{view.name}/config.json: {BASE}")
    return {
        "num_heads": config.get(TRANSFORMERS),
        "engine": config.get("architectures") if config.get("model_type") == MODEL_TYPE else None,
        "parameters": counts.parameters,
        "weight_bytes": counts.stored,
        "dtypes": counts.dtypes,
        "base": base.to_json(),
    }


def _model(view: View, files: dict[str, int], plan: MemoryPlan) -> dict[str, Any]:
    whole = view.json("config.json")
    config = text_config(whole)
    remarks: tuple[str, ...] = ()
    tables: dict[str, dict[str, Any]] = {}
    quantization, settled, why = None, None, ""
    held = choose(files, lambda: view.json(INDEX), view.name)
    if alone := not held.weights and not any(name.endswith(WEIGHTS) for name in files):
        if (outside := whole.get("tie_word_embeddings")) is not None:  # of a multimodal model it is this one that counts
            config = config | {"tie_word_embeddings": outside}
        try:
            tables = {"config.json": speaks_of(config)}
        except ValueError as error:
            why = str(error)
    else:
        tables = {name: view.table(name) for name in held.all}
        remarks = agree(held, tables, view.name)
    table = {plain: e for t in tables.values() for n, e in t.items() if (plain := text_name(n)) is not None}
    layers = config.get("num_hidden_layers")
    own = {n: e for n, e in table.items() if type(layers) is not int or not is_shipped(n, layers)}
    if packed_names(own):
        quantization = (
            config.get("quantization") if not isinstance(config.get("quantization"), dict) else told_quantization(config)
        )
    try:
        settled = settle(config, own)
        quantization = settled.dims.quantization
    except ValueError as error:
        why = why or str(error)
    counts = count(own, quantization if isinstance(quantization, dict) else None)
    found: dict[str, Any] = {
        "model_type": config.get("model_type"),
        "parameters": counts.parameters,
        "weight_bytes": counts.stored,
        "dtypes": counts.dtypes,
        "quantization": _bits(quantization, counts),
        "shipped_heads": shipped_heads(config, table),
        "remarks": [*remarks, *(() if settled is None else settled.remarks)],
    }
    if not held.weights and not alone:
        pickled = [n for n in files if n.endswith((".bin", ".pt", ".pth"))]
        why = "weights are pickled, which are never loaded: convert them" if pickled else "no model*.safetensors in it"
        return found | {"supported": False, "why_not": why}
    if settled is None or why:
        return found | {"supported": False, "why_not": why}
    dims = settled.dims
    if (wrong := contradiction(own, dims)) is not None:
        return found | {"supported": False, "why_not": wrong}
    found["objections"] = ["no model*.safetensors in it: sizes are those that config.json speaks of"] if alone else []
    found["objections"] += [f"mtpd export: {no}"] if (no := objection(dims)) is not None else []
    found["objections"] += [f"mtpd export for CUDA: {no}"] if no is None and (no := objection_on_cuda(dims)) is not None else []
    item = ITEM_BYTES.get(counts.dtypes[0] if counts.dtypes else "float32", 4)
    return found | {
        "supported": True,
        "dims": _dims(dims),
        "float16": not FAMILIES[dims.model_type].exceeds_float16,
        "caches": _caches(dims, item),
        "needs": _needs(dims, counts, plan, item),
    }


def _bits(quantization: Any, counts: Counts) -> dict[str, Any] | None:
    if not isinstance(quantization, dict):
        return None
    told = [v["bits"] for v in (quantization, *quantization.values()) if isinstance(v, dict) and "bits" in v]
    for bits in told:
        if type(bits) is not int:
            raise ValueError(f"quantization: bits: got {str(bits)[:40]!r}, expected a number of bits")
    return {"bits": sorted(set(told)), "group_size": quantization.get("group_size"), "matrices": counts.quantised}


def _dims(dims: Dims) -> dict[str, Any]:
    names = ("hidden_size", "num_layers", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
    found = {name: getattr(dims, name) for name in (*names, "context_length", "tied")}
    wide = dims.geometry(dims.head_layer)
    if wide.head_dim != dims.head_dim:
        found |= {"global_head_dim": wide.head_dim, "global_num_kv_heads": wide.num_kv_heads}
    if dims.experts is not None:
        found |= {"experts": dims.experts.count, "experts_per_token": dims.experts.chosen}
    return found


def _caches(dims: Dims, item: int) -> dict[str, Any]:
    windows = [layer.window for layer in dims.layers if layer.window is not None]
    return {
        "bytes_per_position": cache_bytes(dims, 1, 0, item),
        "sliding_layers": len(windows),
        "window": windows[0] if windows else None,
        "recurrent_layers": dims.recurrent_layers,
        "state_bytes": state_bytes(dims, item),
        "rewinds": True,
    }


def _needs(dims: Dims, counts: Counts, plan: MemoryPlan, item: int) -> dict[str, Any]:
    return {
        "plan": {
            "num_heads": plan.num_heads,
            "batch_size": plan.batch_size,
            "tokens": plan.max_seq_length,
            "positions": plan.context,
        },
        "head_parameters": head_parameters(dims),
        "block_parameters": block_parameters(dims, dims.head_layer),
        "train_heads_bytes": {name: train_bytes(dims, counts, plan, device) for name, device in DEVICES.items()},
        "decode_bytes": decode_bytes(dims, counts.stored, plan, item),
        "decode_cpu_bytes": decode_bytes(dims, counts.parameters * CPU_ITEM, plan, CPU_ITEM, windows=True),
    }


def _heads(view: View) -> dict[str, Any]:
    config = parse_config(view.json(HEADS_CONFIG), f"{view.name}/{HEADS_CONFIG}")
    counts = count(view.table(WEIGHTS_NAME), config.quantization)
    return {
        "num_heads": config.num_heads,
        "hidden_source": config.hidden_source,
        "draft_vocab": config.draft_vocab,
        "parameters": counts.parameters,
        "weight_bytes": counts.stored,
        "dtypes": counts.dtypes,
        "quantization": config.quantization,
        "base": config.base.to_json(),
        "measured": recorded_acceptance(config.record),
        "loss": as_object(config.record.get("loss")),
        "data": as_object(config.record.get("data")),
    }


def _onnx(view: View) -> dict[str, Any]:
    manifest = view.json(MANIFEST)
    names = ("format", "format_version", "layout", "precision", "activations", "num_heads", "capacity", "draft_vocab", "base")
    return {name: manifest.get(name) for name in names} | {
        "base": as_object(manifest.get("base")),
        "measured": recorded_acceptance(as_object(manifest.get("record"))),
    }


def recorded_acceptance(record: dict[str, Any]) -> dict[str, Any] | None:
    """car, ar and tau on the validation text of training, from a checkpoint's record, where they are numbers."""
    validation = as_object(as_object(record.get("eval")).get("validation"))
    car, ar, tau = (validation.get(name) for name in ("car", "ar", "tau"))
    lists = [x for x in (car, ar) if isinstance(x, list) and all(isinstance(v, int | float) for v in x)]
    if car not in lists or not isinstance(tau, int | float):
        return None
    assert isinstance(car, list)
    return {"car": car, "tau": tau} | ({"ar": ar} if ar in lists and isinstance(ar, list) and len(ar) == len(car) else {})
