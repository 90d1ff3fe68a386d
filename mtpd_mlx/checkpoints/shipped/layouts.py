"""`Layout`: names, order and norms of each layout of shipped heads.
Called by all of shipped/, and by checkpoints/fingerprint.py.

Engines do not agree on what a second head takes from the first. transformers passes the state after the head's own final norm,
and so do we; vLLM's class of GLM-4.5 passes the one before it. vLLM's classes of DeepSeek, GLM and MiMo also set the embedding
at the first position to zero, which neither transformers nor we do.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """`extras`: the tensors beside the block, {k} being the head and {n} num_hidden_layers + k; `block`: prefix of the block;
    `hidden_first`: the projection's input is [hidden; embedding], as ours, and not [embedding; hidden]; `announce`: the keys of
    config.json that give the number of heads, the first of which is written; `most`: heads that the layout has names for;
    `writes`: heads that programs read rightly, where that is fewer, and `because`: what they do with more."""

    extras: dict[str, str]
    block: str
    hidden_first: bool
    announce: tuple[str, ...]
    most: int | None = None
    writes: int | None = None
    because: str = "the layout has names for no more"

    def names(self, k: int, num_layers: int) -> dict[str, str]:
        """hnorm, enorm, eh_proj, post_norm -> the tensor of head k (0..K-1)."""
        return {ours: name.format(k=k, n=num_layers + k) for ours, name in self.extras.items()}

    def prefix(self, k: int, num_layers: int) -> str:
        return self.block.format(k=k, n=num_layers + k)


DEFAULT_LAYOUT = "nextn"  # of what is written, where none is asked for
LAYOUTS: dict[str, Layout] = {
    # DeepSeek-V3, GLM-4.5: heads are further layers
    "nextn": Layout(
        {
            "hnorm": "model.layers.{n}.hnorm.weight",
            "enorm": "model.layers.{n}.enorm.weight",
            "eh_proj": "model.layers.{n}.eh_proj.weight",
            "post_norm": "model.layers.{n}.shared_head.norm.weight",
        },
        "model.layers.{n}.",
        False,
        ("num_nextn_predict_layers", "num_mtp_layers"),
    ),
    # Qwen3-Next, Qwen3.5
    "mtp": Layout(
        {
            "hnorm": "mtp.pre_fc_norm_hidden.weight",
            "enorm": "mtp.pre_fc_norm_embedding.weight",
            "eh_proj": "mtp.fc.weight",
            "post_norm": "mtp.norm.weight",
        },
        "mtp.layers.{k}.",
        False,
        ("mtp_num_hidden_layers", "num_nextn_predict_layers"),
        most=1,
    ),
    # MiMo
    "mimo": Layout(
        {
            "hnorm": "model.mtp_layers.{k}.hidden_layernorm.weight",
            "enorm": "model.mtp_layers.{k}.token_layernorm.weight",
            "eh_proj": "model.mtp_layers.{k}.input_proj.weight",
            "post_norm": "model.mtp_layers.{k}.final_layernorm.weight",
        },
        "model.mtp_layers.{k}.",
        True,
        ("num_nextn_predict_layers",),
        writes=1,
        because="of more, vLLM stops at an assertion and SGLang silently keeps the last; use --format nextn or vllm",
    ),
}
TRANSFORMERS, LAYER_TYPES = "num_mtp_layers", "mtp_layer_types"  # what transformers' MTP decoding reads of config.json
BASE = "mtpd_base"  # key of config.json, where a folder holds the heads alone: the base that they belong to
COPIES = ("embed_tokens.weight", "shared_head.head.weight")  # of the base's ends, which nextn checkpoints repeat per head
HEADS_FILE = "mtp-heads.safetensors"  # beside the weights; who follows the index (transformers, vLLM, SGLang) finds it
HEADS_FOLDER, THE_FOLDER_ABOVE = "heads", "../"  # of --format vllm --with-base: in the base's folder, and how it names that one
LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def is_shipped(name: str, num_layers: int) -> bool:
    """Whether a tensor of a checkpoint belongs to shipped heads."""
    layer = LAYER.match(name)
    return name.startswith(("mtp.", "model.mtp.", "model.mtp_layers.")) or (layer is not None and int(layer[1]) >= num_layers)
