"""What `mtpd inspect` says that training needs, against what was measured (docs/log.md)."""

from pathlib import Path

import pytest
from tiny import LLAMA, write_base, write_quantised

from mtpd_mlx.families.config import read_dims
from mtpd_mlx.inspection.counts import Counts, block_parameters
from mtpd_mlx.inspection.describe import describe
from mtpd_mlx.inspection.folder_view import LocalView
from mtpd_mlx.inspection.memory import DEVICES, decode_bytes, train_bytes
from mtpd_mlx.options.hub import MemoryPlan

QWEN = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
DIMS = read_dims(QWEN)
PARAMETERS = 28 * block_parameters(DIMS, DIMS.layers[0]) + 151936 * 1024 + 1024
PLAIN = Counts(PARAMETERS, 2 * PARAMETERS, ["bfloat16"], 0)
FOUR_BIT = Counts(PARAMETERS, int(PARAMETERS * 4.5 / 8), ["bfloat16"], 197)


@pytest.mark.parametrize(
    ("counts", "rows", "tokens", "device", "measured"),
    [
        (PLAIN, 4, 2048, "cuda", 8.69),  # H100, MTP-D
        (PLAIN, 1, 2048, "cuda", 6.34),  # without what two more arms of the benchmark held
        (FOUR_BIT, 1, 2048, "cuda", 5.98),  # H100, group 64
        (PLAIN, 1, 128, "cpu", 3.67),  # the whole process, KL
        (PLAIN, 1, 128, "cpu", 4.14),  # the whole process, MTP-D, base made in float32
        (PLAIN, 1, 512, "cpu", 4.21),
        (PLAIN, 2, 512, "cpu", 4.63),
    ],
)
def test_at_least_what_was_measured(counts: Counts, rows: int, tokens: int, device: str, measured: float) -> None:
    said = train_bytes(DIMS, counts, MemoryPlan(4, rows, tokens), DEVICES[device]) / 1e9
    assert measured <= said <= 1.5 * measured


def small(**changes: int) -> dict:
    """The models of the second series: 2 layers, K = 4 unless told, V 512."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 768, "vocab_size": 512}
    return QWEN | sizes | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64} | changes


@pytest.mark.parametrize(
    ("config", "heads", "rows", "tokens", "measured"),
    [
        (small(), 4, 8, 128, 184),
        (small(), 4, 16, 128, 367),
        (small(), 2, 16, 128, 217),
        (small(), 4, 1, 1024, 279),
        (small(), 4, 1, 2048, 763),
        (small(num_attention_heads=16, num_key_value_heads=8, head_dim=16), 4, 1, 2048, 1975),
        (small(num_attention_heads=16, num_key_value_heads=8, head_dim=16), 1, 1, 2048, 933),
    ],
)
def test_activations_and_scores_on_the_cpu(config: dict, heads: int, rows: int, tokens: int, measured: float) -> None:
    """MB over what is held between steps (weights and moments), which is taken off here together with the runtime."""
    dims, device = read_dims(config), DEVICES["cpu"]
    counts = Counts(0, 0, ["float32"], 0)
    from mtpd_mlx.inspection.counts import head_parameters

    held = 12 * heads * head_parameters(dims) + device.runtime
    said = (train_bytes(dims, counts, MemoryPlan(heads, rows, tokens), device) - held) / 1e6
    assert measured <= said <= 1.5 * measured


def test_decoding_on_a_cpu_is_planned_in_float32(tmp_path: Path) -> None:
    """Whatever is stored: a quantised folder is unpacked there."""
    plain = write_base(tmp_path / "plain", LLAMA)
    packed = write_quantised(tmp_path / "packed", plain, 4, dtype="float16")
    needs = [describe(LocalView(folder))["needs"] for folder in (plain, packed)]
    assert needs[0]["decode_cpu_bytes"] == needs[1]["decode_cpu_bytes"] == needs[0]["decode_bytes"] > needs[1]["decode_bytes"]


def test_memory_grows_with_what_is_planned() -> None:
    dims, large, small_plan = read_dims(LLAMA), MemoryPlan(4, 8, 512, 256), MemoryPlan(1, 1, 64, 64)
    none, some = Counts(0, 0, [], 0), Counts(1 << 28, 1 << 30, ["float32"], 0)
    for device in DEVICES.values():
        least, more, most = (
            train_bytes(dims, counts, plan, device) for counts, plan in ((none, small_plan), (none, large), (some, large))
        )
        assert least < more < most
    assert decode_bytes(dims, 0, small_plan, 2) < decode_bytes(dims, 0, large, 2) < decode_bytes(dims, 0, large, 4)
    assert train_bytes(DIMS, PLAIN, MemoryPlan(), DEVICES["metal"]) > train_bytes(
        DIMS, PLAIN, MemoryPlan(), DEVICES["cuda"]
    )  # scores
