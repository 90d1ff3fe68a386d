"""`BaseMeasures`: measurements of an arm (acceptance on seven sets, repetition, main loss by domain).
Called by tools/experiments/run.py."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mtpd_mlx.data import Batch
from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.measure.acceptance import ForcedBatch, match_tables, teacher_force
from mtpd_mlx.measure.evaluate import repetition, summarise
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.generate import Generation, Pick, batches_of, generate_batch, greedy
from mtpd_mlx.model.heads import MTPHeads, shift_left
from mtpd_mlx.model.runtime import mx
from tools.experiments.data import Text
from tools.experiments.own_text import at_temperature
from tools.experiments.sampled_acceptance import sampled_tables
from tools.experiments.settings import Setting
from tools.experiments.texts import HELD_OUT

FORCED_ROWS = 32  # texts per teacher-forced pass


class BaseMeasures:
    """The base's part, made once for all heads on it: its texts, one forced pass over them, its losses."""

    def __init__(self, base: Base, text: Text, s: Setting):
        self.base, self.text, self.s = base, text, s
        self.losses = domain_losses(base, text, s)
        self.greedy = generate(base, text, s, greedy)
        self.sampled = generate(base, text, s, at_temperature(s.temp))
        self._forced: dict[str, list[ForcedBatch]] = {}

    def forced(self, kind: str, texts: list[Generation]) -> list[ForcedBatch]:
        if kind not in self._forced:
            self._forced[kind] = teacher_force(self.base, texts, FORCED_ROWS)
        return self._forced[kind]

    def of_heads(self, heads: MTPHeads) -> dict[str, Any]:
        """greedy and sampled: by set, all together, as evaluate.summarise, with distinct4; tau by domain. forced: along
        held-out text."""
        heads.set_dtype(self.base.dtype)
        heads.eval()
        tables = match_tables(self.base, heads, self.greedy, self.forced("greedy", self.greedy))
        results = {"greedy": self._by_set(self.greedy, tables, heads.num_heads)}
        tables = sampled_tables(self.base, heads, self.sampled, self.s.temp, 0, self.forced("sampled", self.sampled))
        results |= {"sampled": self._by_set(self.sampled, tables, heads.num_heads)}
        return results | {"forced": held_out_acceptance(self.base, heads, self.text.valid, self.s.batch_size)}

    def _by_set(self, texts: list[Generation], tables: list[np.ndarray], num_heads: int) -> dict[str, Any]:
        prompts = self.text.prompts

        def group(wanted: Callable[[int], bool]) -> dict[str, Any]:
            chosen = [i for i in range(len(texts)) if wanted(i)]
            own = [texts[i] for i in chosen]
            return summarise(own, [tables[i] for i in chosen], num_heads) | {"distinct4": repetition(own)}

        sets = list(dict.fromkeys(p.set for p in prompts))
        domains = sorted({p.domain for p in prompts if p.set == HELD_OUT})
        return {
            "all": group(lambda i: True),
            "sets": {name: group(lambda i, name=name: prompts[i].set == name) for name in sets},
            "domains": {d: group(lambda i, d=d: prompts[i].set == HELD_OUT and prompts[i].domain == d)["tau"] for d in domains},
        }


def held_out_acceptance(base: Base, heads: MTPHeads, rows: Batch, batch_size: int) -> dict[str, Any]:
    """Of positions of `rows` where the deepest head has a target, the share where heads 1..k all guess the main head's choice
    ("forced" CAR: the text goes on as it is written, whatever the main head would choose)."""
    masks, guess = target_masks(rows, heads.num_heads)[-1], heads.guesser(base)
    table = np.zeros((0, heads.num_heads), bool)
    for start in range(0, len(rows.tokens), batch_size):
        tokens = mx.array(rows.tokens[start : start + batch_size])
        hidden = base.trunk(tokens)
        best = mx.argmax(base.logits(base.norm(hidden)), axis=-1)
        alive, agreed = mx.ones(tokens.shape, mx.bool_), []
        for k, state in enumerate(heads.cascade(base, hidden, tokens), start=1):
            alive = alive & (guess(state) == shift_left(best, k))
            mx.eval(alive)
            agreed.append(np.array(alive))
        table = np.concatenate([table, np.stack(agreed, axis=-1)[masks[start : start + batch_size]]])
    car = table.mean(axis=0) if len(table) else np.zeros(heads.num_heads)
    return {"car": car.tolist(), "rounds": len(table)}


def generate(base: Base, text: Text, s: Setting, pick: Pick) -> list[Generation]:
    prompts = [p.tokens for p in text.prompts]
    made: dict[int, Generation] = {}
    for number, chunk in enumerate(batches_of(prompts, s.gen_batch)):
        mx.random.seed(number)
        texts = generate_batch(base, [prompts[i] for i in chunk], s.gen_tokens, text.tokenizer.eos_token_ids, pick)
        made |= {i: Generation(prompts[i], tokens) for i, tokens in zip(chunk, texts, strict=True)}
    return [made[i] for i in range(len(prompts))]


def domain_losses(base: Base, text: Text, s: Setting) -> dict[str, dict[str, float]]:
    """By domain of held-out text, and "all": loss (nats per token), mean entropy of the predictions (nats; the loss where a
    model is as sure as it is right), accuracy of the best token, tokens, bytes. End tokens count, and stand for no bytes."""
    rows = text.valid
    targets = target_masks(rows, 0)[0]  # [R, T]: position i predicts token i + 1 of the same document
    nats, entropy, right = np.zeros(targets.shape), np.zeros(targets.shape), np.zeros(targets.shape)
    for start in range(0, len(rows.tokens), s.batch_size):
        tokens = mx.array(rows.tokens[start : start + s.batch_size])
        logits = base.logits(base.norm(base.trunk(tokens)))[:, :-1].astype(mx.float32)
        log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        here = slice(start, start + s.batch_size), slice(0, -1)
        nats[here] = -np.array(mx.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0])
        entropy[here] = np.array(-(mx.exp(log_p) * log_p).sum(axis=-1))
        right[here] = np.array(logits.argmax(axis=-1) == tokens[:, 1:])
    sizes = np.where(targets, np.roll(text.token_bytes[rows.tokens], -1, axis=1), 0)
    names = np.array(text.domains)

    def figures(chosen: np.ndarray) -> dict[str, float]:
        count = int(targets[chosen].sum())
        total = {n: float((v * targets)[chosen].sum()) for n, v in (("loss", nats), ("entropy", entropy), ("accuracy", right))}
        return {name: value / count for name, value in total.items()} | {"tokens": count, "bytes": int(sizes[chosen].sum())}

    return {"all": figures(names == names)} | {d: figures(names == d) for d in sorted(set(text.domains))}
