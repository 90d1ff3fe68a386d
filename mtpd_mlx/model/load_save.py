"""`load_checkpoint`, `save_heads`: heads (and in joint training the base) read and written with MLX.
Called by commands, training and tools. The format: checkpoints/format.py."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx import __version__
from mtpd_mlx.checkpoints.format import (
    CONFIG_NAME,
    DRAFT_TOKENS,
    WEIGHTS_NAME,
    BaseRef,
    CheckpointConfig,
    check_draft_tokens,
    named_from,
    read_config,
    read_draft_tokens,
)
from mtpd_mlx.files.atomic import replacing, write_json
from mtpd_mlx.files.publish import publish, staged
from mtpd_mlx.files.safetensors import read_header
from mtpd_mlx.hub.pull import resolve_folder
from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.compute import compute_in
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.options.base import AUTO
from mtpd_mlx.text.tokenizer_files import copy_tokenizer


def versions() -> dict[str, str]:
    """Versions of this package, mlx, mlx-lm and numpy, as checkpoints record them."""
    from importlib.metadata import version

    return {"mtpd-mlx": __version__} | {name: version(name) for name in ("mlx", "mlx-lm", "numpy")}


def save_arrays(file: Path, arrays: dict[str, mx.array]) -> None:
    """Replaces `file` with a safetensors file. Any suffix will do (MLX adds one to a name, but not to an open file)."""
    with replacing(file) as temporary, temporary.open("wb") as f:
        mx.save_safetensors(f, arrays, metadata={"format": "mlx"})


def load_arrays(file: Path) -> dict[str, mx.array]:
    """All tensors of a safetensors file; a missing or truncated one is a one-line ValueError."""
    if not file.is_file():
        raise ValueError(f"{file}: missing")
    read_header(file)
    try:
        arrays = mx.load(str(file), format="safetensors")
    except RuntimeError as error:
        raise ValueError(f"{file}: MLX cannot read it ({str(error).splitlines()[0][:120]})") from error
    assert isinstance(arrays, dict)
    return arrays


def flatten(module: nn.Module) -> dict[str, mx.array]:
    """Parameters of a module by dotted name."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(module.parameters()))


def load_weights(module: nn.Module, arrays: dict[str, mx.array], source: Path) -> None:
    """Fills `module` from exactly its own names and shapes; the first difference is a one-line ValueError."""
    own = flatten(module)
    for name in sorted(own.keys() - arrays.keys()):
        raise ValueError(f"{source}: missing key {name!r} (expected shape {tuple(own[name].shape)})")
    for name in sorted(arrays.keys() - own.keys()):
        raise ValueError(f"{source}: unexpected key {name!r}")
    for name, w in own.items():
        if w.shape != arrays[name].shape:
            raise ValueError(f"{source}: {name}: got shape {tuple(arrays[name].shape)}, expected {tuple(w.shape)}")
    module.load_weights(list(arrays.items()))


