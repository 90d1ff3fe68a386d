"""Muon for the matrices of blocks, AdamW for all else."""

import numpy as np
import pytest
from tiny import LLAMA, cycle_batch

from mtpd_mlx.losses.objective import Model
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LossConfig, OptimConfig
from mtpd_mlx.train import optimizer
from mtpd_mlx.train.optimizer import ADAMW_RMS, make_optimizer
from mtpd_mlx.train.step import Stepper

RATE, DECAY, MOMENTUM = 0.01, 0.1, 0.95
CFG = OptimConfig(iters=10, optimizer="muon", learning_rate=RATE, min_lr_ratio=1.0, warmup=0, weight_decay=DECAY)


def oracle(weight: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Muon in float64 with the same Newton-Schulz polynomial, on singular values."""
    moment = np.zeros_like(weight)
    for gradient in gradients:
        moment = MOMENTUM * moment + (1 - MOMENTUM) * gradient
        u, s, v = np.linalg.svd((1 - MOMENTUM) * gradient + MOMENTUM * moment, full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        step = (u * s) @ v
        weight = weight * (1 - RATE * DECAY) - RATE * ADAMW_RMS * max(weight.shape) ** 0.5 * step
    return weight


def test_matrices_take_the_steps_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of each shape, which are made orthogonal two at a time."""
    monkeypatch.setattr(optimizer, "STACK_SIZE", 130)
    rng = np.random.default_rng(0)
    shapes = 3 * [(6, 10), (10, 6), (8, 8)]
    weights = [rng.normal(size=shape) for shape in shapes]
    gradients = [[rng.normal(size=shape) for shape in shapes] for _ in range(3)]
    muon, params = make_optimizer(CFG), tree(weights)
    assert sorted(len(names) for names in optimizer.stacks(optimizer.block_matrices(params))) == [1, 1, 1, 2, 2, 2]
    muon.init(params)
    for step in gradients:
        params = muon.apply_gradients(tree(step), params)
    for i, weight in enumerate(weights):
        wanted = oracle(weight, [step[i] for step in gradients])
        np.testing.assert_allclose(np.array(params["heads"][i]["weight"]), wanted, rtol=2e-4, atol=2e-5)


def tree(matrices: list[np.ndarray]) -> dict:
    return {"heads": [{"weight": mx.array(matrix.astype(np.float32))} for matrix in matrices]}


def test_embeddings_and_vectors_keep_adamw() -> None:
    """Joint training: everything outside blocks and all vectors move as they do under AdamW; matrices of blocks do not."""
    moved = {}
    for name in ("adamw", "muon"):
        base = new_base(LLAMA, 0)
        cfg = OptimConfig(iters=10, optimizer=name, warmup=0)
        stepper = Stepper(Model(base, init_heads(base, 1, "postnorm", 0), True), LossConfig(), cfg)
        stepper.step([cycle_batch(2, 16, 0)])
        moved[name] = stepper.params, stepper.optimizer.state
    (adamw, _), (muon, state) = moved["adamw"], moved["muon"]
    layer, head = ("base", "model", "layers", 0), ("heads", "heads", 0)
    same = [("base", "model", "embed_tokens", "weight"), ("base", "model", "norm", "weight"), (*head, "hnorm", "weight")]
    other = [(*head, "eh_proj", "weight"), (*layer, "mlp", "up_proj", "weight")]
    for path in same + other:
        equal = np.allclose(np.array(at(adamw, path)), np.array(at(muon, path)), rtol=1e-6)
        assert equal == (path in same), path
        assert set(at(state, path)) == ({"m", "v"} if path in same else {"v"}), path


def at(tree: dict, path: tuple) -> dict:
    for part in path:
        tree = tree[part]
    return tree


def test_a_step_is_as_large_as_one_of_adamw() -> None:
    """RMS of a Muon step at learning rate 1, whatever the shape: ADAMW_RMS times what Newton-Schulz leaves, .7 to 1.2."""
    rng = np.random.default_rng(1)
    for shape in ((64, 256), (256, 64), (128, 128)):
        muon = make_optimizer(OptimConfig(iters=10, optimizer="muon", learning_rate=1.0, warmup=0, weight_decay=0.0))
        params = {"heads": [{"weight": mx.zeros(shape)}]}
        muon.init(params)
        after = muon.apply_gradients({"heads": [{"weight": mx.array(rng.normal(size=shape).astype(np.float32))}]}, params)
        rms = float(mx.sqrt(after["heads"][0]["weight"].square().mean()))
        assert 0.7 * ADAMW_RMS < rms < 1.2 * ADAMW_RMS, (shape, rms)


def test_a_warm_up_takes_at_most_half_of_the_steps() -> None:
    rates = []
    adamw = make_optimizer(OptimConfig(iters=8, learning_rate=1.0, warmup=50))
    params = {"heads": [{"weight": mx.zeros((4, 4))}]}
    adamw.init(params)
    for _ in range(8):
        params = adamw.apply_gradients({"heads": [{"weight": mx.ones((4, 4))}]}, params)
        rates.append(round(float(adamw.learning_rate), 3))
    assert rates[:4] == [0.25, 0.438, 0.625, 0.812] and rates[4] == max(rates) == 1.0 and rates[-1] < 0.5
