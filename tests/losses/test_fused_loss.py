"""The chunked loss against automatic differentiation of the definitions (losses/definitions.py); its parts against numpy."""

import numpy as np
import pytest
from tiny import LLAMA, VOCAB, cycle_batch

from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.losses.chunked import FusedLoss, OutputHead, Rows, StoredTeacher, default_chunk
from mtpd_mlx.losses.definitions import Teacher, cross_entropy, head_loss, heads_objective, total_variation
from mtpd_mlx.losses.objective import Model, objective
from mtpd_mlx.losses.row_losses import head_rows, stored_teacher, teacher_rows
from mtpd_mlx.losses.row_stats import exp, row_stats
from mtpd_mlx.losses.top_n import by_bisection, from_ordered_keys, nth_largest, ordered_keys
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.options.train import LOSSES, LossConfig, OptimConfig
from mtpd_mlx.train.step import Stepper

N, D, V, K = 37, 16, 101, 3


def example() -> tuple[mx.array, mx.array, list[mx.array], mx.array, mx.array]:
    """Output head [V, D], main [N, D], states K x [N, D], targets [N], weights [K + 1, N]."""
    mx.random.seed(0)
    hidden = [mx.random.normal((N, D)) for _ in range(K + 1)]
    return mx.random.normal((V, D)), hidden[0], hidden[1:], mx.random.randint(0, V, (N,)), mx.random.uniform(shape=(K + 1, N))


def by_definition(cfg: LossConfig, joint: bool, head: mx.array, main: mx.array, states: list[mx.array]) -> mx.array:
    _, _, _, targets, weights = example()
    main_logits = main @ head.T
    make = Teacher.detach if cfg.detach_teacher else Teacher.attached
    teacher = make(main_logits, cfg.top_n if cfg.loss in ("mtpd", "kl") else V)
    total = (cross_entropy(main_logits, targets) * weights[0]).sum() if joint else mx.array(0.0)
    for k, state in enumerate(states, start=1):
        logits = state @ head.T
        tv = cfg.loss == "tv"
        rows = total_variation(logits, teacher) if tv else head_loss(cfg, logits, teacher, targets, 0.3, 0.5)
        total = total + (rows * weights[k]).sum()
    return total


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("top_n", [5, 1000])
@pytest.mark.parametrize(("joint", "chunk"), [(True, 10), (False, 10), (True, 64)])
def test_equals_automatic_differentiation(loss: str, top_n: int, joint: bool, chunk: int) -> None:
    check_against_definition(LossConfig(loss=loss, top_n=top_n), joint, chunk)


@pytest.mark.parametrize("loss", ["mtpd", "kl"])
@pytest.mark.parametrize("top_n", [5, 1000])
@pytest.mark.parametrize(("direction", "detach"), [("reverse", True), ("reverse", False), ("forward", False)])
def test_ablations_equal_automatic_differentiation(loss: str, top_n: int, direction: str, detach: bool) -> None:
    cfg = LossConfig(loss=loss, top_n=top_n, kl_direction=direction, detach_teacher=detach)
    for chunk in (10, 64):
        check_against_definition(cfg, True, chunk)
    if detach:
        check_against_definition(cfg, False, 10)


