"""Acceptance along held-out text (tools/experiments/measures.py) against a loop over positions, one head pass each."""

import numpy as np
import pytest
from tiny import LLAMA, cycle_batch

from mtpd_mlx.data import Batch
from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.losses.objective import Model
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import MTPHeads, init_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LossConfig, OptimConfig
from mtpd_mlx.train.step import Stepper
from tools.experiments.measures import held_out_acceptance

K = 3


@pytest.fixture(scope="module")
def trained() -> tuple[Base, MTPHeads]:
    """A base and heads that are right now and then."""
    base = new_base(LLAMA, 0)
    heads = init_heads(base, K, "postnorm", 0)
    run = Stepper(Model(base, heads, joint=True), LossConfig(loss="ce"), OptimConfig(iters=40, warmup=0, learning_rate=1e-2))
    for i in range(25):
        run.step([cycle_batch(4, 14, i)])
    run.sync()
    return base, heads


@pytest.mark.parametrize("batch_size", [2, 5])
def test_it_is_that_of_a_loop_over_positions(batch_size: int, trained: tuple[Base, MTPHeads]) -> None:
    base, heads = trained
    rows = cycle_batch(5, 14)
    mask = rows.loss_mask.copy()
    mask[1, :6] = False  # as of a masked prompt
    rows = Batch(rows.tokens, rows.segments, mask)
    counts, positions = np.zeros(K, int), 0
    for b, i in np.argwhere(target_masks(rows, K)[K]):
        row = mx.array(rows.tokens[b : b + 1])
        hidden = base.trunk(row)
        best = mx.argmax(base.logits(base.norm(hidden)), axis=-1)[0].tolist()
        states = heads.cascade(base, hidden, row)
        right = [mx.argmax(base.logits(s[0, int(i)])).item() == best[i + k] for k, s in enumerate(states, start=1)]
        counts += np.cumprod(right)
        positions += 1
    got = held_out_acceptance(base, heads, rows, batch_size)
    assert got["rounds"] == positions > 20 and 0 < counts[-1] < counts[0] < positions
    np.testing.assert_allclose(got["car"], counts / positions, rtol=1e-12)
