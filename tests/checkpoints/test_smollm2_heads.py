"""The heads that are shipped for SmolLM2-135M-Instruct: whole, of the base their card names, and small enough to track."""

import math
from pathlib import Path

import mtpd_mlx
from mtpd_mlx.checkpoints.format import WEIGHTS_NAME, read_config
from mtpd_mlx.files.safetensors import read_header

ASSETS = Path(mtpd_mlx.__file__).parent / "assets"
FOLDER = ASSETS / "smollm2-135m-instruct"
HIDDEN, INNER, KEYS = 576, 1536, 192  # sizes of the base: states, MLP, keys of all key heads


def test_the_card_speaks_of_these_heads() -> None:
    config, card = read_config(FOLDER), (FOLDER / "README.md").read_text(encoding="utf-8")
    assert (config.num_heads, config.hidden_source) == (4, "postnorm")
    assert config.quantization == {"group_size": 64, "bits": 8}
    assert config.base.fingerprint[:15] in card
    assert len(config.base.same_weights) == 1 and config.base.same_weights[0][:15] in card  # the integers of the GGUF file
    assert (config.base.hidden_size, config.base.vocab_size) == (HIDDEN, 49152)


def test_every_head_has_its_tensors() -> None:
    table, _ = read_header(FOLDER / WEIGHTS_NAME)
    matrices = {"eh_proj": 2 * HIDDEN * HIDDEN, "block.self_attn.k_proj": HIDDEN * KEYS, "block.mlp.down_proj": HIDDEN * INNER}
    for head in range(4):
        for name, size in matrices.items():
            assert 4 * math.prod(table[f"heads.{head}.{name}.weight"]["shape"]) == size  # four 8-bit numbers a word
    assert {name.split(".")[1] for name in table} == {"0", "1", "2", "3"}


def test_all_weights_together_are_at_most_32_mb() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*.safetensors")) <= 32_000_000