def check_against_definition(cfg: LossConfig, joint: bool, chunk: int) -> None:
    head, main, states, targets, weights = example()
    fused = FusedLoss(cfg, [0.3] * K, [0.5] * K, 0, joint, chunk)  # heads by alpha 0.3, beta 0.5
    if not joint:
        weights = weights * mx.array([[0.0]] + [[1.0]] * K)

    def ours(head: mx.array, main: mx.array, states: list[mx.array]) -> mx.array:
        def logits(hidden: mx.array, weight: mx.array | None) -> mx.array:
            return hidden @ (mx.stop_gradient(head) if weight is None else weight).T

        return fused(OutputHead(logits, head if joint else None, V), None, Rows(targets, weights, main, states)).loss

    def naive(head: mx.array, main: mx.array, states: list[mx.array]) -> mx.array:
        return by_definition(cfg, joint, head, main, states)

    want, (want_head, want_main, want_states) = mx.value_and_grad(naive, argnums=(0, 1, 2))(head, main, states)
    for transform in (lambda f: f, mx.compile):
        got, (got_head, got_main, got_states) = transform(mx.value_and_grad(ours, argnums=(0, 1, 2)))(head, main, states)
        assert got.item() == pytest.approx(want.item(), rel=1e-5)
        for a, b in zip(got_states, want_states, strict=True):
            np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5, rtol=1e-5)
        if joint:
            np.testing.assert_allclose(np.array(got_head), np.array(want_head), atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(np.array(got_main), np.array(want_main), atol=1e-5, rtol=1e-5)
        else:
            assert not np.array(got_head).any() and not np.array(got_main).any()


def test_a_share_of_the_distillation_term() -> None:
    head, main, states, targets, weights = example()
    cfg, share = LossConfig(top_n=11), mx.array(0.4)

    def gradients(beta: float, share: mx.array | None) -> list[mx.array]:
        fused = FusedLoss(cfg, [0.3] * K, [beta] * K, 0, True, 10)

        def loss(head: mx.array, main: mx.array, states: list[mx.array], share: mx.array | None) -> mx.array:
            output = OutputHead(lambda hidden, weight: hidden @ weight.T, head, V)
            return fused(output, None, Rows(targets, weights, main, states, None, share)).loss

        value, (of_head, of_main, of_states) = mx.compile(mx.value_and_grad(loss, argnums=(0, 1, 2)))(head, main, states, share)
        return [value, of_head, of_main, *of_states]

    for got, want in zip(gradients(0.5, share), gradients(0.2, None), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), atol=1e-6, rtol=1e-5)


def naive_objective(model: Model, cfg: LossConfig, tokens: mx.array, masks: mx.array, scale: mx.array) -> mx.array:
    main, states = model.states(tokens)
    main_logits, head_logits = model.base.logits(main), [model.base.logits(s) for s in states]
    masks = masks.astype(mx.float32)
    loss, _, _ = heads_objective(cfg, head_logits, main_logits, tokens, masks, scale, model.first_trained)
    if model.joint:
        targets = mx.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
        loss = loss + (cross_entropy(main_logits, targets) * masks[0]).sum() * scale[0]
    return loss


