"""A base without its layers: what training from a cache holds in memory."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cache import make
from tiny import FAMILIES, LLAMA, write_base, write_quantised

from mtpd_mlx.model.base import Base, load_base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.teacher_cache.arrays import to_mlx
from mtpd_mlx.teacher_cache.reader import CachedDataset

DEEP: dict[str, Any] = LLAMA | {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12, "head_dim": 64}
KINDS = {"tied": DEEP, "untied": DEEP | {"tie_word_embeddings": False}}


def write_model(folder: Path, kind: str, quantised: bool) -> Path:
    plain = write_base(folder / "plain", KINDS[kind])
    return write_quantised(folder / "q", plain, 4, 64) if quantised else plain


def measured(folder: Path, **options: Any) -> tuple[Base, int, int]:
    """(base, active bytes it added, peak bytes while loading)."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    base = load_base(str(folder), **options)
    return base, mx.get_active_memory() - before, mx.get_peak_memory() - before


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_never_in_memory(kind: str, quantised: bool, tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind, quantised)
    whole, all_bytes, _ = measured(folder)
    ends, active, peak = measured(folder, ends_only=True)
    assert all_bytes > 0.9 * (folder / "model.safetensors").stat().st_size
    assert active < 0.15 * all_bytes and peak < 0.15 * all_bytes, (active, peak, all_bytes)
    assert ends.ends_only and not whole.ends_only and ends.is_quantized == quantised

    tokens = mx.array([[5, 6, 7, 8, 9]])
    hidden = whole.trunk(tokens)
    assert np.array_equal(np.array(whole.embed(tokens)), np.array(ends.embed(tokens)))
    assert np.array_equal(np.array(whole.logits(whole.norm(hidden))), np.array(ends.logits(ends.norm(hidden))))
    assert (ends.hidden_size, ends.vocab_size, ends.dtype) == (whole.hidden_size, whole.vocab_size, whole.dtype)
    with pytest.raises(ValueError, match="without its layers"):
        ends.trunk(tokens)


def test_dequantise_and_dtype(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "untied", True)
    whole, all_bytes, _ = measured(folder, dequantize=True, dtype=mx.bfloat16)
    ends, active, peak = measured(folder, dequantize=True, dtype=mx.bfloat16, ends_only=True)
    assert active < 0.15 * all_bytes and peak < 0.3 * all_bytes
    assert ends.dtype == mx.bfloat16 and not ends.is_quantized
    hidden = mx.random.normal((1, 3, 256)).astype(mx.bfloat16)
    assert np.array_equal(*(np.array(b.logits(b.norm(hidden)).astype(mx.float32)) for b in (whole, ends)))


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_on_cached_states_equal_heads_on_the_base(family: str, text_data: Path, tmp_path: Path) -> None:
    """New blocks are of the base's type, and the cascade needs nothing of the layers."""
    folder = write_base(tmp_path / "base", FAMILIES[family])
    make(folder, text_data, tmp_path / "cache")
    whole, ends = load_base(str(folder)), load_base(str(folder), ends_only=True)
    assert type(ends.new_block()) is type(whole.layers[-1])
    batch = CachedDataset(tmp_path / "cache", "train", 3, 0).batch(0)
    tokens = mx.array(batch.tokens)
    cached = init_heads(ends, 3, "postnorm", 1).cascade(ends, to_mlx(batch.hidden, batch.hidden_dtype), tokens)
    direct = init_heads(whole, 3, "postnorm", 1).cascade(whole, whole.trunk(tokens), tokens)
    for a, b in zip(cached, direct, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-4)


def test_broken_weights_are_one_line(tmp_path: Path, tiny_base: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((tiny_base / "config.json").read_text())
    content = (tiny_base / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 50])
    with pytest.raises(ValueError, match="broken") as error:
        load_base(str(broken), ends_only=True)
    assert "\n" not in str(error.value)
