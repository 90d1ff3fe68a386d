#!/usr/bin/env python3
"""Random speculative decoding on tiny random models, held against plain decoding token by token.

    python -m tools.fuzz_decoding --rounds 10000 --seed 0

Every episode takes a model, a number of drafts 1..16, or any kind of round each time, a plan and a capacity. It then prefills,
decodes with ragged ends (EOS, stops, lengths, a full cache), names tokens the decoder would not have chosen, and rewinds. Exit
status 1, and the episode's seed, at the first difference. Run it from the repository root.
"""

import argparse
import collections
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mtpd_mlx.decoding.open import choosing_decoder, model_of, open_decoder
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads, init_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.drafting import Proposal
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.round_costs import PLAIN, lookup
from mtpd_mlx.speculative.round_costs import heads as heads_of

VOCAB, MOST = 61, 16
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
}
PLANS = ("growing", "growing", "fixed", "fixed", "exact", "fixed+compiled", "fixed+scatter+rows")
SCALES = (3.0, 5.0, 8.0, 10.0)  # of the weights: from text that repeats itself to text that heads seldom guess


class AnyDrafts:
    """A Drafting that proposes any kind of round."""

    def __init__(self, rng: np.random.Generator, most: int):
        self._rng, self._most, self._text = rng, most, list[int]()

    def restart(self) -> None:
        self._text = []

    def begin(self, text: Sequence[int], token: int) -> None:
        self._text = [*text, token]

    def align(self, text: Sequence[int], token: int) -> None:
        self.begin(text, token)

    def propose(self, most: int) -> Proposal:
        count = int(self._rng.integers(0, min(most, self._most) + 1))
        if not count or self._rng.random() < 0.2:
            return Proposal(PLAIN)
        if self._rng.random() < 0.6:
            return Proposal(heads_of(count))
        return Proposal(lookup(count), tuple(self._text[-1 - i % len(self._text)] for i in range(count)))

    def observe(
        self, proposal: Proposal, emitted: Sequence[int], proposed: int | None = None, seconds: float | None = None
    ) -> None:
        self._text += emitted


@dataclass
class Seen:
    """What a run met with."""

    rounds: int = 0
    accepted: collections.Counter = field(default_factory=collections.Counter)
    drafts: collections.Counter = field(default_factory=collections.Counter)
    events: collections.Counter = field(default_factory=collections.Counter)


def make_model(index: int) -> tuple[Base, MTPHeads]:
    """A random base whose argmax is far from ties, and 16 untrained heads."""
    from mlx.utils import tree_map

    scale = SCALES[index % len(SCALES)]
    base = new_base(CONFIG | {"tie_word_embeddings": index % 3 != 2}, seed=index)
    base.model.update(tree_map(lambda w: w * scale if w.ndim == 2 else w, base.model.parameters()))
    heads = init_heads(base, MOST, "prenorm" if index % 4 == 3 else "postnorm", seed=index + 1)
    if index % 5 == 4:
        heads.draft_among(mx.arange(0, VOCAB, 2).astype(mx.int32))
    mx.eval(base.model.parameters(), heads.parameters())
    return base, heads


def first_difference(base: Base, text: Sequence[int], start: int) -> int | None:
    """The first position >= start of `text` that is not the base's own choice, by one pass over the whole text."""
    best = np.array(mx.argmax(base.logits(base.norm(base.trunk(mx.array([list(text[:-1])]))))[0], axis=-1))
    wrong = np.flatnonzero(best[start - 1 :] != np.array(text[start:]))
    return int(wrong[0]) + start if wrong.size else None


def episode(models: Sequence[tuple[Base, MTPHeads]], seed: int, seen: Seen) -> str | None:
    """Some texts with one decoder; what went wrong, or None."""
    rng = np.random.default_rng(seed)
    pick = lambda n: int(rng.integers(0, n))  # noqa: E731
    base, heads = models[pick(len(models))]
    drafts, plan = 1 + pick(MOST), PLANS[pick(len(PLANS))]
    capacity = 24 + pick(200)
    config = DecodingConfig(exact=True) if plan == "exact" else DecodingConfig(plan=plan)
    chosen = plan != "exact" and pick(2) == 1
    if chosen:
        model = model_of(base, heads, config, num_draft_tokens=drafts, capacity=capacity)
        backend = choosing_decoder(model, Plan.parse(plan), AnyDrafts(rng, drafts), capacity)
    else:
        backend = open_decoder(base, heads, config, num_draft_tokens=drafts, capacity=capacity)  # type: ignore[assignment]
    about = f"seed {seed}: {drafts} drafts{', chosen' if chosen else ''}, plan {plan}, capacity {capacity}"
    text: list[int] = []
    for _ in range(1 + pick(5)):
        room = capacity - backend.length - 1
        if room < 1:
            break
        prompt = rng.integers(0, VOCAB, 1 + pick(min(room, 40))).tolist()
        text = [*text[: backend.length], *prompt]
        start, limit, ends = len(text), 1 + pick(60), frozenset(rng.integers(0, VOCAB, pick(3)).tolist())
        left = [1 + pick(80)]

        def stop(token: int, left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] <= 0

        for chunk in generate(backend, prompt, max_tokens=limit, eos_token_ids=ends, stop=stop):
            text += chunk.tokens
            if chunk.round is not None and chunk.round.proposed:
                seen.rounds += 1
                seen.drafts[drafts] += 1
                seen.accepted[chunk.round.accepted] += 1
                seen.events[f"drafts of {chunk.round.source}"] += 1
            if chunk.finish_reason:
                seen.events[chunk.finish_reason] += 1
        if (at := first_difference(base, text, start)) is not None:
            return f"{about}: token {at} is not plain decoding's"
        if backend.tokens != text[: backend.length] or backend.length != len(text) - 1:
            return f"{about}: the cache holds {backend.length} tokens, expected the text but its last of {len(text)}"
        action = pick(4)
        if action == 0:
            backend.rewind_to(pick(backend.length + 1))
            seen.events["rewind"] += 1
        elif action == 1 and backend.length + 1 + drafts <= capacity:
            token = pick(VOCAB)
            text = [*text[: backend.length], token, *backend.round(token).emitted]
            seen.events["forced"] += 1
            if first_difference(base, text, len(text) - 1) is not None:
                return f"{about}: a forced token is followed by another than plain decoding's"
        elif action == 2:
            backend.rewind_to(0)
            seen.events["restart"] += 1
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000, help="speculative rounds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default: %(default)s)")
    parser.add_argument("--models", type=int, default=8, help="random models (default: %(default)s)")
    args = parser.parse_args()
    models, seen, seed = [make_model(i) for i in range(args.models)], Seen(), args.seed
    while seen.rounds < args.rounds:
        if (problem := episode(models, seed, seen)) is not None:
            print(f"fuzz_decoding: {problem}", file=sys.stderr)
            return 1
        seed += 1
    print(f"{seen.rounds} rounds in {seed - args.seed} episodes, identical to plain decoding")
    print("drafts per round: " + " ".join(f"{k}:{n}" for k, n in sorted(seen.drafts.items())))
    print("accepted: " + " ".join(f"{a}:{n}" for a, n in sorted(seen.accepted.items())))
    print("events: " + " ".join(f"{name}:{n}" for name, n in sorted(seen.events.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
