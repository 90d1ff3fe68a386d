"""Acceptance under rejection sampling from one teacher-forced pass, against drawing and accepting round by round."""

from pathlib import Path

import numpy as np
import pytest
from tiny import write_base, write_checkpoint

from mtpd_mlx.model.base import Base
from mtpd_mlx.model.generate import Generation
from mtpd_mlx.model.heads import MTPHeads
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.sampling import Sampling, accept_sampled, draw, probabilities, uniforms
from mtpd_mlx.speculative.stats import acceptance_table, walk
from tools.experiments.sampled_acceptance import sampled_tables

PROMPTS = [[5, 6, 7], [9], [11, 3, 50, 4, 60, 2, 8, 1]]


@pytest.fixture(scope="module", params=["postnorm", "prenorm"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("acceptance")
    base = write_base(folder / "base", scale=2.0)
    return write_checkpoint(folder / "heads", base, num_heads=3, hidden_source=request.param, noise=0.01)


def decode_sampled(base: Base, heads: MTPHeads, prompt: list[int], count: int, temp: float, seed: int) -> tuple[list, list]:
    """(tokens, accepted drafts of each round) by the rule of speculative/sampling.py, every pass over the whole text."""
    options, rng, text, accepted = Sampling(temp=temp), np.random.default_rng(seed), list(prompt), []

    def main(tokens: list[int]) -> np.ndarray:
        return probabilities(np.array(base.logits(base.norm(base.trunk(mx.array([tokens]))))[0]), options)

    text.append(draw(main(text)[-1], rng.random()))
    while len(text) < len(prompt) + count:
        at, drafts, q = len(text) - 2, [], []  # at: the last position whose next token is known
        for k in range(1, heads.num_heads + 1):
            tokens = mx.array([text + drafts])
            state = heads.cascade(base, base.trunk(tokens), tokens)[k - 1][:, at]
            q.append(probabilities(np.array(base.logits(state)), options)[0])
            drafts.append(draw(q[-1], rng.random()))
        p = main(text + drafts)[len(text) - 1 :]
        kept, following = accept_sampled(p, np.stack(q), drafts, uniforms(heads.num_heads + 1, rng))
        accepted.append(kept)
        text += [*drafts[:kept], following]
    return text[len(prompt) :], accepted


def test_sampled_acceptance_is_that_of_rejection_sampling(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    temp, texts, accepted = 0.7, [], []
    for seed in range(16):
        tokens, counts = decode_sampled(base, heads, PROMPTS[seed % 3], 30, temp, seed)
        texts.append(Generation(PROMPTS[seed % 3], tokens))
        accepted += counts
    counts = [a for seed in range(10) for t in sampled_tables(base, heads, texts, temp, seed) for a in walk(t)]
    got, want = acceptance_table(counts, 3), acceptance_table(accepted, 3)
    np.testing.assert_allclose(got.car, want.car, atol=3 * (0.25 / len(accepted)) ** 0.5)
    assert 0.1 < got.car[0] < 0.9
