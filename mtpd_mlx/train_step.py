"""The compiled training step: parameters and optimiser state are explicit trees, so nothing trains that is not in them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mtpd_mlx.base import Base
from mtpd_mlx.config import LossConfig, OptimConfig
from mtpd_mlx.data.packing import Batch
from mtpd_mlx.heads import MTPHeads, shift_left
from mtpd_mlx.losses import cross_entropy, heads_objective, target_masks
from mtpd_mlx.mlx_runtime import mx, optim

Tree = dict[str, Any]


class MatrixDecayAdamW(optim.AdamW):
    """AdamW that decays matrices only: norms and biases are left alone, as is customary."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Tree) -> mx.array:
        if parameter.ndim < 2:
            return optim.Adam.apply_single(self, gradient, parameter, state)
        return super().apply_single(gradient, parameter, state)


def make_optimizer(cfg: OptimConfig) -> MatrixDecayAdamW:
    """Linear warm-up, then cosine decay to `min_lr_ratio` of the peak."""
    peak, floor = cfg.learning_rate, cfg.learning_rate * cfg.min_lr_ratio
    cosine = optim.cosine_decay(peak, max(cfg.iters - cfg.warmup, 1), floor)
    schedule: Callable = cosine
    if cfg.warmup > 0:
        ramp = optim.linear_schedule(peak / cfg.warmup, peak, cfg.warmup)
        schedule = optim.join_schedules([ramp, cosine], [cfg.warmup])
    if len(cfg.adam_betas) != 2:
        raise ValueError(f"adam_betas: got {len(cfg.adam_betas)} values, expected 2")
    return MatrixDecayAdamW(schedule, betas=list(cfg.adam_betas), weight_decay=cfg.weight_decay, bias_correction=True)


@dataclass
class Model:
    """Base and heads, and which of their parameters train. Old heads of an extension are frozen before this is made."""

    base: Base
    heads: MTPHeads
    joint: bool
    first_trained: int = 0

    def __post_init__(self) -> None:
        self.base.model.unfreeze() if self.joint else self.base.model.freeze()
        for head in self.heads.heads[: self.first_trained]:
            head.freeze()
        self.heads.train()

    def trainable(self) -> Tree:
        tree = {"heads": self.heads.trainable_parameters()}
        return tree | ({"base": self.base.model.trainable_parameters()} if self.joint else {})

    def bind(self, params: Tree) -> None:
        """Points the modules at `params` (real arrays, or tracers inside a transformation)."""
        self.heads.update(params["heads"])
        if self.joint:
            self.base.model.update(params["base"])

    def forward(self, tokens: mx.array) -> tuple[mx.array, list[mx.array]]:
        """tokens [B, T] -> main logits [B, T, V], head logits K x [B, T, V]. A frozen base gets no gradient."""
        hidden = self.base.trunk(tokens)
        if not self.joint:
            hidden = mx.stop_gradient(hidden)
        main = self.base.logits(self.base.norm(hidden))
        states = self.heads.cascade(self.base, hidden, tokens)
        return main, [self.base.logits(state) for state in states]


def cast(tree: Tree, dtype: mx.Dtype) -> Tree:
    from mlx.utils import tree_map

    return tree_map(lambda w: w.astype(dtype), tree)


def objective(model: Model, loss_cfg: LossConfig, tokens: mx.array, masks: mx.array, scale: mx.array) -> tuple:
    """(loss [], metrics [1 + trained heads + K]): main loss, loss per trained head, simulated CAR by depth."""
    main, head_logits = model.forward(tokens)
    masks = masks.astype(mx.float32)
    heads_loss, per_head, accepted = heads_objective(loss_cfg, head_logits, main, tokens, masks, scale, model.first_trained)
    main_loss = (cross_entropy(main, shift_left(tokens, 1)) * masks[0]).sum() * scale[0]
    loss = heads_loss + main_loss if model.joint else heads_loss
    return loss, mx.concatenate([mx.stop_gradient(main_loss)[None], per_head, accepted])


