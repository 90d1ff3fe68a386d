"""MLX losses against the float64 oracle, masks, alignment, and what gets a gradient."""

import numpy as np
import pytest
from oracles import losses as oracle
from tiny import LLAMA, VOCAB, cycle_batch

from mtpd_mlx.data import Batch
from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.losses.definitions import Teacher, heads_objective, reverse_top_n_kl, top_n_kl
from mtpd_mlx.losses.objective import Model, objective
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LOSSES, LossConfig, OptimConfig
from mtpd_mlx.train.step import Stepper

ROWS, LENGTH, V, K = 2, 9, 11, 3


def example(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, Batch]:
    rng = np.random.default_rng(seed)
    heads = [rng.normal(0, 2, (ROWS, LENGTH, V)).astype(np.float32) for _ in range(K)]
    main = rng.normal(0, 2, (ROWS, LENGTH, V)).astype(np.float32)
    segments = np.array([[1] * 9, [1, 1, 1, 1, 1, 2, 2, 2, 0]], dtype=np.int32)
    mask = rng.random((ROWS, LENGTH)) > 0.2
    return heads, main, Batch(rng.integers(0, V, (ROWS, LENGTH)).astype(np.int32), segments, mask)


def ours(cfg: LossConfig, heads: list, main: np.ndarray, batch: Batch) -> tuple:
    masks = target_masks(batch, K)
    scale = mx.array((1.0 / np.maximum(masks.sum(axis=(1, 2)), 1)).astype(np.float32))
    arrays = [mx.array(h) if isinstance(h, np.ndarray) else h for h in heads]
    return heads_objective(cfg, arrays, mx.array(main), mx.array(batch.tokens), mx.array(masks).astype(mx.float32), scale)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("top_n", [4, 100])
def test_values_and_gradients_equal_the_oracle(loss: str, top_n: int) -> None:
    heads, main, batch = example()
    cfg = LossConfig(loss=loss, alpha=(0.3, 0.2, 0.1), beta=(0.5, 1.0, 1.5), top_n=top_n)
    value, per_head, _ = ours(cfg, heads, main, batch)

    def expected(students: list[np.ndarray]) -> tuple[float, list[float]]:
        fixed = (main, batch.tokens, batch.segments, batch.loss_mask, list(cfg.alpha), list(cfg.beta), top_n, cfg.eta)
        return oracle.objective(loss, students, *fixed)

    want, want_per_head = expected(heads)
    assert value.item() == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(np.array(per_head), want_per_head, rtol=1e-5)
    if loss == "lk":
        return  # its weight is detached, which finite differences cannot see
    gradient = mx.grad(lambda h: ours(cfg, [h, *heads[1:]], main, batch)[0])(mx.array(heads[0]))
    rng = np.random.default_rng(3)
    for b, i, v in zip(rng.integers(0, ROWS, 12), rng.integers(0, 6, 12), rng.integers(0, V, 12), strict=True):
        moved = [h.astype(np.float64) for h in heads]
        difference = 0.0
        for sign in (1, -1):
            moved[0][b, i, v] = float(heads[0][b, i, v]) + sign * 1e-5
            difference += sign * expected(moved)[0]
        assert gradient[int(b), int(i), int(v)].item() == pytest.approx(difference / 2e-5, abs=2e-5)


def test_lk_weight_is_detached() -> None:
    heads, main, batch = example()
    gradient = mx.grad(lambda h: ours(LossConfig(loss="lk"), [h, *heads[1:]], main, batch)[0])(mx.array(heads[0]))
    b, i, k = 0, 1, 1
    assert target_masks(batch, K)[k, b, i]
    p, q = heads[0][b, i], main[b, i + k]
    weight = np.exp(-3.0 * (1.0 - oracle.tv(p, q)))
    count = target_masks(batch, K)[k].sum()
    for v in range(V):
        values = []
        for sign in (1, -1):
            moved = p.astype(np.float64)
            moved[v] += sign * 1e-5
            values.append(weight * oracle.top_n_kl(moved, q, V) + (1 - weight) * oracle.tv(moved, q))
        assert gradient[b, i, v].item() == pytest.approx((values[0] - values[1]) / 2e-5 / count, abs=2e-5)


def test_top_n_of_the_whole_vocabulary_is_full_kl() -> None:
    heads, main, _ = example()
    full = top_n_kl(mx.array(heads[0]), Teacher.detach(mx.array(main), V))
    every = top_n_kl(mx.array(heads[0]), Teacher.detach(mx.array(main), V - 1 + 1))
    almost = top_n_kl(mx.array(heads[0]), Teacher.detach(mx.array(main), V - 1))
    assert np.array_equal(np.array(full), np.array(every)) and not np.allclose(np.array(full), np.array(almost))
    assert np.abs(np.array(top_n_kl(mx.array(main), Teacher.detach(mx.array(main), V)))).max() < 1e-6


