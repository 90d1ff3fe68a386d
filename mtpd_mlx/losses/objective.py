"""`objective`: from tokens to the loss of a step and its report (states of base and heads, aligned by target).
Called by train/step.py, train/loop.py and tools."""

from dataclasses import dataclass, replace
from typing import Any

from mtpd_mlx.losses.chunked import Draft, FusedLoss, OtherTeacher, Outcome, OutputHead, Rows, StoredTeacher
from mtpd_mlx.losses.definitions import end_to_end_tv, per_head_weights, share_of_head
from mtpd_mlx.model.adapters import train_lora_alone
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads, shift_left
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LossConfig, check_loss

Tree = dict[str, Any]


@dataclass
class Model:
    """Base and heads, and which of their parameters train. Old heads of an extension are frozen before this is made."""

    base: Base
    heads: MTPHeads
    joint: bool  # the base's own loss is minimised too
    first_trained: int = 0
    grad_checkpoint: bool = False
    lora: bool = False  # joint: of the base only its LoRA layers train

    def __post_init__(self) -> None:
        if self.lora:
            train_lora_alone(self.base.model)
        else:
            self.base.model.unfreeze() if self.joint else self.base.model.freeze()
        for head in self.heads.heads[: self.first_trained]:
            head.freeze()
        self.heads.train()
        self.base.model.train(self.joint)  # kernels of recurrent layers have no gradients
        self.base.grad_checkpoint = self.grad_checkpoint and self.joint
        for head in self.heads.heads:
            head.grad_checkpoint = self.grad_checkpoint

    def trainable(self) -> Tree:
        tree = {"heads": self.heads.trainable_parameters()}
        return tree | ({"base": self.base.model.trainable_parameters()} if self.joint else {})

    def bind(self, params: Tree) -> None:
        """Points the modules at `params` (real arrays, or tracers inside a transformation)."""
        self.heads.update(params["heads"])
        if self.joint:
            self.base.model.update(params["base"])

    def states(self, tokens: mx.array, hidden: mx.array | None = None) -> tuple[mx.array, list[mx.array]]:
        """tokens [B, T] -> hidden_postnorm of the base [B, T, d] and of each head K x [B, T, d], inputs of the output head.

        `hidden` [B, T, d] (prenorm) stands in for the base's trunk. A frozen base gets no gradient.
        """
        if hidden is None:
            hidden = self.base.trunk(tokens)
        if not self.joint:
            hidden = mx.stop_gradient(hidden)
        return self.base.norm(hidden), self.heads.cascade(self.base, hidden, tokens)

    def apart(self, tokens: mx.array, hidden: mx.array) -> tuple[mx.array, list[mx.array]]:
        """`states` from which no gradient reaches the base, only the heads."""
        from mlx.utils import tree_map

        live = self.base.model.parameters()
        self.base.model.update(tree_map(mx.stop_gradient, live))
        try:
            return self.states(tokens, mx.stop_gradient(hidden))
        finally:
            self.base.model.update(live)

    def taught_by(self, weights: Tree, tokens: mx.array) -> OtherTeacher:
        """The base with `weights` in the place of those of it that train, over tokens [B, T]; no gradient reaches it."""
        live = self.base.model.trainable_parameters()
        self.base.model.update(weights)
        try:
            hidden = mx.stop_gradient(self.base.norm(self.base.trunk(tokens)))
            return OtherTeacher(_flat(hidden[None])[0], self.output_head().frozen())
        finally:
            self.base.model.update(live)

    def output_head(self) -> OutputHead:
        weight = self.base.output_module.weight if self.joint and not self.lora else None
        return OutputHead(self.base.logits, weight, self.base.vocab_size)

    def draft(self) -> Draft | None:
        """The part of the output head that the heads draft with, where they have a draft vocabulary."""
        tokens = self.heads.draft_tokens
        if tokens is None:
            return None
        if self.joint and not self.lora:  # gathered from the weights of this step, so that the gradient finds its way back
            rows = self.base.output_module.weight[tokens]
            return Draft(tokens, OutputHead(self.base.logits, rows, tokens.size))
        head = self.base.draft_head(tokens)
        return Draft(tokens, OutputHead(lambda hidden, weight: head(hidden), None, tokens.size))

    def frozen_heads(self) -> Tree:
        """Parameters of the heads that do not train, float32 as they are stored."""
        return {"heads": [head.parameters() for head in self.heads.heads[: self.first_trained]]}

    def fused_loss(self, cfg: LossConfig) -> FusedLoss:
        check_loss(cfg, self.joint)
        heads_alone = cfg.kl_reaches == "heads"
        trained = self.heads.num_heads - self.first_trained
        alphas, betas = per_head_weights(cfg.alpha, trained, "alpha"), per_head_weights(cfg.beta, trained, "beta")
        if not heads_alone:
            return FusedLoss(cfg, alphas, betas, self.first_trained, self.joint)
        apart = FusedLoss(replace(cfg, loss="kl"), alphas, betas, self.first_trained, train_main=False)
        return FusedLoss(replace(cfg, loss="ce"), alphas, betas, self.first_trained, True, apart=apart)


