"""`Stepper`: the compiled training step. Parameters and optimiser state are explicit trees: nothing else trains.
Called by train/loop.py and tools."""

from functools import partial
from typing import Any

import numpy as np

from mtpd_mlx.data.packing import Batch, target_masks
from mtpd_mlx.losses.objective import Model, Tree, objective
from mtpd_mlx.model.compute import dtype_of
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LossConfig, OptimConfig
from mtpd_mlx.ranks.world import World
from mtpd_mlx.teacher_cache.arrays import to_mlx
from mtpd_mlx.teacher_cache.reader import CachedBatch
from mtpd_mlx.train import ema
from mtpd_mlx.train.optimizer import make_optimizer

RISE = 0.1  # of all steps: how long the distillation term takes to rise where it does not begin at once


def cast(tree: Tree, dtype: mx.Dtype) -> Tree:
    """Every array of the tree in `dtype`."""
    from mlx.utils import tree_map

    return tree_map(lambda w: w.astype(dtype), tree)


class Stepper:
    """Holds params and optimiser state; `step(batches)` is one optimiser step over its micro-batches, one evaluation each.

    With several ranks each takes its share of every batch's rows; gradients and metrics are summed over all.
    """

    def __init__(
        self,
        model: Model,
        loss_cfg: LossConfig,
        cfg: OptimConfig,
        world: World | None = None,
        stored: int | None = None,
    ):
        """`stored`: how many of a cache's teacher logits per position serve the loss (None: the teacher is computed)."""
        self.model, self.cfg, self.world, self.stored = model, cfg, world or World.alone(), stored
        self.loss_cfg = loss_cfg
        self.fused = model.fused_loss(loss_cfg)
        self.optimizer = make_optimizer(cfg)
        self.dtype = compute_dtype(cfg)
        self.params: Tree = model.trainable()
        self.frozen = model.frozen_heads()
        self._frozen_cast = cast(self.frozen, self.dtype)  # else they would promote every later head to float32
        self.optimizer.init(self.params)
        self.teacher: Tree = ema.copied(self.params["base"]) if loss_cfg.teacher == "ema" else {}
        self.state: list[Any] = [self.params, self.optimizer.state, self.teacher]
        self._compile()

    def _kl_share(self) -> mx.array | None:
        """Of the distillation term: 0 up to the step of `kl_start`, then rising to 1 over RISE of all steps; None: always 1."""
        start = self.loss_cfg.kl_start
        if start == 0:
            return None
        done = self.optimizer.state["step"].astype(mx.float32) / self.cfg.iters
        return mx.clip((done - start) / RISE, 0.0, 1.0)

    def _compile(self) -> None:
        from mlx.utils import tree_map

        params, captured = self.params, self.state

        def loss_fn(values: Tree, *inputs: Any) -> tuple[mx.array, mx.array]:
            self._bind_cast(values)
            teacher = self._teacher_cast(self.teacher)
            return objective(self.model, self.fused, *inputs, kl_share=self._kl_share(), teacher=teacher)

        gradient = mx.value_and_grad(loss_fn)

        def apply(metrics: mx.array, gradients: Tree) -> tuple[mx.array, mx.array, mx.array]:
            """(metrics of all ranks, gradient norm, did the step count): a non-finite gradient leaves parameters and optimiser
            as they were."""
            metrics = self.world.sum(metrics)
            gradients = self.world.sum(gradients, getattr(mx, self.cfg.grad_reduce_dtype), after=metrics)
            norm = global_norm(gradients)
            if self.cfg.max_grad_norm > 0:
                scale = mx.minimum(self.cfg.max_grad_norm / (norm + 1e-6), 1.0)
                gradients = tree_map(lambda g: g * scale.astype(g.dtype), gradients)
            finite = mx.isfinite(norm)
            before = tree_map(lambda w: w, self.state)
            step = self.optimizer.state["step"]
            params.update(self.optimizer.apply_gradients(gradients, params))
            if self.teacher:
                self.teacher.update(ema.moved(self.teacher, params["base"], ema.decay(step, self.loss_cfg.ema_decay)))
            for old, now in zip(before, self.state, strict=True):
                now.update(tree_map(lambda a, b: mx.where(finite, b, a), old, now))
            return metrics, norm, finite

        @partial(mx.compile, inputs=captured, outputs=captured)
        def whole(*inputs: Any) -> tuple[mx.array, mx.array, mx.array]:
            (_, metrics), gradients = gradient(params, *inputs)
            return apply(metrics, gradients)

        @partial(mx.compile, inputs=captured)
        def accumulate(so_far: Tree | None, *inputs: Any) -> tuple[mx.array, Tree]:
            (_, metrics), gradients = gradient(params, *inputs)
            return metrics, gradients if so_far is None else tree_map(mx.add, gradients, so_far)

        finish = mx.compile(apply, inputs=captured, outputs=captured)

        @mx.compile
        def evaluate(values: Tree, teacher: Tree, *inputs: Any) -> mx.array:
            self._bind_cast(values)
            taught = self._teacher_cast(teacher)
            metrics = objective(self.model, self.fused, *inputs, with_gradient=False, teacher=taught)[1]
            return self.world.sum(metrics)

        self._whole, self._accumulate, self._finish, self._evaluate = whole, accumulate, finish, evaluate

    def step(self, batches: list[Batch]) -> tuple[mx.array, mx.array, bool]:
        """(metrics, gradient norm, counted): token-weighted over all micro-batches and ranks, so accumulation and data
        parallelism equal one large batch. A step whose gradient is not finite changes nothing and is not counted."""
        masks = [target_masks(b, self.model.heads.num_heads) for b in batches]
        counts = np.sum([m.sum(axis=(1, 2)) for m in masks], axis=0)
        scale = mx.array((1.0 / np.maximum(counts, 1)).astype(np.float32))
        shares = [self._share(batch, mask, scale) for batch, mask in zip(batches, masks, strict=True)]
        if len(shares) == 1:
            metrics, norm, finite = self._whole(*shares[0])
        else:
            gradients: Any = None
            metrics = mx.array(0.0)
            for share in shares:
                part, gradients = self._accumulate(gradients, *share)
                metrics = metrics + part
                mx.eval(metrics, gradients)
            metrics, norm, finite = self._finish(metrics, gradients)
        mx.eval(self.state, metrics, norm, finite)
        return metrics, norm, bool(finite)

    def _share(self, batch: Batch, masks: np.ndarray, scale: mx.array) -> tuple[Any, ...]:
        """This rank's rows as the inputs of `objective`: tokens [B, T], masks [K + 1, B, T], scale, what a cache knows."""
        rows = self.world.rows(len(batch.tokens))
        inputs = (mx.array(batch.tokens[rows]), mx.array(masks[:, rows]), scale)
        if not isinstance(batch, CachedBatch):
            return inputs
        known = {"hidden": to_mlx(batch.hidden[rows], batch.hidden_dtype).astype(self.dtype)}
        if self.stored is not None:
            assert batch.top_tokens is not None and batch.top_logits is not None and batch.main_loss is not None
            known |= {
                "tokens": mx.array(batch.top_tokens[rows, :, : self.stored].astype(np.int32)),
                "logits": mx.array(batch.top_logits[rows, :, : self.stored]),
                "main_loss": mx.array(batch.main_loss[rows]),
            }
        return *inputs, known

    def evaluate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(summed metrics, counted positions [K + 1]) of one validation batch."""
        masks = target_masks(batch, self.model.heads.num_heads)
        metrics = self._evaluate(self.params, self.teacher, *self._share(batch, masks, mx.ones(len(masks))))
        return np.array(metrics), masks.sum(axis=(1, 2))

    def sync(self) -> None:
        """Leaves the modules holding the real float32 parameters (tracing leaves tracers in them)."""
        self.model.bind(self.params)
        self.model.heads.update(self.frozen)

    def _bind_cast(self, values: Tree) -> None:
        self.model.bind(cast(values, self.dtype))
        self.model.heads.update(self._frozen_cast)

    def _teacher_cast(self, teacher: Tree) -> Tree | None:
        return cast(teacher, self.dtype) if teacher else None

    def follow_lead(self) -> None:
        """Every rank takes over rank 0's parameters, optimiser state and average."""
        if self.world.size > 1:
            from mlx.utils import tree_map

            mine = self.state if self.world.leads else tree_map(mx.zeros_like, self.state)
            for held, got in zip(self.state, self.world.sum(mine), strict=True):
                held.update(got)
            mx.eval(self.state)

    def restore(self, params: Tree, optimizer_state: Tree, teacher: Tree, source: str = "resume point") -> None:
        """Takes over what a resume point holds, by flat names. ValueError where it is not that of this run."""
        from mlx.utils import tree_flatten, tree_unflatten

        stored = (params, optimizer_state, teacher)
        for held, got in zip(self.state, stored, strict=True):
            own: dict[str, mx.array] = dict(tree_flatten(held))
            for name in sorted(own.keys() ^ got.keys()):
                word = "missing" if name in own else "unexpected"
                raise ValueError(f"{source}: damaged resume point: {word} key {name!r}")
            for name, w in own.items():
                if (w.shape, w.dtype) != (got[name].shape, got[name].dtype):
                    raise ValueError(
                        f"{source}: damaged resume point: {name}: got {got[name].dtype} {got[name].shape}, "
                        f"expected {w.dtype} {w.shape}"
                    )
        for held, got in zip(self.state, stored, strict=True):
            held.update(tree_unflatten(list(got.items())) if got else {})
        mx.eval(self.state)


def global_norm(gradients: Tree) -> mx.array:
    """float32 []: the Euclidean norm over all gradients of the tree."""
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(gradients)
    return mx.sqrt(sum((g.astype(mx.float32).square().sum() for _, g in flat), mx.array(0.0)))


def compute_dtype(cfg: OptimConfig) -> mx.Dtype:
    """What --compute-dtype says."""
    return dtype_of(cfg.compute_dtype)
