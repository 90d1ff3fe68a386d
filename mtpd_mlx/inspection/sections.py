"""`describe_cache`, `describe_adapter`: caches and adapters as dictionaries. Nothing is checked here.
Called by inspection/describe.py."""

from typing import Any

from mtpd_mlx.checkpoints.adapter_format import CONFIG as ADAPTER_CONFIG
from mtpd_mlx.checkpoints.adapter_format import WEIGHTS as ADAPTER_WEIGHTS
from mtpd_mlx.inspection.counts import count
from mtpd_mlx.inspection.folder_view import View

CACHE_INDEX = "cache.json"


def describe_cache(view: View) -> dict[str, Any]:
    """base, what is stored of a position, and by split rows, tokens, and how much of it is finished."""
    index = view.json(CACHE_INDEX)
    names = ("hidden", "dtype", "logits_dtype", "top_n", "max_seq_length")
    splits = {str(name): _split(as_object(split)) for name, split in as_object(index.get("splits")).items()}
    complete = bool(splits) and all(split["rows_done"] == split["rows"] for split in splits.values())
    return {name: index.get(name) for name in names} | {
        "base": as_object(index.get("base")),
        "splits": splits,
        "complete": complete,
    }


def _split(split: dict[str, Any]) -> dict[str, int]:
    held = split.get("shards")
    shards = [as_object(shard) for shard in held] if isinstance(held, list) else []
    return {
        "rows": as_count(split.get("rows")),
        "tokens": as_count(split.get("tokens")),
        "shards": len(shards),
        "rows_done": sum(as_count(shard.get("rows")) for shard in shards),
        "bytes": sum(as_count(shard.get("bytes")) for shard in shards),
    }


def describe_adapter(view: View, files: dict[str, int]) -> dict[str, Any]:
    """Kind, settings, sizes, and the base as its maker named it."""
    settings = view.json(ADAPTER_CONFIG)
    if ADAPTER_WEIGHTS not in files:
        of_peft = any(name.startswith("adapter_model.") for name in files)
        why = "an adapter of peft: convert it, or fuse it into the model" if of_peft else f"no {ADAPTER_WEIGHTS} in it"
        base = settings.get("base_model_name_or_path")
        return {"supported": False, "why_not": why, "base": base if isinstance(base, str) else None}
    counts, lora = count(view.table(ADAPTER_WEIGHTS), None), as_object(settings.get("lora_parameters"))
    base, kind = settings.get("model"), settings.get("fine_tune_type", "lora")
    found = {"supported": True, "fine_tune_type": kind, "base": base if isinstance(base, str) else None}
    found |= {"parameters": counts.parameters, "weight_bytes": counts.stored, "dtypes": counts.dtypes}
    if kind != "full":
        keys = lora.get("keys")
        found |= {"num_layers": settings.get("num_layers"), "rank": lora.get("rank"), "scale": lora.get("scale")}
        found |= {"keys": [str(key) for key in keys] if isinstance(keys, list) else None}
    return found


def as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def as_count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
