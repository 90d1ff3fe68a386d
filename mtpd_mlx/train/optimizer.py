"""`make_optimizer`: AdamW, or Muon for the matrices of blocks with AdamW for all else, and their learning rates.
Called by train/step.py."""

from collections.abc import Callable
from typing import Any

from mtpd_mlx.model.runtime import mx, optim
from mtpd_mlx.options.train import FINE_RATE, OptimConfig

Tree = dict[str, Any]
ADAMW_RMS = 0.2  # about the RMS of an AdamW step at learning rate 1
MOMENTUM = 0.95
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # K. Jordan's polynomial
STACK_SIZE = 1 << 24  # numbers in matrices that are made orthogonal together: 64 MB


class MatrixDecayAdamW(optim.AdamW):
    """AdamW that decays matrices only: norms and biases are left alone, as is customary."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Tree) -> mx.array:
        if parameter.ndim < 2:
            return optim.Adam.apply_single(self, gradient, parameter, state)
        return super().apply_single(gradient, parameter, state)


class BlockMuon(MatrixDecayAdamW):
    """Muon for the matrices of blocks (K. Jordan et al. 2024: momentum, made orthogonal by Newton-Schulz), AdamW for the rest.

    Steps are scaled to about the RMS of AdamW's and decay is decoupled (Moonlight, arXiv 2502.16982, eq. 4), so that learning
    rates are of one order. Muon's state is one array per matrix, "v"; AdamW's are two, "m" and "v". Matrices of one shape are
    made orthogonal together: one by one, as mlx.optimizers.Muon does it, a GPU waits for the host (docs/log.md).
    """

    def init(self, parameters: Tree) -> None:
        super().init(parameters)
        for name in block_matrices(parameters):
            del node(self.state, name)["m"]

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Tree) -> mx.array:
        """Of a matrix of a block its momentum (Nesterov's), from which apply_gradients makes the step."""
        if "m" in state:
            return super().apply_single(gradient, parameter, state)
        state["v"] = MOMENTUM * state["v"] + (1 - MOMENTUM) * gradient
        return MOMENTUM * state["v"] + (1 - MOMENTUM) * gradient

    def apply_gradients(self, gradients: Tree, parameters: Tree) -> Tree:
        updated = super().apply_gradients(gradients, parameters)
        kept = 1 - self.learning_rate * self.weight_decay
        for names in stacks(block_matrices(parameters)):
            momenta = [node(updated, name) for name in names]
            rows, columns = momenta[0].shape
            rate = self.learning_rate * ADAMW_RMS * max(rows, columns) ** 0.5
            for name, step in zip(names, orthogonal(mx.stack(momenta)), strict=True):
                parent, _, leaf = name.rpartition(".")
                node(updated, parent)[leaf] = kept * node(parameters, name) - rate * step
        return updated


def orthogonal(matrices: mx.array) -> mx.array:
    """[n, r, c] -> the nearest matrices with orthogonal rows or columns, roughly: five steps of Newton-Schulz."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.swapaxes(1, 2) if tall else matrices
    x = x / (mx.linalg.norm(x, axis=[1, 2], keepdims=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.swapaxes(1, 2)
        x = mx.addmm(a * x, mx.addmm(b * square, square, square, alpha=c), x)
    return x.swapaxes(1, 2) if tall else x


def block_matrices(parameters: Tree) -> dict[str, tuple[int, int]]:
    """Names and shapes of the matrices of numbered modules ("model.layers.0.mlp.up_proj.weight"), as blocks and heads are;
    embeddings and output heads are none. Experts stacked in one array [E, ..] are no matrix: they stay with AdamW."""
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(parameters)
    return {name: w.shape for name, w in flat if w.ndim == 2 and any(part.isdigit() for part in name.split("."))}


def stacks(shapes: dict[str, tuple[int, int]]) -> list[list[str]]:
    """Names of matrices of one shape, together no more than STACK_SIZE numbers."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    parts = []
    for (rows, columns), names in by_shape.items():
        size = max(1, STACK_SIZE // (rows * columns))
        parts += [names[i : i + size] for i in range(0, len(names), size)]
    return parts


def node(tree: Any, name: str) -> Any:
    """What lies at "heads.0.weight" in a tree of dictionaries and lists."""
    for part in name.split("."):
        tree = tree[int(part) if isinstance(tree, list) else part]
    return tree


def make_optimizer(cfg: OptimConfig) -> MatrixDecayAdamW:
    """Linear warm-up, then cosine decay to `min_lr_ratio` of the peak (options.with_rate chooses optimiser and peak; without it
    AdamW at FINE_RATE)."""
    peak = FINE_RATE if cfg.learning_rate is None else cfg.learning_rate
    floor = peak * cfg.min_lr_ratio
    warmup = min(cfg.warmup, cfg.iters // 2)
    cosine = optim.cosine_decay(peak, max(cfg.iters - warmup, 1), floor)
    schedule: Callable[[mx.array], mx.array] = cosine
    if warmup > 0:
        ramp = optim.linear_schedule(peak / warmup, peak, warmup)
        schedule = optim.join_schedules([ramp, cosine], [warmup])
    if len(cfg.adam_betas) != 2:
        raise ValueError(f"adam_betas: got {len(cfg.adam_betas)} values, expected 2")
    kind = BlockMuon if cfg.optimizer == "muon" else MatrixDecayAdamW
    return kind(schedule, betas=list(cfg.adam_betas), weight_decay=cfg.weight_decay, bias_correction=True)