def quantized(base: Base) -> Base:
    nn.quantize(base.model, 32, 4)
    return Base(base.model, base.config | {"quantization": {"group_size": 32, "bits": 4}}, None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("kind", "first"),
    [("tied", 0), ("untied", 1), ("quantised tied", 1), ("quantised untied", 0), ("joint tied", 0), ("joint untied", 1)],
)
def test_whole_models(loss: str, kind: str, first: int) -> None:
    """Gradients of all parameters through base and cascade, masked rows, frozen first heads."""
    base = new_base(LLAMA | {"tie_word_embeddings": not kind.endswith("untied")}, 0)
    heads = init_heads(base, K, "postnorm", 1)
    base = quantized(base) if "quantised" in kind else base
    model = Model(base, heads, "joint" in kind, first)
    batch = cycle_batch(2, 19)
    batch.segments[1, 11:] = 2
    batch.loss_mask[0, :4] = False
    masks = target_masks(batch, K)
    inputs = mx.array(batch.tokens), mx.array(masks), mx.array(1.0 / np.maximum(masks.sum(axis=(1, 2)), 1)).astype(mx.float32)
    cfg = LossConfig(loss=loss, top_n=11, alpha=(0.3,), beta=(0.7,))

    def ours(params: dict) -> mx.array:
        model.bind(params)
        return objective(model, model.fused_loss(cfg), *inputs)[0]

    def naive(params: dict) -> mx.array:
        model.bind(params)
        return naive_objective(model, cfg, *inputs)

    from mlx.utils import tree_flatten

    params = model.trainable()
    _, got = mx.value_and_grad(ours)(params)
    _, want = mx.value_and_grad(naive)(params)
    got, want = dict(tree_flatten(got)), dict(tree_flatten(want))
    assert got.keys() == want.keys() and len(got) > 10
    for name in want:
        np.testing.assert_allclose(np.array(got[name]), np.array(want[name]), atol=1e-5, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("n", [1, 2, 40, V - 1, V])
def test_nth_largest_by_every_way(dtype: mx.Dtype, n: int) -> None:
    z = (mx.random.normal((6, V), key=mx.random.key(n)) * 3).astype(dtype)
    z[0, :50] = z[0, 60]  # ties, zeros of both signs, infinities
    z[1, :9] = mx.array([0.0, -0.0, 0.0, float("inf"), float("-inf"), -0.0, 1e-30, -1e-30, 5.0])
    want = np.sort(np.array(z.astype(mx.float32)), axis=-1)[:, V - n]
    assert np.array_equal(
        np.array(from_ordered_keys(ordered_keys(z), dtype).astype(mx.float32)), np.array(z.astype(mx.float32))
    )
    for way in (nth_largest, by_bisection):
        assert np.array_equal(np.array(way(z, n).astype(mx.float32))[:, 0], want), way
    with pytest.raises(ValueError, match="n = 0"):
        nth_largest(z, 0)


def test_row_stats_against_numpy() -> None:
    z = mx.random.normal((5, V), key=mx.random.key(1)) * 4
    q = mx.where(z > 1, mx.random.uniform(shape=(5, V)), -1.0)
    stats, a, w = row_stats(z, q, whole=False), np.array(z, dtype=np.float64), np.array(q, dtype=np.float64)
    high = a.max(-1, keepdims=True)
    np.testing.assert_array_equal(np.array(stats.best), a.argmax(-1))
    for got, want in (
        (stats.high, high[:, 0]),
        (stats.total, np.exp(a - high).sum(-1)),
        (stats.inside, (np.exp(a - high) * (w >= 0)).sum(-1)),
        (stats.cross, (np.maximum(w, 0) * (a - high)).sum(-1)),
        (stats.logsumexp, np.log(np.exp(a).sum(-1))),
    ):
        np.testing.assert_allclose(np.array(got)[:, 0], want, rtol=2e-6, atol=2e-6)
    x = mx.linspace(-80, 20, 999)
    np.testing.assert_allclose(np.array(exp(x)), np.exp(np.array(x, dtype=np.float64)), rtol=1e-5)


def test_stored_teacher_is_the_teacher_of_the_same_tokens() -> None:
    logits, student = (mx.random.normal((7, V), key=mx.random.key(s)) * 3 for s in (0, 1))
    top = mx.argsort(-logits, axis=-1)[:, :9]
    stored = stored_teacher(top, mx.take_along_axis(logits, top, axis=-1), V, mx.float32)
    live = teacher_rows(logits, row_stats(logits), 9)
    targets = mx.zeros((7,), mx.int32)
    a, b = (head_rows(LossConfig(), student, t, targets, mx.ones((7,)), 0.3, 0.5) for t in (stored, live))
    np.testing.assert_allclose(np.array(a.value), np.array(b.value), rtol=1e-5)
    np.testing.assert_allclose(np.array(a.gradient), np.array(b.gradient), atol=1e-6)


def test_stored_rows_give_the_same_loss() -> None:
    head, main, states, targets, weights = example()
    weights = weights * mx.array([[0.0]] + [[1.0]] * K)
    logits = main @ head.T
    top = mx.argsort(-logits, axis=-1)[:, :5]
    stored = StoredTeacher(top, mx.take_along_axis(logits, top, axis=-1), cross_entropy(logits, targets))
    fused = FusedLoss(LossConfig(top_n=5), [0.3] * K, [0.5] * K, 0, False, 10)
    output = OutputHead(lambda hidden, weight: hidden @ head.T, None, V)
    live, cached = (fused(output, None, Rows(targets, weights, main, states, s)) for s in (None, stored))
    assert cached.loss.item() == pytest.approx(live.loss.item(), rel=1e-5)
    np.testing.assert_allclose(np.array(cached.values), np.array(live.values), rtol=1e-4, atol=1e-5)
    assert np.array_equal(np.array(cached.best), np.array(live.best))


@pytest.mark.parametrize("vocab_size", [1_000, 262_144])
def test_small_and_large_vocabularies(vocab_size: int) -> None:
    head = mx.random.normal((vocab_size, 8), key=mx.random.key(0))
    states = [mx.random.normal((20, 8), key=mx.random.key(s)) for s in (1, 2)]
    targets = mx.array([0, vocab_size - 1] * 10)
    rows = Rows(targets, mx.array([[0.0] * 20, [1.0] * 20]), states[0], states[1:])
    fused = FusedLoss(LossConfig(top_n=100), [0.3], [0.5], 0, False, 32)

    def ours(state: mx.array) -> mx.array:
        inputs = Rows(rows.targets, rows.weights, rows.main, [state])
        return fused(OutputHead(lambda h, w: h @ head.T, None, vocab_size), None, inputs).loss

    def naive(state: mx.array) -> mx.array:
        teacher = Teacher.detach(rows.main @ head.T, 100)
        return head_loss(fused.cfg, state @ head.T, teacher, targets, 0.3, 0.5).sum()

    (a, ga), (b, gb) = mx.value_and_grad(ours)(states[1]), mx.value_and_grad(naive)(states[1])
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    np.testing.assert_allclose(np.array(ga), np.array(gb), atol=1e-5, rtol=1e-4)
    assert 32 <= default_chunk(vocab_size, 4) <= 4096


def test_vocabulary_of_tests_is_not_a_multiple_of_anything() -> None:
    assert V % 2 and VOCAB % 2  # kernels meet ragged rows


def test_distillation_begins_where_it_is_told_to() -> None:
    """Up to half of the steps training is that with CE alone, then it is not; a start at 0 is no start."""

    def curve(cfg: LossConfig) -> list[float]:
        base = new_base(LLAMA, 0)
        stepper = Stepper(Model(base, init_heads(base, 2, "postnorm", 1), True), cfg, OptimConfig(iters=8, warmup=1))
        return [float(stepper.step([cycle_batch(2, 19)])[0][0]) for _ in range(8)]

    ce, late, usual = curve(LossConfig(loss="ce")), curve(LossConfig(kl_start=0.5)), curve(LossConfig())
    same = [a == pytest.approx(b, rel=1e-6) for a, b in zip(ce, late, strict=True)]
    assert same == [True] * 6 + [False] * 2  # the loss after step 4 is the first to see a KL, the one after step 5 its share
    assert usual == curve(LossConfig(kl_start=0.0)) and usual[2] != pytest.approx(ce[2], rel=1e-6)
    with pytest.raises(ValueError, match=r"--kl-start: got 0.5 with --loss ce"):
        curve(LossConfig(loss="ce", kl_start=0.5))


@pytest.mark.parametrize("drafts", [None, 9])
def test_distillation_that_reaches_the_heads_alone(drafts: int | None) -> None:
    """The base learns what it learns from CE alone, the heads what they learn from CE and KL; values are those of both."""
    from mlx.utils import tree_flatten

    base = new_base(LLAMA, 0)
    heads = init_heads(base, K, "postnorm", 1)
    if drafts is not None:
        heads.draft_among(mx.arange(0, VOCAB, drafts))
    batch, cfg = cycle_batch(3, 19), LossConfig(kl_reaches="heads", top_n=7)
    masks = target_masks(batch, K)
    inputs = mx.array(batch.tokens), mx.array(masks), mx.array(1.0 / masks.sum(axis=(1, 2)))
    model = Model(base, heads, True)
    params, share = model.trainable(), mx.array(0.6)

    def part(cfg: LossConfig, share: mx.array | None) -> tuple[mx.array, dict]:
        def loss(values: dict) -> mx.array:
            model.bind(values)
            return objective(model, model.fused_loss(cfg), *inputs, kl_share=share)[0]

        return mx.value_and_grad(loss)(params)

    got, of_both = mx.compile(lambda: part(cfg, share))()
    (ce, of_ce), (both, of_all) = part(LossConfig(loss="ce"), None), part(LossConfig(top_n=7), share)
    assert got.item() == pytest.approx(both.item(), rel=1e-5) and both.item() > ce.item()
    for name, tree in of_both.items():
        for (key, a), (_, b) in zip(tree_flatten(tree), tree_flatten((of_ce if name == "base" else of_all)[name]), strict=True):
            np.testing.assert_allclose(np.array(a), np.array(b), atol=2e-6, rtol=1e-4, err_msg=key)
    assert any(
        not mx.allclose(a, b).item() for (_, a), (_, b) in zip(*map(tree_flatten, (of_ce["base"], of_all["base"])), strict=True)
    )
    metrics = [
        objective(model, model.fused_loss(c), *inputs, kl_share=share, with_gradient=False)[1]
        for c in (cfg, LossConfig(top_n=7))
    ]
    np.testing.assert_allclose(np.array(metrics[0]), np.array(metrics[1]), rtol=1e-5)


def test_what_distillation_of_the_heads_alone_needs() -> None:
    base = new_base(LLAMA, 0)
    for joint, loss in ((False, "mtpd"), (True, "ce"), (True, "kl")):
        with pytest.raises(ValueError, match="--kl-reaches heads: expected --train joint or lora, --loss mtpd"):
            Model(base, init_heads(base, 1, "postnorm", 0), joint).fused_loss(LossConfig(loss=loss, kl_reaches="heads"))
