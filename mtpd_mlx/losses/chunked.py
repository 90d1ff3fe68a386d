"""`FusedLoss`: the heads' losses in chunks of positions with their own backward pass; logits are never kept.
Called by losses/objective.py.

A chunk holds target positions p: every head that predicts x_{p+1} (head k from its row p - k) and the main head at p, which is
the teacher of them all. Per chunk and head: one product with the output head, the loss and the gradient with respect to the
head's state; then the logits are gone. The gradient is made in the forward pass and only scaled in the backward one. Chunks
are chained, so that MLX cannot enqueue them all at once: peak memory is a few [chunk, V] blocks, whatever B, T and K.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mtpd_mlx.losses.row_losses import HeadRows, TeacherRows, ce_rows, head_rows, stored_teacher, teacher_rows
from mtpd_mlx.losses.row_stats import row_stats
from mtpd_mlx.model.runtime import mx, on_cpu, on_cuda
from mtpd_mlx.options.train import LossConfig

Arrays = tuple[mx.array, ...]
# Bytes of one block of logits: CUDA and CPU as measured (docs/log.md); Metal, with larger temporaries, by estimate.
CHUNK_BYTES = {"cuda": 160 << 20, "metal": 64 << 20, "cpu": 1 << 20}


@dataclass(frozen=True)
class OutputHead:
    """`logits(hidden_postnorm [R, d], weight)` -> [R, V]; `weight` is the matrix that trains with it, None where frozen."""

    logits: Callable[[mx.array, mx.array | None], mx.array]
    weight: mx.array | None
    vocab_size: int

    def detached(self) -> "OutputHead":
        return self if self.weight is None else replace(self, weight=mx.stop_gradient(self.weight))

    def frozen(self) -> "OutputHead":
        """The same, its matrix not trained."""
        if self.weight is None:
            return self
        weight = mx.stop_gradient(self.weight)
        return replace(self, logits=lambda hidden, _: self.logits(hidden, weight), weight=None)

    def backward(self, hidden: mx.array, gradient: mx.array) -> tuple[mx.array, mx.array | None]:
        """Gradients with respect to hidden [R, d] and weight (None where it is frozen), from one of the logits [R, V]."""
        inputs = [hidden] if self.weight is None else [hidden, self.weight]
        _, parts = mx.vjp(lambda h, w=None: self.logits(h, w), inputs, [gradient])
        return parts[0], None if self.weight is None else parts[1].astype(mx.float32)


@dataclass(frozen=True)
class Draft:
    """Where heads draft inside a part of the vocabulary: its token ids [D] and its output head."""

    tokens: mx.array
    head: OutputHead


@dataclass(frozen=True)
class StoredTeacher:
    """What an offline cache knows of the main head, by position [n]: N best tokens and their logits [n, N], its own loss."""

    tokens: mx.array
    logits: mx.array
    main_loss: mx.array


@dataclass(frozen=True)
class OtherTeacher:
    """A teacher that is not the main head itself, by position: hidden_postnorm [n, d], and its output head. Neither gets a
    gradient."""

    hidden: mx.array
    head: OutputHead


@dataclass(frozen=True)
class Rows:
    """n target positions: targets int [n] (x_{p+1}); weights [K + 1, n] float32 (0: not counted; row 0 is the main head, 0 in
    heads mode); states K x [n, d], row p of head k belonging to position p - k; main [n, d] hidden_postnorm."""

    targets: mx.array
    weights: mx.array
    main: mx.array
    states: list[mx.array]
    stored: StoredTeacher | None = None
    kl_share: mx.array | None = None  # float32 []: what the weights of the distillation term are scaled by; None: not at all
    teacher: OtherTeacher | None = None  # None: the main head teaches


@dataclass(frozen=True)
class Outcome:
    """loss []: the weighted sum; values [K + 1, n]: losses by position, unweighted; best [K + 1, n]: argmax token ids."""

    loss: mx.array
    values: mx.array
    best: mx.array

    def with_values_of(self, other: "Outcome") -> "Outcome":
        """Both losses, those of the main head once."""
        values = mx.concatenate([self.values[:1], self.values[1:] + other.values[1:]])
        return Outcome(self.loss + other.loss, values, self.best)


@dataclass(frozen=True)
class FusedLoss:
    """What is fixed during a run. Heads 1..first are frozen: only their argmax is wanted. `apart`: a further loss, from states
    of which no gradient reaches the base."""

    cfg: LossConfig
    alphas: list[float]
    betas: list[float]
    first: int
    train_main: bool
    chunk: int | None = None  # positions; None: by CHUNK_BYTES
    apart: "FusedLoss | None" = None

    def __call__(self, head: OutputHead, draft: Draft | None, rows: Rows) -> Outcome:
        """The loss, differentiable with respect to the states, and in joint mode to main and the output head's weight."""
        k = len(rows.states)
        own = draft.head if draft else head
        trained = [w for w in (head.weight, draft.head.weight if draft else None) if w is not None]
        constants = [rows.targets, rows.weights]
        if rows.kl_share is not None:
            constants.append(rows.kl_share)
        if rows.teacher is not None:
            constants.append(rows.teacher.hidden)
        if rows.stored is not None:
            constants += [rows.stored.tokens, rows.stored.logits, rows.stored.main_loss]

        def unpack(arrays: tuple[mx.array, ...]) -> tuple[OutputHead, Draft | None, Rows]:
            main, states, rest = arrays[0], list(arrays[1 : k + 1]), list(arrays[k + 1 :])
            matrices = [rest.pop(0) for _ in trained]
            new_head = replace(head, weight=matrices[0]) if head.weight is not None else head
            new_own = replace(own, weight=matrices[-1]) if own.weight is not None else own
            targets, weights = rest.pop(0), rest.pop(0)
            share = None if rows.kl_share is None else rest.pop(0)
            teacher = None if rows.teacher is None else replace(rows.teacher, hidden=rest.pop(0))
            stored = StoredTeacher(*rest) if rows.stored is not None else None
            new_rows = Rows(targets, weights, main, states, stored, share, teacher)
            return new_head, draft and Draft(draft.tokens, new_own), new_rows

        @mx.custom_function
        def fused(*arrays: mx.array) -> tuple[mx.array, ...]:
            outcome, gradients = self._chunks(*unpack(arrays), with_gradient=True)
            return outcome.loss, outcome.values, outcome.best, *gradients

        @fused.vjp
        def backward(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
            made = [g * cotangents[0].astype(g.dtype) for g in outputs[3:]]
            main = [made.pop(0) if self.train_main else mx.zeros_like(primals[0])]
            still = [mx.zeros_like(p) for p in primals[1 : self.first + 1]]
            weights = [g.astype(w.dtype) for g, w in zip(made[k - self.first :], trained, strict=True)]
            return *main, *still, *made[: k - self.first], *weights, *(mx.zeros_like(c) for c in constants)

        outputs: Any = fused(rows.main, *rows.states, *trained, *constants)
        loss, values, best = outputs[:3]
        return Outcome(loss, mx.stop_gradient(values), mx.stop_gradient(best))

    def values(self, head: OutputHead, draft: Draft | None, rows: Rows) -> Outcome:
        """The same without gradients."""
        rows = replace(rows, main=mx.stop_gradient(rows.main), states=[mx.stop_gradient(s) for s in rows.states])
        draft = draft and replace(draft, head=draft.head.detached())
        return self._chunks(head.detached(), draft, rows, with_gradient=False)[0]

    def _chunks(self, head: OutputHead, draft: Draft | None, rows: Rows, with_gradient: bool) -> tuple[Outcome, list[mx.array]]:
        """Gradients: main [n, d] (joint only), states of the trained heads [n, d], then the trained weights [V, d]."""
        n = rows.targets.shape[0]
        size = self.chunk or default_chunk(head.vocab_size, rows.main.dtype.size)
        parts: list[Chunk] = []
        for start in range(0, n, size):
            chunk = Chunk.following(parts[-1] if parts else None)
            self._chunk(head, draft, _slice(rows, start, min(start + size, n)), chunk, with_gradient)
            parts.append(chunk)
        outcome = Outcome(
            mx.stack([p.loss for p in parts]).sum(),
            mx.concatenate([mx.stack(p.values) for p in parts], axis=1),
            mx.concatenate([mx.stack(p.best) for p in parts], axis=1),
        )
        gradients = [mx.concatenate(list(g)) for g in zip(*(p.gradients for p in parts), strict=True)]
        return outcome, gradients + [weight for _, weight in sorted(parts[-1].weights.items())]

    def _chunk(self, head: OutputHead, draft: Draft | None, rows: Rows, chunk: "Chunk", with_gradient: bool) -> None:
        # A detached teacher's part is finished at once; else it waits for what the heads' KL adds to its gradient.
        own, targets = (draft.head, _inside(draft.tokens, head.vocab_size)[rows.targets]) if draft else (head, rows.targets)
        teacher, main = self._main(head, draft, rows, chunk, with_gradient)
        of_teacher: mx.array | None = None
        for k, state in enumerate(rows.states, start=1):
            state = chunk.next(state)
            logits = own.logits(state, own.weight)
            if k <= self.first:
                best, value, made = row_stats(logits).best, mx.zeros(rows.targets.shape), None
            else:
                j = k - self.first - 1
                factors = self.alphas[j], self.betas[j], rows.kl_share
                made = head_rows(self.cfg, logits, teacher, targets, rows.weights[k], *factors)
                best, value = made.best, made.value
            chunk.note(value, draft.tokens[best] if draft else best)
            if with_gradient and made is not None:
                if made.of_teacher is not None:
                    of_teacher = made.of_teacher if of_teacher is None else of_teacher + made.of_teacher
                chunk.add(own, state, made, 1 if draft and head.weight is not None else 0)
        if main is not None:
            if of_teacher is not None:
                whole = main.gradient.at[:, draft.tokens].add(of_teacher) if draft else main.gradient + of_teacher
                main = replace(main, gradient=whole)
            chunk.add(head, rows.main, main, 0)
            chunk.gradients.insert(0, chunk.gradients.pop())
        chunk.loss = (mx.stack(chunk.values) * rows.weights).sum()

    def _main(
        self, head: OutputHead, draft: Draft | None, rows: Rows, chunk: "Chunk", with_gradient: bool
    ) -> tuple[TeacherRows | None, HeadRows | None]:
        """The main head's own loss and argmax; the teacher where the loss has one; what of it still waits to be added."""
        wanted = self.cfg.loss != "ce"
        if rows.stored is not None:
            chunk.note(rows.stored.main_loss, rows.stored.tokens[:, 0].astype(mx.uint32))
            if not wanted:
                return None, None
            return stored_teacher(rows.stored.tokens, rows.stored.logits, head.vocab_size, rows.main.dtype), None
        hidden = chunk.next(rows.main)
        logits = head.logits(hidden, head.weight)
        stats = row_stats(logits)
        made = ce_rows(logits, stats, rows.targets, rows.weights[0])
        chunk.note(made.value, made.best)
        waits = self.train_main and with_gradient and not self.cfg.detach_teacher and wanted
        if self.train_main and with_gradient and not waits:
            chunk.add(head, hidden, made, 0)
        if not wanted:
            return None, None
        top_n = self.cfg.top_n if self.cfg.loss in ("mtpd", "kl") else head.vocab_size
        if rows.teacher is not None:
            logits = rows.teacher.head.logits(chunk.next(rows.teacher.hidden), rows.teacher.head.weight)
        if draft:
            logits = mx.take(logits, draft.tokens, axis=-1)
        if draft or rows.teacher is not None:
            stats = row_stats(logits)
        return teacher_rows(logits, stats, top_n), made if waits else None


@dataclass
class Chunk:
    """What a chunk of C positions came to: values and best [C] by head (0: the main head), gradients [C, d] of the states, and
    the sums so far of the trained weights' gradients. Each head waits for the one before it."""

    values: list[mx.array]
    best: list[mx.array]
    gradients: list[mx.array]
    weights: dict[int, mx.array]  # 0: of the output head, 1: of that of the draft vocabulary
    _before: list[mx.array]
    loss: mx.array

    @classmethod
    def following(cls, last: "Chunk | None") -> "Chunk":
        return cls([], [], [], dict(last.weights) if last else {}, list(last._before) if last else [], mx.array(0.0))

    def next(self, hidden: mx.array) -> mx.array:
        """`hidden`, not to be used before the heads so far are done with their logits."""
        return mx.depends([hidden], self._before)[0] if self._before else hidden

    def note(self, value: mx.array, best: mx.array) -> None:
        self.values.append(value)
        self.best.append(best)
        self._before = [value, best]

    def add(self, head: OutputHead, hidden: mx.array, made: HeadRows, slot: int) -> None:
        """Takes the gradient of one head back to its state, and adds that of the output head's weight to its sum."""
        of_hidden, of_weight = head.backward(hidden, made.gradient)
        self.gradients.append(of_hidden)
        self._before.append(of_hidden)
        if of_weight is not None:
            self.weights[slot] = self.weights[slot] + of_weight if slot in self.weights else of_weight
            self._before.append(self.weights[slot])


def default_chunk(vocab_size: int, item_size: int) -> int:
    """Positions per chunk: the power of two that keeps one block of logits within CHUNK_BYTES, at least 32."""
    budget = CHUNK_BYTES["cpu" if on_cpu() else "cuda" if on_cuda() else "metal"]
    return 1 << max(5, (budget // (vocab_size * item_size)).bit_length() - 1)


def _slice(rows: Rows, start: int, end: int) -> Rows:
    """Rows start..end-1."""
    stored = rows.stored and StoredTeacher(*(a[start:end] for a in vars(rows.stored).values()))
    states = [s[start:end] for s in rows.states]
    teacher = rows.teacher and replace(rows.teacher, hidden=rows.teacher.hidden[start:end])
    main, weights = rows.main[start:end], rows.weights[:, start:end]
    return Rows(rows.targets[start:end], weights, main, states, stored, rows.kl_share, teacher)


def _inside(draft_tokens: mx.array, vocab_size: int) -> mx.array:
    """[V]: the place of a token in the draft vocabulary, -1 where it has none."""
    table = mx.full((vocab_size,), -1, mx.int32)
    return mx.put_along_axis(table, draft_tokens.astype(mx.int32), mx.arange(draft_tokens.size, dtype=mx.int32), axis=0)
