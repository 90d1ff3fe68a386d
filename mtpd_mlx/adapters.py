"""A base with an mlx-lm adapter (LoRA, DoRA, full) folded into its weights."""

from pathlib import Path

from mtpd_mlx.adapter_format import read_adapter
from mtpd_mlx.mlx_runtime import mx, nn


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
