"""`MTPDHeads`: K cascaded heads as a draft model of vLLM, one of them per step (spec_step_idx).
Called by vLLM, which `register` gives the class to.

vLLM's contract: forward(input_ids, positions, hidden_states, ..., spec_step_idx) gives the state that logits and the next head
take; embedding and output head are the target's, put in place after loading. Names of the tensors: layout nextn
(mtpd_mlx/checkpoints/shipped/layouts.py).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

from mtpd_vllm.blocks import block_of, run_block
from mtpd_vllm.checks import BASE, check_fit, note_on_base

log = init_logger("vllm.mtpd_vllm")
BESIDE = ("hnorm", "enorm", "eh_proj", "shared_head")  # of a head; all its other tensors are the block's
STACKED = {
    ".q_proj": (".qkv_proj", "q"),
    ".k_proj": (".qkv_proj", "k"),
    ".v_proj": (".qkv_proj", "v"),
    ".mlp.gate_proj": (".mlp.gate_up_proj", 0),
    ".mlp.up_proj": (".mlp.gate_up_proj", 1),
}


class FinalNorm(nn.Module):
    """Holds the norm under the name that the layout has."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.norm = RMSNorm(size, eps=eps)


class Head(nn.Module):
    """h^k = FinalNorm(Block(M [RMSNorm_e(Emb(x_{i+k})) ; RMSNorm_h(h^{k-1}_i)])), DeepSeek-V3's cascade. No embedding is zeroed
    at position 0, which vLLM's own MTP classes do: these heads were not trained so."""

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str):
        super().__init__()
        family = getattr(config, BASE)["model_type"]
        size, eps = config.hidden_size, config.rms_norm_eps
        self.family = family
        self.enorm, self.hnorm = RMSNorm(size, eps=eps), RMSNorm(size, eps=eps)
        self.eh_proj = ReplicatedLinear(2 * size, size, bias=False, return_bias=False)
        self.block = block_of(family, vllm_config, config, prefix)
        self.shared_head = FinalNorm(size, eps)

    def forward(self, embedded: torch.Tensor, positions: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """embedded, states [N, d], positions [N] -> [N, d]."""
        hidden = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(states)], dim=-1))
        normed: torch.Tensor = self.shared_head.norm(run_block(self.family, self.block, positions, hidden))
        return normed


class Cascade(nn.Module):
    """The heads under the numbers of further layers. `embed_tokens` is the target's, set by vLLM after loading."""

    embed_tokens: Any

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str):
        super().__init__()
        first, count = config.num_hidden_layers, config.num_nextn_predict_layers
        if first < 1 or count < 1:
            raise ValueError(f"config.json: got {first} layers and {count} heads, expected at least 1 of each")
        self.first, self.count = first, count
        self.scale = getattr(config, "embedding_multiplier", None)  # Granite
        numbers = range(first, first + count)
        self.layers = nn.ModuleDict({str(n): Head(vllm_config, config, maybe_prefix(prefix, f"layers.{n}")) for n in numbers})

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.embed_tokens(input_ids)
        return embedded if self.scale is None else embedded * self.scale


class MTPDHeads(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        assert vllm_config.speculative_config is not None
        self.config = config = vllm_config.speculative_config.draft_model_config.hf_config
        drafts = vllm_config.speculative_config.num_speculative_tokens
        check_fit(config, vllm_config.model_config.hf_text_config, drafts)
        if (note := note_on_base(getattr(config, BASE), vllm_config.model_config.model)) is not None:
            log.warning(note)
        if drafts > 1 and not getattr(vllm_config, "use_v2_model_runner", True):
            log.warning("mtpd_vllm: this model runner (V1) drafts with the first head alone; V2 runs all %d", drafts)
        self.model = Cascade(vllm_config, config, maybe_prefix(prefix, "model"))
        scale = 1 / getattr(config, "logits_scaling", 1.0)  # Granite
        self.logits_processor = LogitsProcessor(config.vocab_size, scale=scale)

    def embed_input_ids(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        spec_step_idx: int = 0,
    ) -> torch.Tensor:
        """Head spec_step_idx + 1: input_ids, positions [N], hidden_states [N, d] (of the target after its final norm, or of the
        head before) -> [N, d]."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        head = self.model.layers[str(self.model.first + spec_step_idx % self.model.count)]
        states: torch.Tensor = head(inputs_embeds, positions, hidden_states)
        return states

    def compute_logits(self, hidden_states: torch.Tensor, spec_step_idx: int = 0) -> torch.Tensor | None:
        """[N, V] by the target's output head. The state has its final norm already."""
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Names of the parameters that were loaded. ValueError for a tensor that belongs to no head, or a head without one."""
        loaded = AutoWeightsLoader(self).load_weights(
            ((_ours(name), tensor) for name, tensor in weights), mapper=WeightsMapper(orig_to_new_stacked=STACKED)
        )
        missing = sorted({name for name, _ in self.named_parameters()} - set(loaded))
        if missing:
            raise ValueError(f"heads: missing tensors of {missing[0]} (and {len(missing) - 1} more parameters)")
        return set(loaded)


def _ours(name: str) -> str:
    """model.layers.30.mlp.up_proj.weight -> model.layers.30.block.mlp.up_proj.weight."""
    parts = name.split(".")
    return name if len(parts) < 4 or parts[3] in BESIDE else ".".join([*parts[:3], "block", *parts[3:]])
