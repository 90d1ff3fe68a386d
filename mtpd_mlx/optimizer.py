"""The optimisers of training, and their learning rates: AdamW, or Muon for the matrices of blocks with AdamW for all else."""

from collections.abc import Callable
from typing import Any

from mtpd_mlx.config import FINE_RATE, OptimConfig
from mtpd_mlx.mlx_runtime import mx, optim

Tree = dict[str, Any]
ADAMW_RMS = 0.2  # about the RMS of an AdamW step at learning rate 1


class MatrixDecayAdamW(optim.AdamW):
    """AdamW that decays matrices only: norms and biases are left alone, as is customary."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Tree) -> mx.array:
        if parameter.ndim < 2:
            return optim.Adam.apply_single(self, gradient, parameter, state)
        return super().apply_single(gradient, parameter, state)


class BlockMuon(MatrixDecayAdamW):
    """Muon for the matrices of blocks (K. Jordan et al. 2024: momentum, made orthogonal by Newton-Schulz), AdamW for the rest.

    Steps are scaled to about the RMS of AdamW's and decay is decoupled (Moonlight, arXiv 2502.16982, eq. 4), so that learning
    rates are of one order. Muon's state is one array per matrix, "v"; AdamW's are two, "m" and "v".
    """

    def __init__(self, schedule: Any, **settings: Any):
        super().__init__(schedule, **settings)
        self._muon = optim.Muon(1.0, weight_decay=0.0)

    def init(self, parameters: Tree) -> None:
        from mlx.utils import tree_flatten

        super().init(parameters)
        flat: Any = tree_flatten(parameters)
        for name, w in flat:
            if is_block_matrix(name, w):
                del node(self.state, name)["m"]

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Tree) -> mx.array:
        if "m" in state:
            return super().apply_single(gradient, parameter, state)
        step = self._muon.apply_single(gradient, mx.zeros_like(parameter), state)  # its RMS: 1 / sqrt(columns)
        rate = self.learning_rate.astype(parameter.dtype)
        return parameter * (1 - rate * self.weight_decay) + rate * ADAMW_RMS * parameter.shape[1] ** 0.5 * step


def is_block_matrix(name: str, parameter: mx.array) -> bool:
    """A matrix of a numbered module ("model.layers.0.mlp.up_proj.weight"), as blocks and heads are; embeddings and output
    heads are none. Experts stacked in one array [E, ..] are no matrix: they stay with AdamW."""
    return parameter.ndim == 2 and any(part.isdigit() for part in name.split("."))


def node(tree: Any, name: str) -> Any:
    """What lies at "heads.0.weight" in a tree of dictionaries and lists."""
    for part in name.split("."):
        tree = tree[int(part) if isinstance(tree, list) else part]
    return tree


def make_optimizer(cfg: OptimConfig) -> MatrixDecayAdamW:
    """Linear warm-up, then cosine decay to `min_lr_ratio` of the peak (options.with_rate chooses one; without it FINE_RATE)."""
    peak = FINE_RATE if cfg.learning_rate is None else cfg.learning_rate
    floor = peak * cfg.min_lr_ratio
    warmup = min(cfg.warmup, cfg.iters // 2)
    cosine = optim.cosine_decay(peak, max(cfg.iters - warmup, 1), floor)
    schedule: Callable = cosine
    if warmup > 0:
        ramp = optim.linear_schedule(peak / warmup, peak, warmup)
        schedule = optim.join_schedules([ramp, cosine], [warmup])
    if len(cfg.adam_betas) != 2:
        raise ValueError(f"adam_betas: got {len(cfg.adam_betas)} values, expected 2")
    kind = BlockMuon if cfg.optimizer == "muon" else MatrixDecayAdamW
    return kind(schedule, betas=list(cfg.adam_betas), weight_decay=cfg.weight_decay, bias_correction=True)
