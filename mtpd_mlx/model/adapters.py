"""`apply_adapter`, `add_lora`: mlx-lm adapters folded into a base (LoRA, DoRA, full), or new LoRA layers that train.
Called by model/base.py and train/."""

from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoints.adapter_format import CONFIG, WEIGHTS, read_adapter
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.options.train import LoraConfig

LORA_KEYS = ["lora_a", "lora_b"]


def apply_adapter(network: nn.Module, folder: Path) -> None:
    """Changes `network` in place. Layers that the adapter touches are unpacked where they are quantised: rounding them again
    would be another model. ValueError in one line where the adapter does not fit."""
    from mlx.utils import tree_unflatten
    from mlx_lm.utils import load_adapters

    read_adapter(folder)
    try:
        load_adapters(network, str(folder))
    except ValueError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(f"--adapter-path {folder}: does not fit this model: {lines[min(1, len(lines) - 1)]}") from error
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise ValueError(f"--adapter-path {folder}: cannot be applied: {str(error).splitlines()[0]}") from error
    fused = [(name, module.fuse(dequantize=True)) for name, module in network.named_modules() if hasattr(module, "fuse")]
    network.update_modules(tree_unflatten(fused))
    mx.eval(network.parameters())


def adapter_settings(cfg: LoraConfig) -> dict[str, Any]:
    """adapter_config.json of LoRA layers on every matrix of the last `num_layers` blocks, as mlx_lm.lora makes them."""
    parameters = {"rank": cfg.lora_rank, "dropout": 0.0, "scale": cfg.lora_scale}
    return {"fine_tune_type": "lora", "num_layers": cfg.num_layers, "lora_parameters": parameters}


def add_lora(network: nn.Module, cfg: LoraConfig, seed: int) -> None:
    """Gives `network` new LoRA layers, float32, which change nothing yet. ValueError where it has fewer blocks."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    blocks = len(network.layers)
    if cfg.num_layers > blocks or cfg.num_layers == 0:
        raise ValueError(f"--num-layers: got {cfg.num_layers}, expected 1..{blocks} (the base's layers) or -1")
    mx.random.seed(seed)
    linear_to_lora_layers(network, cfg.num_layers, adapter_settings(cfg)["lora_parameters"])
    mx.eval(network.parameters())


def train_lora_alone(network: nn.Module) -> None:
    """Freezes all but the LoRA layers."""
    network.freeze()
    network.unfreeze(keys=LORA_KEYS)


def write_adapter(folder: Path, network: nn.Module, settings: dict[str, Any]) -> None:
    """adapter_config.json and adapters.safetensors of the LoRA layers of `network`, in an empty folder."""
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(network.trainable_parameters())
    mx.save_safetensors(str(folder / WEIGHTS), dict(flat))
    write_json(folder / CONFIG, settings)
