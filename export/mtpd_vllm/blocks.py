"""`block_of`: vLLM's decoder block for the family of the base.
Called by mtpd_vllm/heads.py."""

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

MODELS = "vllm.model_executor.models."


def _whole(vllm_config: Any, config: Any) -> dict[str, Any]:
    """Arguments of blocks that take vLLM's whole configuration."""
    return {"vllm_config": vllm_config}


def _whole_and_own(vllm_config: Any, config: Any) -> dict[str, Any]:
    return {"vllm_config": vllm_config, "config": config}


def _parts(vllm_config: Any, config: Any) -> dict[str, Any]:
    return {"config": config, "cache_config": vllm_config.cache_config, "quant_config": None}


BLOCKS: dict[str, tuple[str, str, Callable[[Any, Any], dict[str, Any]]]] = {
    "llama": ("llama", "LlamaDecoderLayer", _whole_and_own),
    "mistral": ("llama", "LlamaDecoderLayer", _whole_and_own),
    "qwen2": ("qwen2", "Qwen2DecoderLayer", _parts),
    "qwen3": ("qwen3", "Qwen3DecoderLayer", _parts),
    "qwen3_moe": ("qwen3_moe", "Qwen3MoeDecoderLayer", _whole),
    "granite": ("granite", "GraniteDecoderLayer", _parts),
}


def block_of(family: str, vllm_config: Any, config: Any, prefix: str) -> nn.Module:
    """config: of the heads. Never quantised, whatever the base is. ValueError for a family that has no block here."""
    if family not in BLOCKS:
        raise ValueError(f"mtpd_base: got the family {family!r}, expected one of {', '.join(BLOCKS)}")
    module, name, arguments = BLOCKS[family]
    floating = copy.copy(vllm_config)
    floating.quant_config = None
    block: nn.Module = getattr(import_module(MODELS + module), name)(**arguments(floating, config), prefix=prefix)
    return block


def run_block(family: str, block: nn.Module, positions: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """hidden [N, d] -> [N, d], with the residual added."""
    if family == "granite":
        out: torch.Tensor = block(positions, hidden)
        return out
    out, residual = block(positions, hidden, None)
    return out + residual