class Stepper:
    """Holds params and optimiser state; `step(batches)` is one optimiser step over its micro-batches, one evaluation each."""

    def __init__(self, model: Model, loss_cfg: LossConfig, cfg: OptimConfig):
        self.model, self.loss_cfg, self.cfg = model, loss_cfg, cfg
        self.optimizer = make_optimizer(cfg)
        self.dtype = getattr(mx, cfg.compute_dtype)
        self.params: Tree = model.trainable()
        self.optimizer.init(self.params)
        self.state: list[Any] = [self.params, self.optimizer.state]
        self._compile()

    def _compile(self) -> None:
        params, captured = self.params, self.state

        def loss_fn(values: Tree, tokens: mx.array, masks: mx.array, scale: mx.array) -> tuple:
            self.model.bind(cast(values, self.dtype))
            return objective(self.model, self.loss_cfg, tokens, masks, scale)

        gradient = mx.value_and_grad(loss_fn)

        def apply(gradients: Tree) -> mx.array:
            norm = mx.array(0.0)
            if self.cfg.max_grad_norm > 0:
                gradients, norm = optim.clip_grad_norm(gradients, self.cfg.max_grad_norm)
            params.update(self.optimizer.apply_gradients(gradients, params))
            return norm

        @partial(mx.compile, inputs=captured, outputs=captured)
        def whole(tokens: mx.array, masks: mx.array, scale: mx.array) -> tuple:
            (_, metrics), gradients = gradient(params, tokens, masks, scale)
            return metrics, apply(gradients)

        @partial(mx.compile, inputs=captured)
        def accumulate(so_far: Tree | None, tokens: mx.array, masks: mx.array, scale: mx.array) -> tuple:
            from mlx.utils import tree_map

            (_, metrics), gradients = gradient(params, tokens, masks, scale)
            return metrics, gradients if so_far is None else tree_map(mx.add, gradients, so_far)

        self._whole, self._accumulate = whole, accumulate
        self._apply = partial(mx.compile, inputs=captured, outputs=captured)(apply)

        @mx.compile
        def evaluate(values: Tree, tokens: mx.array, masks: mx.array) -> mx.array:
            self.model.bind(cast(values, self.dtype))
            return objective(self.model, self.loss_cfg, tokens, masks, mx.ones(masks.shape[0]))[1]

        self._evaluate = evaluate

    def step(self, batches: list[Batch]) -> tuple[mx.array, mx.array]:
        """(metrics, gradient norm): token-weighted over all micro-batches, so accumulation equals one large batch."""
        masks = [target_masks(b, self.model.heads.num_heads) for b in batches]
        counts = np.sum([m.sum(axis=(1, 2)) for m in masks], axis=0)
        scale = mx.array((1.0 / np.maximum(counts, 1)).astype(np.float32))
        if len(batches) == 1:
            metrics, norm = self._whole(mx.array(batches[0].tokens), mx.array(masks[0]), scale)
        else:
            gradients: Any = None
            metrics = mx.array(0.0)
            for batch, mask in zip(batches, masks, strict=True):
                part, gradients = self._accumulate(gradients, mx.array(batch.tokens), mx.array(mask), scale)
                metrics = metrics + part
                mx.eval(metrics, gradients)
            norm = self._apply(gradients)
        mx.eval(self.state, metrics, norm)
        return metrics, norm

    def evaluate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(summed metrics, counted positions [K + 1]) of one validation batch."""
        masks = target_masks(batch, self.model.heads.num_heads)
        metrics = self._evaluate(self.params, mx.array(batch.tokens), mx.array(masks))
        return np.array(metrics), masks.sum(axis=(1, 2))

    def sync(self) -> None:
        """Leaves the modules holding the real float32 parameters (tracing leaves tracers in them)."""
        self.model.bind(self.params)

    def restore(self, params: Tree, optimizer_state: Tree) -> None:
        from mlx.utils import tree_unflatten

        self.params.update(tree_unflatten(list(params.items())))
        self.optimizer.state.update(tree_unflatten(list(optimizer_state.items())))
        mx.eval(self.state)
