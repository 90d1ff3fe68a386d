"""`for_vllm`: the config.json that the vLLM plug-in (export/mtpd_vllm) reads.
Called by shipped/write.py, `mtpd export-heads` and inspection."""

from typing import Any

from mtpd_mlx.families.dims import Dims

VLLM = "vllm"  # of export-heads --format
NAMES_OF_VLLM = "nextn"  # layout whose tensor names it reads
ARCHITECTURE = "MTPDHeads"
MODEL_TYPE = "mtp"  # one that vLLM takes for speculative heads
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "granite")  # whose blocks it can build


def for_vllm(dims: Dims, num_heads: int) -> dict[str, Any]:
    """Keys of config.json in place of the base's. The base's own model_type stays under `mtpd_base`.

    ValueError in one line for a family that the plug-in has no block of, and for sliding windows, which it does not tell vLLM.
    """
    if dims.model_type not in FAMILIES:
        raise ValueError(f"--format {VLLM}: got a base of the family {dims.model_type}, expected one of {', '.join(FAMILIES)}")
    if any(layer.window is not None for layer in dims.layers):
        raise ValueError(f"--format {VLLM}: got a base with sliding windows, expected full attention in every layer")
    return {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], "n_predict": num_heads}
