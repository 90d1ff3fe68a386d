"""What training heads and decoding need, estimated from above by the formulas that docs/log.md's measurements agree with."""

from dataclasses import dataclass

from mtpd_mlx.families.dims import Dims
from mtpd_mlx.inspection.counts import cache_bytes, head_parameters

LOGITS_BYTES = 4 * (160 << 20)  # blocks of logits in flight (fused_loss.CHUNK_BYTES and what its chain keeps)
RUNTIME_BYTES = 400 << 20


@dataclass(frozen=True)
class Plan:
    """num_heads K, rows and tokens of a micro-batch, positions decoded."""

    num_heads: int = 4
    batch_size: int = 4
    tokens: int = 2048
    positions: int = 4096


def train_bytes(dims: Dims, weights: int, plan: Plan, item: int) -> int:
    """A frozen base of `weights` bytes; heads in float32 with gradients and two AdamW moments; activations of the heads."""
    heads = plan.num_heads * head_parameters(dims)
    rows = plan.batch_size * plan.tokens
    width = 12 * dims.hidden_size + 4 * dims.intermediate_size  # kept per row and head for the backward pass
    return weights + 16 * heads + item * heads + rows * plan.num_heads * width * item + LOGITS_BYTES + RUNTIME_BYTES


def decode_bytes(dims: Dims, weights: int, plan: Plan, item: int) -> int:
    """Base and heads in the base's type, caches of both at `positions`."""
    positions = min(plan.positions, dims.context_length)
    heads = plan.num_heads * head_parameters(dims) * item
    return weights + heads + cache_bytes(dims, positions, dims.num_layers + plan.num_heads, item) + RUNTIME_BYTES
