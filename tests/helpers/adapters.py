"""Adapters as mlx-lm writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.runtime import mx


def write_adapter(folder: Path, base: Path, seed: int = 0, keys: Any = None, kind: str = "lora") -> Path:
    """An adapter as mlx_lm.lora writes it, with random weights."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    network = load_base(str(base)).model
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys or ["self_attn.q_proj", "mlp.down_proj"]}
    linear_to_lora_layers(network, 2, parameters, use_dora=kind == "dora")
    rng = np.random.default_rng(seed)
    leaves = [(n, w) for n, w in tree_flatten(network.parameters()) if n.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "m")]
    drawn = {n: w if n.endswith(".m") else mx.array(rng.normal(0, 0.2, w.shape).astype(np.float32)) for n, w in leaves}
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), drawn)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
