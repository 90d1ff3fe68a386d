"""`as_mlx_lm_expects`: experts that a checkpoint holds fused, in the one form that mlx-lm reads. Called by base.py."""

from mtpd_mlx.model.runtime import mx


def as_mlx_lm_expects(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """gpt-oss in floating point, `experts.{gate_up, down}_proj` [E, in, out] as transformers writes it -> [E, out, in], as its
    MXFP4 blocks are stored."""
    fused = {name for name in weights if name.endswith((".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"))}
    ours = {name for name in fused if f"{name}_bias" in weights}
    kept = {name: w for name, w in weights.items() if name not in ours}
    return kept | {f"{name}.weight": weights[name].swapaxes(-1, -2) for name in ours}
