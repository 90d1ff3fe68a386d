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
    """`extras`: the tensors beside the block, where {k} is the head, {n} num_hidden_layers + k, {a} 2k and {b} 2k + 1;
    `block`: prefix of the block; `mlp`: of its second half, where blocks hold one branch each;
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
    mlp: str | None = None

    def names(self, k: int, num_layers: int) -> dict[str, str]:
        """hnorm, enorm, eh_proj, post_norm -> the tensor of head k (0..K-1)."""
        return {ours: _filled(name, k, num_layers) for ours, name in self.extras.items()}

    def prefix(self, k: int, num_layers: int) -> str:
        return _filled(self.block, k, num_layers)

    def prefixes(self, k: int, num_layers: int) -> dict[str, str]:
        """Where the halves of head k's block lie -> where they lie in our block; of blocks with both branches one."""
        whole = self.prefix(k, num_layers)
        return {whole: ""} if self.mlp is None else {whole: "attention.", _filled(self.mlp, k, num_layers): "mlp."}


def _filled(name: str, k: int, num_layers: int) -> str:
    return name.format(k=k, n=num_layers + k, a=2 * k, b=2 * k + 1)


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
    # Nemotron 3 Super and later: an attention block and an MLP block
    "nemotron": Layout(
        {
            "hnorm": "mtp.layers.{a}.hnorm.weight",
            "enorm": "mtp.layers.{a}.enorm.weight",
            "eh_proj": "mtp.layers.{a}.eh_proj.weight",
            "post_norm": "mtp.layers.{b}.final_layernorm.weight",
        },
        "mtp.layers.{a}.",
        False,
        ("num_nextn_predict_layers",),
        writes=1,
        because="of more, SGLang stops at an assertion",
        mlp="mtp.layers.{b}.",
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
