#!/usr/bin/env python3
"""A model of random weights and heads for it, written with numpy alone: for timings where no weights can be brought.

    python -m tools.random_model qwen3-1.7b OUT --num-heads 4          # OUT/base (Hugging Face layout), OUT/heads

Needs neither MLX nor torch and takes seconds. The initialisation is that of `mtpd train` from scratch: with tied embeddings
such a model says its last token again and again. `--scale 2` gives text that changes, and heads that are never right.
Tensors depend on the seed alone, not on the number of threads. Run it from the repository root.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from mtpd_onnx.dims import Dims, read_dims
from safetensors.numpy import load_file, save_file

from mtpd_mlx import __version__
from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import CONFIG_NAME, DRAFT_TOKENS, WEIGHTS_NAME, BaseRef, CheckpointConfig
from mtpd_mlx.files.atomic import write_json
from tools.experiments.settings import BASES
from tools.genai_peer.safetensors_file import writable
from tools.paths import DEMO

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
QWEN3: dict[str, Any] = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "rope_theta": 1e6}
QWEN3 |= {"rms_norm_eps": 1e-6, "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0}
QWEN3 |= {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
QWEN3 |= {"vocab_size": 151936, "max_position_embeddings": 40960}
DIMS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072},
    "qwen3-1.7b": QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
    "llama-107m": BASES["llama-107m"] | {"vocab_size": 8192},
}
DTYPES = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
PIECE = 1 << 22  # elements that one thread draws at a time
Shapes = dict[str, tuple[int, ...]]


def block_shapes(prefix: str, d: Dims) -> Shapes:
    """One decoder block."""
    q, kv = d.num_heads * d.head_dim, d.num_kv_heads * d.head_dim
    shapes: Shapes = {"input_layernorm.weight": (d.hidden_size,), "post_attention_layernorm.weight": (d.hidden_size,)}
    matrices = {"q": (q, d.hidden_size), "k": (kv, d.hidden_size), "v": (kv, d.hidden_size), "o": (d.hidden_size, q)}
    for name, shape in matrices.items():
        shapes[f"self_attn.{name}_proj.weight"] = shape
        if d.o_bias if name == "o" else d.qkv_bias:
            shapes[f"self_attn.{name}_proj.bias"] = shape[:1]
    if d.norms != "pre" or d.experts or d.fused or d.qk_norm == "all":
        raise ValueError(f"{d.model_type} is not supported; supported: llama, mistral, qwen2, qwen3, smollm3, granite")
    if d.qk_norm:
        shapes |= {f"self_attn.{name}_norm.weight": (d.head_dim,) for name in "qk"}
    wide = (d.intermediate_size, d.hidden_size)
    for name, shape in {"gate": wide, "up": wide, "down": wide[::-1]}.items():
        shapes[f"mlp.{name}_proj.weight"] = shape
        if d.mlp_bias:
            shapes[f"mlp.{name}_proj.bias"] = shape[:1]
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def base_shapes(d: Dims) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (d.vocab_size, d.hidden_size), "model.norm.weight": (d.hidden_size,)}
    for i in range(d.num_layers):
        shapes |= block_shapes(f"model.layers.{i}", d)
    return shapes if d.tied else shapes | {"lm_head.weight": (d.vocab_size, d.hidden_size)}


def heads_shapes(d: Dims, num_heads: int) -> Shapes:
    shapes: Shapes = {}
    for k in range(num_heads):
        shapes |= {f"heads.{k}.{name}.weight": (d.hidden_size,) for name in ("hnorm", "enorm")}
        shapes[f"heads.{k}.eh_proj.weight"] = (d.hidden_size, 2 * d.hidden_size)
        shapes |= block_shapes(f"heads.{k}.block", d)
    return shapes


def write_random(file: Path, shapes: Shapes, dtype: np.dtype, seed: int, scale_of: Callable[[str], float]) -> int:
    """Matrices and biases normal (0, scale_of(name)), norms 1, [I ; noise] in eh_proj; returns the bytes written."""
    views = writable(file, shapes, dtype)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [t for i, (n, v) in enumerate(views.items()) for t in pieces(v, n, [seed, i], scale_of(n))]
        for result in [pool.submit(task) for task in tasks]:
            result.result()
    return file.stat().st_size


def pieces(view: np.ndarray, name: str, seed: list[int], scale: float) -> Iterator[Callable[[], None]]:
    """Tasks that each draw some rows of one tensor."""
    if view.ndim == 1 and not name.endswith("bias"):
        view[:] = 1.0
        return
    step = max(1, PIECE // (view.size // len(view)))
    for start in range(0, len(view), step):

        def draw(start: int = start) -> None:
            part = view[start : start + step]
            noise = np.random.default_rng([*seed, start]).standard_normal(part.shape, dtype=np.float32)
            noise *= np.float32(scale)
            if name.endswith("eh_proj.weight"):
                noise[:, : view.shape[0]] = np.eye(len(view), dtype=np.float32)[start : start + step]
            part[:] = noise

        yield draw


def write_base(folder: Path, config: dict[str, Any], tokenizer: Path, dtype: str, seed: int, scale: float) -> Dims:
    """config.json, model.safetensors and the tokenizer's files."""
    folder.mkdir(parents=True)
    config = config | {"dtype": {"fp16": "float16", "fp32": "float32"}[dtype]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    dims = read_dims(folder)
    residual = (2 * dims.num_layers) ** -0.5

    def scale_of(name: str) -> float:
        return 0.02 * scale * (residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)

    write_random(folder / "model.safetensors", base_shapes(dims), DTYPES[dtype], seed, scale_of)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    return dims


def write_heads(
    folder: Path, base: Path, dims: Dims, num_heads: int, dtype: str, seed: int, noise: float, draft_vocab: int | None
) -> None:
    """A heads checkpoint beside its base (docs/architecture.md); a draft vocabulary of evenly spread ids."""
    folder.mkdir(parents=True)
    shapes = heads_shapes(dims, num_heads)
    write_random(folder / WEIGHTS_NAME, shapes, DTYPES[dtype], seed + 1, lambda name: noise)
    if draft_vocab is not None:
        ids = np.linspace(0, dims.vocab_size - 1, draft_vocab).astype(np.int32)
        save_file(load_file(folder / WEIGHTS_NAME) | {DRAFT_TOKENS: ids}, folder / WEIGHTS_NAME)
    reference = BaseRef(f"../{base.name}", fingerprint_base(base), dims.model_type, dims.hidden_size, dims.vocab_size)
    record = {"random": {"seed": seed, "noise": noise}, "versions": {"mtpd-mlx": __version__, "numpy": np.__version__}}
    write_json(
        folder / CONFIG_NAME,
        CheckpointConfig(num_heads, "postnorm", reference, record=record, draft_vocab=draft_vocab).to_json(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dims", help=f"{', '.join(DIMS)}, or a config.json")
    parser.add_argument("out", type=Path, help="folder to write: base/ and heads/")
    parser.add_argument("--num-heads", type=int, default=4, help="0: the base alone (default: %(default)s)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16", help="default: %(default)s")
    parser.add_argument(
        "--tokenizer", type=Path, default=DEMO / "base", help="folder whose tokenizer is copied (default: the demo's)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the base's matrices (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.02, help="scale of the heads' matrices (default: %(default)s)")
    parser.add_argument("--draft-vocab", type=int, metavar="D", help="tokens that the heads draft among (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    try:
        if args.num_heads < 0:
            raise ValueError(f"--num-heads: got {args.num_heads}, expected at least 0")
        config = DIMS[args.dims] if args.dims in DIMS else json.loads(Path(args.dims).read_text())
        dims = write_base(args.out / "base", config, args.tokenizer, args.dtype, args.seed, args.scale)
        if args.num_heads:
            base, heads = args.out / "base", args.out / "heads"
            write_heads(heads, base, dims, args.num_heads, args.dtype, args.seed, args.noise, args.draft_vocab)
    except (ValueError, OSError) as error:
        print(f"random_model: error: {error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in args.out.rglob("*.safetensors"))
    print(f"{args.out}: {size / 1e6:.1f} MB in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