def save_heads(
    folder: Path, heads: MTPHeads, config: CheckpointConfig, bits: int | None = None, parts: Sequence[str] = ()
) -> None:
    """Writes heads.safetensors and mtp_config.json; `bits` stores the matrices MLX-quantised (group size 64). `parts`: names of
    folders that are staged beside them (files/publish.py) and take their places with them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = flatten(heads)
    quantization, tokens = None, heads.draft_tokens
    if bits is not None:
        quantization = {"group_size": 64, "bits": bits}
        arrays = _quantize(arrays, **quantization)
    if tokens is not None:
        check_draft_tokens(np.array(tokens), tokens.size, config.base.vocab_size, str(folder))
        arrays[DRAFT_TOKENS] = tokens.astype(mx.int32)
    drafted = None if tokens is None else tokens.size
    config = replace(config, quantization=quantization, draft_vocab=drafted, post_norms=heads.post_norms)
    save_arrays(staged(folder / WEIGHTS_NAME), arrays)
    write_json(staged(folder / CONFIG_NAME), config.to_json())
    # Killed in between, the folder holds no heads, not new ones that pass for the old.
    publish(folder, (*parts, WEIGHTS_NAME, CONFIG_NAME), hide=None if _describes(folder, config) else CONFIG_NAME)


def _describes(folder: Path, config: CheckpointConfig) -> bool:
    """Whether the description in `folder` is that of heads as `config` describes, whatever it says of their making."""
    try:
        return replace(read_config(folder), record={}) == replace(config, record={})
    except ValueError:
        return False


def load_heads(folder: Path, base: Base) -> tuple[MTPHeads, CheckpointConfig]:
    """Heads in float32 (a quantised file is unpacked), checked against the base's dimensions. A hub id is pulled."""
    folder = resolve_folder(folder)
    config = read_config(folder)
    for name, got in (("hidden_size", base.hidden_size), ("vocab_size", base.vocab_size)):
        if (expected := getattr(config.base, name)) != got:
            raise ValueError(f"{folder}: heads are for a base of {name} {expected}, the base has {got}")
    arrays = load_arrays(folder / WEIGHTS_NAME)
    ids = read_draft_tokens(folder, config)
    arrays.pop(DRAFT_TOKENS, None)
    if config.quantization:
        try:
            arrays = _dequantize(arrays, config.quantization["group_size"], config.quantization["bits"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{folder / WEIGHTS_NAME}: cannot be unpacked ({str(error).splitlines()[0]})") from error
    heads = MTPHeads(base, config.num_heads, config.hidden_source, config.post_norms)
    load_weights(heads, {name: w.astype(mx.float32) for name, w in arrays.items()}, folder / WEIGHTS_NAME)
    heads.draft_among(None if ids is None else mx.array(ids))
    heads.eval()
    mx.eval(heads.parameters())
    return heads, config


def load_checkpoint(
    folder: Path,
    model: str | None = None,
    *,
    dequantize: bool | None = False,
    ends_only: bool = False,
    adapter: Path | None = None,
    allow_mismatch: bool = False,
) -> tuple[Base, MTPHeads, CheckpointConfig]:
    """Base (or its ends alone) and heads of a checkpoint. `model` and `adapter` replace the recorded ones (with
    `allow_mismatch`, `model` replaces both); another base than the heads' own is refused unless `allow_mismatch`."""
    folder = resolve_folder(folder)
    config = read_config(folder)
    if adapter is None and (model is None or not allow_mismatch):
        adapter = config.base.locate_adapter(folder)
    name = model or config.base.locate(folder)
    base = load_base(name, dequantize=dequantize, ends_only=ends_only, adapter=adapter)
    if not allow_mismatch and not config.base.fits(got := base.fingerprint):
        raise ValueError(
            f"{folder}: these heads belong to another base: fingerprint {config.base.fingerprint[:19]}..., "
            f"{base.path} has {got[:19]}...; adapt them with mtpd refit, or pass --allow-base-mismatch"
        )
    heads, config = load_heads(folder, base)
    return base, heads, config


def load_for_decoding(
    folder: Path,
    model: str | None = None,
    *,
    dequantize: bool | None = False,
    adapter: Path | None = None,
    allow_mismatch: bool = False,
    dtype: str = AUTO,
) -> tuple[Base, MTPHeads, CheckpointConfig]:
    """As load_checkpoint, both in the type that `dtype` (an option's name of it) says."""
    base, heads, config = load_checkpoint(folder, model, dequantize=dequantize, adapter=adapter, allow_mismatch=allow_mismatch)
    compute_in(base, dtype)
    heads.set_dtype(base.dtype)
    mx.eval(heads.parameters())
    return base, heads, config


def write_base(folder: Path, base: Base, tokenizer_folder: Path) -> None:
    """The base in HF layout (joint training), into an empty folder."""
    from mlx_lm.utils import save_config, save_model

    save_model(folder, base.model)
    save_config(dict(base.config), folder / "config.json")
    copy_tokenizer(tokenizer_folder, folder)


def reference_base(base: Base, out: Path, named: str) -> BaseRef:
    """How a checkpoint in `out` names its base: a hub id as it is, a local folder relative to the checkpoint."""
    adapter = None if base.adapter is None else named_from(str(base.adapter), out)
    kind = base.config["model_type"]
    return BaseRef(named_from(named, out), base.fingerprint, kind, base.hidden_size, base.vocab_size, adapter=adapter)


def _quantize(arrays: dict[str, mx.array], group_size: int, bits: int) -> dict[str, mx.array]:
    packed: dict[str, mx.array] = {}
    for name, w in arrays.items():
        if w.ndim == 2 and w.shape[1] % group_size == 0:
            stem = name.removesuffix(".weight")
            packed[name], packed[f"{stem}.scales"], packed[f"{stem}.biases"] = mx.quantize(w, group_size, bits)
        else:
            packed[name] = w
    return packed


def _dequantize(arrays: dict[str, mx.array], group_size: int, bits: int) -> dict[str, mx.array]:
    plain: dict[str, Any] = {}
    for name, w in arrays.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in arrays and name.endswith(".weight"):
            scales, biases = (
                arrays[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases")
            )  # else rounded twice
            plain[name] = mx.dequantize(w, scales, biases, group_size, bits)
        elif not name.endswith((".scales", ".biases")):
            plain[name] = w
    return plain
