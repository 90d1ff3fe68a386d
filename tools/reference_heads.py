"""The MTP heads that published models ship: names and shapes of their tensors, and what they say. Called by
tools/family_references.py; needs torch and transformers."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def auto_class(config: Any) -> Any:
    """Multimodal models are of another kind to transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def shipped_shapes(shapes: dict[str, list[int]], config: dict[str, Any], layout: str) -> dict[str, list[int]]:
    """The tensors of one MTP head of the last block's type, as the family's published checkpoints name them."""
    if layout == "nemotron":
        return nemotron_shapes(shapes, config)
    layers, d = config["num_hidden_layers"], config["hidden_size"]
    stem, norms = f"model.layers.{layers}.", ("enorm", "hnorm", "shared_head.norm")
    if layout == "mtp":
        stem, norms = "mtp.layers.0.", ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    beside = stem if layout == "nextn" else "mtp."
    last = f"model.layers.{layers - 1}."
    block = {stem + name.removeprefix(last): shape for name, shape in shapes.items() if name.startswith(last)}
    extras = {f"{beside}{name}.weight": [d] for name in norms}
    return block | extras | {f"{beside}{'fc' if layout == 'mtp' else 'eh_proj'}.weight": [d, 2 * d]}


def shipped_logits(folder: Path, tokens: list[int], shipped: dict[str, list[int]]) -> np.ndarray:
    """float32 [T - 1, V]: what the head says after each token and the next, by transformers' own MTP decoding."""
    import torch
    from transformers import AutoConfig
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "nemotron_h":
        return nemotron_logits(folder, tokens)
    config.num_mtp_layers = 1
    if getattr(config, "layer_types", None):
        config.mtp_layer_types = ["full_attention"]
    model_class = type(auto_class(config).from_config(config))
    model_class._keys_to_ignore_on_load_unexpected = [rf"^{sorted(shipped)[0].split('.layers.')[0]}.*"]
    if not sorted(shipped)[0].startswith("mtp."):
        model_class._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{config.num_hidden_layers}\."]
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = model_class.from_pretrained(folder, config=config, **options).eval()
    mtp = MtpModel.from_pretrained(model)
    with torch.no_grad():
        inside = model.model(torch.tensor([tokens]))
        states = mtp.forward_layer(
            0,
            inside.last_hidden_state[:, :-1],
            torch.arange(1, len(tokens))[None],
            MtpCache(config=config.get_mtp_config()),
            input_ids=torch.tensor([tokens[1:]]),
        )
        return model.lm_head(states)[0].float().numpy()


def nemotron_shapes(shapes: dict[str, list[int]], config: dict[str, Any]) -> dict[str, list[int]]:
    """Nemotron's head is two blocks of one branch each, with the tensors of a head around them."""
    kinds, d = config["layers_block_type"], config["hidden_size"]
    head = {f"mtp.layers.0.{name}.weight": [d] for name in ("enorm", "hnorm")}
    head |= {"mtp.layers.0.eh_proj.weight": [d, 2 * d], "mtp.layers.1.final_layernorm.weight": [d]}
    for i, kind in enumerate(("full_attention", "moe")):
        stem = f"backbone.layers.{kinds.index(kind)}."
        head |= {name.replace(stem, f"mtp.layers.{i}."): shape for name, shape in shapes.items() if name.startswith(stem)}
    return head


def nemotron_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    """transformers has no MTP decoding of Nemotron: its two blocks as a model of their own, whose input is the projection of
    the token's embedding and the base's state, and whose final norm is the head's."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    kind: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    base = AutoModelForCausalLM.from_pretrained(folder, **kind).eval()
    stored = load_file(folder / "model.safetensors")
    beside = {name: stored.pop(f"mtp.layers.0.{name}.weight") for name in ("enorm", "hnorm", "eh_proj")}
    stored["backbone.norm_f.weight"] = stored.pop("mtp.layers.1.final_layernorm.weight")
    kept = {name: w for name, w in stored.items() if ".layers." not in name}
    kept |= {name.replace("mtp.", "backbone."): w for name, w in stored.items() if name.startswith("mtp.")}
    config = json.loads((folder / "config.json").read_text()) | {"layers_block_type": ["full_attention", "moe"]}
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(config))
        save_file(kept, Path(place) / "model.safetensors", metadata={"format": "pt"})
        head = AutoModelForCausalLM.from_pretrained(place, **kind).eval()
    norm = lambda x, weight: torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, config["layer_norm_epsilon"])  # noqa: E731
    with torch.no_grad():
        states = base.model(torch.tensor([tokens])).last_hidden_state[:, :-1]
        embedded = base.get_input_embeddings()(torch.tensor([tokens[1:]]))
        joined = torch.cat([norm(embedded, beside["enorm"]), norm(states, beside["hnorm"])], dim=-1)
        return head(inputs_embeds=joined @ beside["eh_proj"].T).logits[0].float().numpy()
