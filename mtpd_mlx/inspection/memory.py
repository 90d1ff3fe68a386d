"""`train_bytes`, `decode_bytes`: memory that training heads and decoding need.
Called by inspection/describe.py. Training is estimated from above (tests/inspection/test_memory.py); Metal is unmeasured."""

from dataclasses import dataclass

from mtpd_mlx.families.dims import Dims
from mtpd_mlx.inspection.counts import Counts, cache_bytes, head_parameters, rewind_bytes, state_bytes, window_state_bytes
from mtpd_mlx.options.hub import MemoryPlan

RUNTIME_BYTES = 400 << 20  # of decoding
CPU_ITEM = 4  # bytes of what CPUs compute in (--dtype auto), where quantised bases are unpacked to decode


@dataclass(frozen=True)
class Device:
    """item: bytes of the compute type (--compute-dtype auto). chunk: CHUNK_BYTES of losses/chunked.py. in_flight: what of
    queued work's buffers lives at once; on CUDA 2.3 GB were measured, whatever K and the batch (bound_queue in
    model/runtime.py). fused: attention's backward pass keeps no scores (cuDNN); MLX has no such kernel for Metal and CPUs.
    unpacks: products with a quantised output head make it whole first (assumed)."""

    item: int
    chunk: int
    in_flight: float
    runtime: float
    fused: bool = False
    unpacks: bool = False


DEVICES = {
    "cuda": Device(2, 160 << 20, 2.4e9, 0.8e9, fused=True, unpacks=True),
    "metal": Device(2, 64 << 20, 7e9, 0.4e9),
    "cpu": Device(4, 1 << 20, 8 << 20, 0.3e9),
}
QUEUED = 0.75  # share of all blocks of a short step that live at once: 4.1 of 6.2 GB were measured with a longer queue


def train_bytes(dims: Dims, counts: Counts, plan: MemoryPlan, device: Device) -> int:
    """Heads of a frozen base, MTP-D over the whole vocabulary, without --grad-checkpoint."""
    heads, rows = plan.num_heads * head_parameters(dims), plan.batch_size * plan.max_seq_length
    base = counts.stored if counts.quantised else counts.parameters * device.item  # held in the compute type
    # float32: weights and two moments, the new ones beside the old while a step ends, gradients; and a cast for computing.
    states = heads * (12 + 12 + 4 + (device.item if device.item < 4 else 0))
    kept = rows * plan.num_heads * device.item * _kept_per_row(dims) + _scores(dims, plan, device)
    total = base + states + kept + _logits(dims, counts, plan, device) + device.runtime
    return int(max(total, counts.stored + device.runtime))  # the second: while it is loaded


def _kept_per_row(dims: Dims) -> int:
    """Numbers that one head keeps of one position for its backward pass, as measured on the CPU (d 256, MLP 768: 10,400)."""
    own = dims.geometry(dims.head_layer)
    q, kv = dims.num_heads * own.head_dim, own.num_kv_heads * own.head_dim
    size = dims.intermediate_size
    if dims.head_layer.experts and (experts := dims.experts) is not None:
        size = experts.chosen * experts.size + experts.shared + size * experts.parallel
    return 16 * dims.hidden_size + 4 * q + 4 * kv + 6 * size


def _scores(dims: Dims, plan: MemoryPlan, device: Device) -> int:
    """Attention scores [B, heads, T, T], one of each head of the cascade and three more at work."""
    size = dims.geometry(dims.head_layer).head_dim
    if device.fused and size <= 128 and size % 8 == 0 and not dims.sinks:  # with sinks: assumed
        return 0
    return (plan.num_heads + 3) * plan.batch_size * dims.num_heads * plan.max_seq_length**2 * device.item


def _logits(dims: Dims, counts: Counts, plan: MemoryPlan, device: Device) -> float:
    """Blocks of logits and of their gradients, for the main head and each head, and what is unpacked for their products."""
    rows, width = plan.batch_size * plan.max_seq_length, dims.vocab_size * device.item
    blocks = 2 * (plan.num_heads + 1) * -(-rows // max(32, device.chunk // width))
    most = max(device.in_flight, 8.0 * 32 * width)
    made = 2 * (plan.num_heads + 1) * rows * width
    if counts.quantised and device.unpacks:
        made += blocks * width * dims.hidden_size
    return min(QUEUED * made, most)


def decode_bytes(dims: Dims, weights: int, plan: MemoryPlan, item: int, windows: bool = False) -> int:
    """Base and heads in the type that is computed in (`item` bytes), caches of both at `positions`. `windows`: sliding layers
    keep their window alone, as in rounds over growing caches."""
    positions = min(plan.context, dims.context_length)
    heads = plan.num_heads * head_parameters(dims) * item
    caches = cache_bytes(dims, positions, plan.num_heads, item, windows)
    caches += window_state_bytes(dims, positions, item) if windows else 0
    caches += state_bytes(dims, item) + rewind_bytes(dims, item)
    return weights + heads + caches + RUNTIME_BYTES
