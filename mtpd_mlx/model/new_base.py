"""`new_base`: a randomly initialised base.
Called by train/setup.py and tests."""

from typing import Any

from mtpd_mlx.families.config import mlx_arguments, read_dims
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.network import model_classes
from mtpd_mlx.model.runtime import mx


def new_base(config: dict[str, Any], seed: int) -> Base:
    """A randomly initialised base (GPT-2 style: normal 0.02, residual outputs scaled by 1/sqrt(2 L), biases 0)."""
    from mlx.utils import tree_flatten, tree_unflatten

    config = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}  # trained in float32
    dims = read_dims(config)
    arguments = config | mlx_arguments(config, dims)
    model_class, args_class = model_classes(arguments)
    network = model_class(args_class.from_dict(arguments))
    if dims.tied and "lm_head" in network:
        network.pop("lm_head")
    mx.random.seed(seed)
    residual = (2 * network.args.num_hidden_layers) ** -0.5
    weights: list[tuple[str, mx.array]] = []
    flat: Any = tree_flatten(network.parameters())
    for name, w in flat:
        if name.endswith(("bias", "sinks")):  # the module drew biases before the seed was set: every rank other ones
            w = mx.zeros(w.shape)
        elif name.endswith("A_log"):  # as drawn too: decays of 1 to 16
            w = mx.log(mx.linspace(1, 16, w.size))
        elif name.endswith(("conv.weight", "conv1d.weight")):
            w = mx.random.normal(w.shape, scale=w.shape[1] ** -0.5)
        elif w.ndim >= 2:
            scale = 0.02 * (residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
            w = mx.random.normal(w.shape, scale=scale)
        elif offset := dims.offset_of(name):
            w = mx.full(w.shape, 1.0 - offset)
        weights.append((name, w))
    network.update(tree_unflatten(weights))
    mx.eval(network.parameters())
    return Base(network, config, None)
