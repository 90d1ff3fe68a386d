#!/usr/bin/env python3
"""What transformers computes for a tiny model of every family: the oracle of tests/families, which then needs neither torch
nor transformers.

    python -m tools.family_references [NAME ...]        # writes tests/families/references/NAME.{json,npz}

Needs torch and transformers. A reference is the config.json that transformers writes, the names and shapes of the tensors
that it writes, and the logits [T, V] of one text; weights are drawn by tests/families/family_weights.py. Run it from the
repository root.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tools.paths import ROOT
from tools.reference_configs import LENGTH, MXFP4, REFERENCES, TINY, VOCAB
from tools.reference_heads import auto_class, shipped_logits, shipped_shapes

FOLDER = ROOT / "tests" / "families" / "references"


def text() -> list[int]:
    return np.random.default_rng(0).integers(1, VOCAB, LENGTH).tolist()


def save_shapes(config: Any, folder: Path) -> dict[str, list[int]]:
    """The tensors that transformers writes for such a model; config.json stays in `folder`."""
    from mtpd_mlx.files.safetensors import read_header

    auto_class(config).from_config(config).save_pretrained(folder)
    return {name: entry["shape"] for name, entry in sorted(read_header(folder / "model.safetensors")[0].items())}


def norm_center(shapes: dict[str, list[int]], model_type: str) -> float:
    """What stands for 1 in the weights of norms."""
    return 0.0 if model_type.startswith(("gemma2", "gemma3", "qwen3_5", "qwen3_next")) else 1.0


def reference_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    """float32 [T, V] by transformers, eager attention."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if getattr(config, "quantization_config", None):
        from transformers import Mxfp4Config

        options["quantization_config"] = Mxfp4Config(dequantize=True)
    model = auto_class(config).from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def without_written(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in ("written", "packed", "shipped")}


def in_blocks(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The tensors of gpt-oss whose experts are in MXFP4."""
    packed = {}
    for name, shape in shapes.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            count, inputs, outputs = shape
            packed |= {f"{name}_blocks": [count, outputs, inputs // 32, 16], f"{name}_scales": [count, outputs, inputs // 32]}
        else:
            packed[name] = shape
    return packed


def make(name: str, out: Path) -> float:
    """Writes one reference; returns the largest logit."""
    import transformers

    from tests.families.family_weights import write_weights

    title, kind, options = REFERENCES[name]
    given = ({} if "text_config" in options else TINY) | without_written(options)
    if "layers_block_type" in given:
        del given["num_hidden_layers"]
    config = getattr(transformers, kind)(**given)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shapes = save_shapes(config, folder)
        written = json.loads((folder / "config.json").read_text())
        center = norm_center(shapes, written["model_type"])
        if "packed" in options:
            shapes, written = in_blocks(shapes), written | {"quantization_config": MXFP4}
            (folder / "config.json").write_text(json.dumps(written))
        write_weights(folder / "model.safetensors", shapes, center)
        logits = {"logits": reference_logits(folder, text())}
        if "shipped" in options:
            shipped = shipped_shapes(shapes, written, options["shipped"])
            write_weights(folder / "model.safetensors", shapes | shipped, center)
            logits["shipped"] = shipped_logits(folder, text(), shipped)
    if "written" in options:  # a model_type that transformers has no class for
        written |= {"model_type": options["written"], "architectures": ["MiMoForCausalLM"]}
        written = {k: v for k, v in written.items() if k not in ("layer_types", "max_window_layers", "use_sliding_window")}
    record = {"title": title, "norm_center": center, "tokens": text(), "config": written, "shapes": shapes}
    if "shipped" in options:
        record["shipped"] = shipped
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    np.savez_compressed(out / f"{name}.npz", **logits)
    return float(np.abs(logits["logits"]).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REFERENCES), help=f"of {', '.join(REFERENCES)} (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write (default: %(default)s)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        print(f"{name}: largest logit {make(name, args.out):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