@pytest.mark.parametrize("n", [4, V])
def test_reverse_kl_equals_the_oracle(n: int) -> None:
    heads, main, _ = example()
    got = np.array(reverse_top_n_kl(mx.array(heads[0]), Teacher.detach(mx.array(main), n)))
    want = [[oracle.reverse_top_n_kl(heads[0][b, i], main[b, i], n) for i in range(LENGTH)] for b in range(ROWS)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_teacher_that_is_not_detached_gets_a_gradient() -> None:
    heads, main, batch = example()
    free = LossConfig(loss="mtpd", detach_teacher=False)
    assert np.abs(np.array(mx.grad(lambda m: ours(free, heads, m, batch)[0])(mx.array(main)))).max() > 0
    base = new_base(LLAMA, 0)
    with pytest.raises(ValueError, match="expected --train joint"):
        Model(base, init_heads(base, 1, "postnorm", 0), joint=False).fused_loss(free)


def test_masks_equal_the_oracle() -> None:
    _, _, batch = example()
    masks = target_masks(batch, K)
    for k in range(K + 1):
        for b in range(ROWS):
            for i in range(LENGTH):
                assert masks[k, b, i] == oracle.counted(batch.segments, batch.loss_mask, b, i, k)


def test_rows_shorter_than_the_cascade_count_nothing() -> None:
    masks = target_masks(cycle_batch(2, 3), 5)
    assert masks[1].any() and not masks[2:].any()


def test_only_the_right_shift_can_be_learned() -> None:
    """x_{i+k+1} = x_i + 3 (k + 1) in the planted text: a head reading or predicting any other offset would not match."""
    model = Model(new_base(LLAMA, 0), init_heads(new_base(LLAMA, 0), 2, "postnorm", 0), joint=True)
    stepper = Stepper(model, LossConfig(loss="ce", alpha=(1.0,)), OptimConfig(iters=80, warmup=5, learning_rate=5e-3))
    for i in range(80):
        stepper.step([cycle_batch(8, 24, seed=i)])
    batch = cycle_batch(4, 24, seed=1000)
    stepper.sync()
    main, heads = model.states(mx.array(batch.tokens))
    for k, hidden in enumerate([main, *heads]):
        guess = np.array(mx.argmax(model.base.logits(hidden), axis=-1))[:, : 24 - k - 1]
        shares = {shift: float((guess == (batch.tokens[:, : 24 - k - 1] + 3 * shift) % VOCAB).mean()) for shift in range(6)}
        assert max(shares, key=shares.__getitem__) == k + 1 and shares[k + 1] > 0.9


@pytest.mark.parametrize("loss", LOSSES)
def test_frozen_base_is_untouched_and_heads_move(loss: str) -> None:
    base = new_base(LLAMA, 0)
    before = np.array(base.layers[0].mlp.up_proj.weight), np.array(base.model.model.embed_tokens.weight)
    model = Model(base, init_heads(base, 2, "postnorm", 0), joint=False)
    start = np.array(model.heads.heads[1].block.mlp.up_proj.weight)
    stepper = Stepper(model, LossConfig(loss=loss), OptimConfig(iters=3, warmup=0, learning_rate=1e-3))
    stepper.step([cycle_batch(2, 16)])
    stepper.sync()
    assert np.array_equal(before[0], np.array(base.layers[0].mlp.up_proj.weight))
    assert np.array_equal(before[1], np.array(base.model.model.embed_tokens.weight))
    assert "base" not in stepper.params
    assert not np.array_equal(start, np.array(model.heads.heads[1].block.mlp.up_proj.weight))


def test_teacher_is_detached_and_heads_reach_the_base_in_joint_mode() -> None:
    """The gradient with respect to the main logits is zero; the base still gets one through h^0."""
    heads, main, batch = example()
    cfg = LossConfig(loss="mtpd")
    assert np.abs(np.array(mx.grad(lambda m: ours(cfg, heads, m, batch)[0])(mx.array(main)))).max() == 0.0
    base = new_base(LLAMA, 0)
    model = Model(base, init_heads(base, 2, "postnorm", 0), joint=True)
    text = cycle_batch(2, 16)
    masks = target_masks(text, 2)
    masks[0] = False  # no main loss: what reaches the base comes through the heads
    scale = mx.array(1.0 / np.maximum(masks.sum(axis=(1, 2)), 1))

    def loss(params: dict) -> mx.array:
        model.bind(params)
        return objective(model, model.fused_loss(cfg), mx.array(text.tokens), mx.array(masks), scale)[0]

    gradient = mx.grad(loss)(model.trainable())
    assert mx.abs(gradient["base"]["model"]["layers"][0]["mlp"]["up_proj"]["weight"]).max().item() > 0


def test_accumulation_equals_one_large_batch() -> None:
    parts = [cycle_batch(2, 16, seed=s) for s in (0, 1)]
    whole = Batch(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("tokens", "segments", "loss_mask")))
    results = []
    for batches in ([whole], parts):
        base = new_base(LLAMA, 0)
        stepper = Stepper(Model(base, init_heads(base, 2, "postnorm", 0), True), LossConfig(), OptimConfig(iters=5, warmup=0))
        results.append([np.array(stepper.step(batches)[0]) for _ in range(3)])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_weights_per_head_are_counted() -> None:
    heads, main, batch = example()
    with pytest.raises(ValueError, match="alpha: got 2 values, expected 1 or 3"):
        ours(LossConfig(alpha=(0.1, 0.2)), heads, main, batch)
