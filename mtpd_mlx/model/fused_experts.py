"""`as_mlx_lm_expects`: experts that a checkpoint holds fused, in the one form that mlx-lm reads.
Called by model/base.py."""

import re

from mtpd_mlx.model.runtime import mx

ALONE = re.compile(r"(.+\.mlp)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def as_mlx_lm_expects(weights: dict[str, mx.array], module: str) -> dict[str, mx.array]:
    """gpt-oss in floating point, `experts.{gate_up, down}_proj` [E, in, out] as transformers writes it -> [E, out, in], as its
    MXFP4 blocks are stored. Qwen3.5's experts stacked. `module`: of mlx_lm.models."""
    if module == "qwen3_5":
        return _stacked(weights)
    fused = {name for name in weights if name.endswith((".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"))}
    ours = {name for name in fused if f"{name}_bias" in weights}
    kept = {name: w for name, w in weights.items() if name not in ours}
    return kept | {f"{name}.weight": weights[name].swapaxes(-1, -2) for name in ours}


def _stacked(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """`experts.gate_up_proj` [E, gate, then up, in] and `experts.down_proj` [E, out, in] as published, or experts one by one as
    transformers writes them -> `switch_mlp.{gate, up, down}_proj.weight` [E, out, in]."""
    kept, alone = dict[str, mx.array](), dict[tuple[str, str], dict[int, mx.array]]()
    for name, w in weights.items():
        if one := ALONE.fullmatch(name):
            alone.setdefault((one[1], one[3]), {})[int(one[2])] = w
        elif name.endswith(".mlp.experts.gate_up_proj"):
            stem = name.removesuffix("experts.gate_up_proj")
            gate, up = mx.split(w, 2, axis=1)
            kept |= {f"{stem}switch_mlp.gate_proj.weight": gate, f"{stem}switch_mlp.up_proj.weight": up}
        elif name.endswith(".mlp.experts.down_proj"):
            kept[f"{name.removesuffix('experts.down_proj')}switch_mlp.down_proj.weight"] = w
        else:
            kept[name] = w
    for (stem, part), experts in alone.items():
        kept[f"{stem}.switch_mlp.{part}.weight"] = mx.stack([experts[e] for e in sorted(experts)])
    return kept
