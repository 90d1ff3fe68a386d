"""What the vLLM plug-in (export/mtpd_vllm) asks of a folder of heads: `for_vllm`, called by write.py."""

from typing import Any

VLLM = "vllm"  # of export-heads --format
NAMES_OF_VLLM = "nextn"  # layout whose tensor names it reads
ARCHITECTURE = "MTPDHeads"
MODEL_TYPE = "mtp"  # one that vLLM takes for speculative heads
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "granite")  # whose blocks it can build


def for_vllm(model_type: str, num_heads: int) -> dict[str, Any]:
    """Keys of config.json in place of the base's. The base's own model_type stays under `mtpd_base`. ValueError in one line
    for a family that the plug-in has no block of."""
    if model_type not in FAMILIES:
        raise ValueError(f"--format {VLLM}: got a base of the family {model_type}, expected one of {', '.join(FAMILIES)}")
    return {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], "n_predict": num_heads}
