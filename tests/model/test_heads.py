"""Heads: initialisation, the cascade's offsets, what is shared and what is stored."""

from pathlib import Path

import numpy as np
import pytest
from tiny import LLAMA, VOCAB

from mtpd_mlx.checkpoints.format import MAX_HEADS
from mtpd_mlx.cli import main
from mtpd_mlx.model.heads import MTPHeads, init_heads, shift_left
from mtpd_mlx.model.load_save import flatten
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx


def test_shift_left() -> None:
    x = mx.array([[1, 2, 3, 4]])
    assert shift_left(x, 1).tolist() == [[2, 3, 4, 0]]
    assert shift_left(x, 9).tolist() == [[0, 0, 0, 0]]


def test_heads_share_embedding_norm_and_output_head() -> None:
    names = set(flatten(init_heads(new_base(LLAMA, 0), 2, "postnorm", 0)))
    assert "heads.0.eh_proj.weight" in names and "heads.1.block.self_attn.q_proj.weight" in names
    assert not any(word in name for name in names for word in ("embed", "lm_head", "final"))


def test_heads_start_close_to_passing_the_state_on() -> None:
    heads = init_heads(new_base(LLAMA | {"attention_bias": True}, 0), 2, "prenorm", 0)
    for head in heads.heads:
        assert np.array_equal(np.array(head.eh_proj.weight)[:, :64], np.eye(64, dtype=np.float32))
    for name, w in flatten(heads).items():
        if name.endswith("bias"):
            assert not np.array(w).any()
        elif w.ndim == 1:
            assert (np.array(w) == 1).all()
        elif "block" in name:
            assert 0.015 < np.array(w).std() < 0.025
    first, second = (np.array(h.block.mlp.up_proj.weight) for h in heads.heads)
    assert not np.array_equal(first, second)
    again = init_heads(new_base(LLAMA, 0), 2, "prenorm", 0)
    other = init_heads(new_base(LLAMA, 0), 2, "prenorm", 1)
    assert np.array_equal(
        np.array(again.heads[0].block.mlp.up_proj.weight),
        np.array(init_heads(new_base(LLAMA, 0), 2, "prenorm", 0).heads[0].block.mlp.up_proj.weight),
    )
    assert not np.array_equal(
        np.array(again.heads[0].block.mlp.up_proj.weight), np.array(other.heads[0].block.mlp.up_proj.weight)
    )


@pytest.mark.parametrize("source", ["postnorm", "prenorm"])
def test_head_k_sees_exactly_tokens_up_to_i_plus_k(source: str) -> None:
    """Changing x_j changes row i of head k if and only if j <= i + k."""
    base = new_base(LLAMA, 0)
    heads = init_heads(base, 3, source, 0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (1, 12))
    j = 7
    changed = tokens.copy()
    changed[0, j] = (changed[0, j] + 1) % VOCAB
    a, b = (heads.cascade(base, base.trunk(mx.array(t)), mx.array(t)) for t in (tokens, changed))
    for k, (x, y) in enumerate(zip(a, b, strict=True), start=1):
        different = np.abs(np.array(x - y)).max(axis=-1)[0] > 0
        assert different.tolist() == [i + k >= j for i in range(12)]


def test_number_of_heads_is_checked() -> None:
    for count in (0, MAX_HEADS + 1):
        with pytest.raises(ValueError, match=f"got {count}, expected 1..64"):
            MTPHeads(new_base(LLAMA, 0), count, "postnorm")


def test_more_heads_than_a_checkpoint_holds_are_refused_before_anything_is_written(
    tiny_checkpoint: Path, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    for command in (
        ["train", "--model", str(tiny_base), "--data", str(text_data), "--num-heads", "65"],
        ["extend", str(tiny_checkpoint), "--to", "65", "--data", str(text_data)],
        ["extend", str(tiny_checkpoint), "--to", "70", "--train-free", "--overwrite"],
    ):
        assert main([*command, "--out", str(out)]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "expected 1..64" in lines[0] and not out.exists()