def objective(
    model: Model,
    fused: FusedLoss,
    tokens: mx.array,
    masks: mx.array,
    scale: mx.array,
    known: dict[str, mx.array] | None = None,
    *,
    with_gradient: bool = True,
    kl_share: mx.array | None = None,
    teacher: Tree | None = None,
) -> tuple[mx.array, mx.array]:
    """(loss [], metrics [1 + trained heads + K]): main loss, loss per trained head, simulated CAR by depth.

    tokens [B, T]; masks bool [K + 1, B, T] (losses.target_masks); scale [K + 1]: one over the positions counted in the
    whole step; known: what an offline cache holds, hidden [B, T, d] (prenorm) and perhaps its teacher, tokens and logits
    [B, T, N] and main_loss [B, T]. kl_share []: of beta. teacher: weights of the base that teaches, of those that train
    (None: the base as it is). Simulated CAR: the share of positions where heads 1..k all guess the main head's argmax,
    over positions where depth K is defined.
    """
    hidden = known["hidden"] if known else model.base.trunk(tokens)
    main, states = model.states(tokens, hidden)
    weights = mx.stack([shift_right(masks[k].astype(mx.float32), k) * scale[k] for k in range(len(states) + 1)])  # [K+1, B, T]
    share = share_of_head(fused.cfg, len(states) - model.first_trained) if states else 1.0
    rows = Rows(
        shift_left(tokens, 1).reshape(-1),
        _flat(mx.concatenate([weights[:1] * float(model.joint), weights[1:] * share])),
        _flat(main[None])[0],
        _placed(states),
        _stored(known),
        kl_share,
        None if teacher is None else model.taught_by(teacher, tokens),
    )
    head = model.output_head()
    draft = model.draft()
    if fused.cfg.loss == "tv" and with_gradient:
        rows = replace(
            rows, weights=_end_to_end_weights(fused.values(head, draft, rows), rows.weights, masks, scale, fused.first)
        )
    outcome = fused(head, draft, rows) if with_gradient else fused.values(head, draft, rows)
    if fused.apart is not None:
        outcome = outcome.with_values_of(_apart(model, fused.apart, head, draft, rows, tokens, hidden, with_gradient))
    counted = (outcome.values * _flat(weights)).sum(axis=1)  # [K + 1]
    if not states:  # a base alone
        return outcome.loss, mx.stop_gradient(counted)
    accepted = simulated_acceptance(outcome.best.reshape(weights.shape), masks[-1]) * scale[-1]
    metrics = mx.concatenate([counted[:1], counted[1 + model.first_trained :], accepted])
    return outcome.loss, mx.stop_gradient(metrics)


def _apart(
    model: Model,
    fused: FusedLoss,
    head: OutputHead,
    draft: Draft | None,
    rows: Rows,
    tokens: mx.array,
    hidden: mx.array,
    with_gradient: bool,
) -> Outcome:
    """The distillation term where it reaches the heads alone."""
    main, states = model.apart(tokens, hidden)
    weights = mx.concatenate([mx.zeros_like(rows.weights[:1]), rows.weights[1:]])
    rows = replace(rows, weights=weights, main=_flat(main[None])[0], states=_placed(states))
    head, draft = head.frozen(), draft and Draft(draft.tokens, draft.head.frozen())
    return fused(head, draft, rows) if with_gradient else fused.values(head, draft, rows)


def _placed(states: list[mx.array]) -> list[mx.array]:
    """K x [B, T, d] by their own positions -> K x [B T, d] by target position."""
    return [_flat(shift_right(s, k)[None])[0] for k, s in enumerate(states, start=1)]


def _stored(known: dict[str, mx.array] | None) -> StoredTeacher | None:
    if known is None or "tokens" not in known:
        return None
    return StoredTeacher(*(known[name].reshape(-1, *known[name].shape[2:]) for name in ("tokens", "logits", "main_loss")))


def shift_right(x: mx.array, k: int) -> mx.array:
    """x [B, T, ...] -> y with y[:, p] = x[:, p - k], zeros in the first k rows: rows i of head k, placed at their targets."""
    k = min(k, x.shape[1])
    return mx.concatenate([mx.zeros_like(x[:, :k]), x[:, : x.shape[1] - k]], axis=1)


def _flat(x: mx.array) -> mx.array:
    """[S, B, T, ...] -> [S, B T, ...]"""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def simulated_acceptance(best: mx.array, mask: mx.array) -> mx.array:
    """best [K + 1, B, T] by target position; number of rows i of `mask` [B, T] where depths 1..k all agree with the main head's
    argmax, [K]."""
    alive, counts = mask, []
    for k in range(1, best.shape[0]):
        alive = alive * shift_left(best[k] == best[0], k)
        counts.append(alive.sum())
    return mx.stack(counts).astype(mx.float32)


def _end_to_end_weights(outcome: Outcome, weights: mx.array, masks: mx.array, scale: mx.array, first: int) -> mx.array:
    """Weights [K + 1, B T] with, for each trained head, the derivative of the end-to-end TV by that head's TV."""
    shape = masks.shape[1:]
    depths = range(first + 1, len(weights))
    tvs = [shift_left(outcome.values[k].reshape(shape), k) for k in depths]
    by_row = mx.grad(lambda tvs: (end_to_end_tv(tvs) * masks[-1]).sum() * scale[-1])(tvs)
    placed = [shift_right(g, k).reshape(1, -1) for k, g in zip(depths, by_row, strict=True)]
    return mx.concatenate([weights[: first + 1], *placed])
