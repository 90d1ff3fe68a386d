"""Joint training with the mean of the heads' losses and with an average of the base as teacher: against definitions, a Python
loop over saved weights, an uncompiled step, an uninterrupted run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import assert_same_heads, assert_same_run, one_line, train_args
from tiny import LLAMA, cycle_batch

from mtpd_mlx.cli import main
from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.losses.definitions import cross_entropy, heads_objective
from mtpd_mlx.losses.objective import Model, Tree, objective
from mtpd_mlx.model.adapters import add_lora
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.heads import init_heads, shift_left
from mtpd_mlx.model.load_save import load_arrays, load_checkpoint
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LoraConfig, LossConfig, OptimConfig, TrainOptions
from mtpd_mlx.ranks.world import World
from mtpd_mlx.train import ema
from mtpd_mlx.train.resume_point import Progress, ResumePoint, load_resume_point, save_resume_point
from mtpd_mlx.train.step import Stepper

K = 3
MEAN_OF_EMA = ("--heads-reduction", "mean", "--teacher", "ema", "--ema-decay", "0.6")


def model_of(kind: str) -> Model:
    base = new_base(LLAMA | {"tie_word_embeddings": kind != "untied"}, 0)
    if kind == "lora":
        add_lora(base.model, LoraConfig(num_layers=1, lora_rank=3, lora_scale=2.0), 0)
    model = Model(base, init_heads(base, K, "postnorm", 1), True, lora=kind == "lora")
    if kind == "drafts":  # every token, so that the definition is the same
        model.heads.draft_among(mx.arange(base.vocab_size, dtype=mx.int32))
    return model


def moved(tree: Tree, seed: int, scale: float = 0.1) -> Tree:
    """The weights a little elsewhere."""
    from mlx.utils import tree_flatten, tree_unflatten

    flat: Any = tree_flatten(tree)
    return tree_unflatten(
        [(n, w + scale * mx.random.normal(w.shape, key=mx.random.key(seed * 1_000 + i))) for i, (n, w) in enumerate(flat)]
    )


def logits_of(base: Base, weights: Tree, tokens: mx.array) -> mx.array:
    base.model.update(weights)
    return base.logits(base.norm(base.trunk(tokens)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("kind", "loss", "reduction", "teacher"),
    [
        ("tied", "mtpd", "mean", "live"),
        ("tied", "mtpd", "mean", "ema"),
        ("tied", "mtpd", "sum", "ema"),
        ("tied", "ce", "mean", "live"),
        ("untied", "lk", "mean", "ema"),
        ("untied", "tv", "mean", "ema"),
        ("lora", "kl", "mean", "ema"),
        ("drafts", "mtpd", "mean", "ema"),
    ],
)
def test_losses_and_gradients_by_definition(kind: str, loss: str, reduction: str, teacher: str, compiled: bool) -> None:
    from mlx.utils import tree_flatten

    cfg = LossConfig(loss=loss, top_n=11, heads_reduction=reduction, teacher=teacher)
    model, other = model_of(kind), model_of(kind)
    batch = cycle_batch(2, 19)
    masks = target_masks(batch, K)
    tokens, floats = mx.array(batch.tokens), mx.array(masks.astype(np.float32))
    inputs = tokens, mx.array(masks), mx.array((1.0 / masks.sum(axis=(1, 2))).astype(np.float32))
    params = moved(model.trainable(), 1, 0.02)
    weights = moved(params["base"], 2) if teacher == "ema" else None
    taught = None if weights is None else mx.stop_gradient(logits_of(other.base, weights, tokens))

    def ours(params: Tree, weights: Tree | None) -> mx.array:
        model.bind(params)
        return objective(model, model.fused_loss(cfg), *inputs, teacher=weights)[0]

    def naive(params: Tree) -> mx.array:
        model.bind(params)
        main, states = model.states(tokens)
        logits, heads = model.base.logits(main), [model.base.logits(s) for s in states]
        total, of_heads, _ = heads_objective(cfg, heads, logits, tokens, floats, inputs[2], teacher_logits=taught)
        if loss != "tv":  # a mean by itself
            assert total.item() == pytest.approx(of_heads.sum().item() / (K if reduction == "mean" else 1), rel=1e-5)
        return total + (cross_entropy(logits, shift_left(tokens, 1)) * floats[0]).sum() * inputs[2][0]

    gradient = mx.value_and_grad(ours)
    got, of_ours = (mx.compile(gradient) if compiled else gradient)(params, weights)
    want, of_naive = mx.value_and_grad(naive)(params)
    assert loss == "tv" or got.item() == pytest.approx(want.item(), rel=1e-5)  # of tv a sum with the same gradient is made
    for (name, a), (_, b) in zip(tree_flatten(of_ours), tree_flatten(of_naive), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5, rtol=2e-4, err_msg=name)


def test_distillation_of_the_heads_alone_by_an_average() -> None:
    """The base learns from CE alone, whoever teaches; the heads from the average's distribution."""
    from mlx.utils import tree_flatten

    model, batch = model_of("tied"), cycle_batch(2, 19)
    masks = target_masks(batch, K)
    inputs = mx.array(batch.tokens), mx.array(masks), mx.array((1.0 / masks.sum(axis=(1, 2))).astype(np.float32))
    params = moved(model.trainable(), 1, 0.02)
    weights = moved(params["base"], 2)

    def gradients(cfg: LossConfig, teacher: Tree | None) -> dict[str, mx.array]:
        def loss(params: Tree) -> mx.array:
            model.bind(params)
            return objective(model, model.fused_loss(cfg), *inputs, teacher=teacher)[0]

        return dict(tree_flatten(mx.grad(loss)(params)))

    got = gradients(LossConfig(kl_reaches="heads", teacher="ema", top_n=11), weights)
    both = gradients(LossConfig(teacher="ema", top_n=11), weights)
    ce = gradients(LossConfig(loss="ce"), None)
    for name, gradient in got.items():
        want = (ce if name.startswith("base.") else both)[name]
        np.testing.assert_allclose(np.array(gradient), np.array(want), atol=1e-5, rtol=2e-4, err_msg=name)


def stepper(loss: LossConfig, lora: bool = False) -> Stepper:
    return Stepper(model_of("lora" if lora else "tied"), loss, OptimConfig(iters=20, warmup=0, learning_rate=1e-2))


@pytest.mark.parametrize("lora", [False, True])
def test_the_average_is_that_of_a_loop_over_saved_weights(lora: bool) -> None:
    from mlx.utils import tree_flatten

    def weights(tree: Tree) -> dict[str, np.ndarray]:
        flat: Any = tree_flatten(tree)
        return {name: np.array(w, dtype=np.float64) for name, w in flat}

    run = stepper(LossConfig(teacher="ema", ema_decay=0.3), lora)
    average, decays = weights(run.params["base"]), []
    for i in range(6):
        run.step([cycle_batch(2, 16, i)])
        decays.append(min(0.3, (1 + i) / (10 + i)))
        average = {n: decays[-1] * average[n] + (1 - decays[-1]) * w for n, w in weights(run.params["base"]).items()}
    assert decays[0] == 0.1 and decays[2] < 0.3 == decays[-1]  # both sides of the minimum were met
    held = weights(run.teacher)
    assert held.keys() == average.keys() == weights(run.params["base"]).keys()
    for name, w in average.items():
        np.testing.assert_allclose(held[name], w, atol=1e-7, rtol=1e-6, err_msg=name)
        assert np.abs(held[name] - weights(run.params["base"])[name]).max() > 1e-4, name
    assert run.teacher["model"]["layers"][1] and (not lora or "embed_tokens" not in held)


def test_the_average_teaches_from_the_second_step_on() -> None:
    """Before the first it is the base itself; then the losses part from those of the base as teacher."""
    live, average = stepper(LossConfig(top_n=20)), stepper(LossConfig(top_n=20, teacher="ema"))
    metrics = [[np.array(run.step([cycle_batch(2, 16, i)])[0]) for run in (live, average)] for i in range(3)]
    np.testing.assert_allclose(metrics[0][0], metrics[0][1], rtol=1e-6)
    assert not np.allclose(metrics[2][0][1 : 1 + K], metrics[2][1][1 : 1 + K], rtol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_compiled_steps_equal_uncompiled(lora: bool) -> None:
    from mlx.utils import tree_flatten

    cfg = LossConfig(top_n=20, teacher="ema", heads_reduction="mean", ema_decay=0.5)
    compiled = stepper(cfg, lora)
    batches = [[cycle_batch(2, 16, 2 * i), cycle_batch(2, 16, 2 * i + 1)] for i in range(3)]
    got = [np.array(compiled.step(b)[0]) for b in batches]
    mx.disable_compile()
    try:
        plain = stepper(cfg, lora)
        want = [np.array(plain.step(b)[0]) for b in batches]
        np.testing.assert_allclose(compiled.evaluate(batches[0][0])[0], plain.evaluate(batches[0][0])[0], rtol=1e-4)
    finally:
        mx.enable_compile()
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for (name, a), (_, b) in zip(tree_flatten(compiled.teacher), tree_flatten(plain.teacher), strict=True):
        # AdamW makes whole steps of gradients that are nothing but rounding: single entries may part
        assert np.mean(~np.isclose(np.array(a), np.array(b), atol=1e-4)) < 0.01, name


def test_a_step_that_is_skipped_leaves_the_average() -> None:
    from mlx.utils import tree_flatten

    run = stepper(LossConfig(teacher="ema"))
    run.step([cycle_batch(2, 16, 0)])
    before = [np.array(a) for _, a in tree_flatten(run.teacher)]
    gain = run.params["heads"]["heads"][0]["enorm"]["weight"]
    run.params["heads"]["heads"][0]["enorm"]["weight"] = gain * float("inf")
    assert not run.step([cycle_batch(2, 16, 1)])[2]
    assert all(np.array_equal(a, np.array(b)) for a, (_, b) in zip(before, tree_flatten(run.teacher), strict=True))


def test_no_activations_are_kept_for_the_average() -> None:
    """The memory of its pass does not grow with the layers, beyond their weights."""

    def more(layers: int) -> int:
        base = new_base(LLAMA | {"num_hidden_layers": layers}, 0)
        model, batch = Model(base, init_heads(base, 1, "postnorm", 0), True), cycle_batch(8, 256)
        inputs = mx.array(batch.tokens), mx.ones((2, 8, 256), mx.bool_), mx.ones(2)
        params = model.trainable()
        average = ema.copied(params["base"])
        mx.eval(params, average, inputs)
        peaks = []
        for teacher in (None, average):

            def loss(params: Tree, teacher: Tree | None = teacher) -> mx.array:
                model.bind(params)
                return objective(model, model.fused_loss(LossConfig()), *inputs, teacher=teacher)[0]

            mx.reset_peak_memory()
            mx.eval(mx.grad(loss)(params))
            peaks.append(mx.get_peak_memory())
        return peaks[1] - peaks[0]

    hidden = 8 * 256 * 64 * 4  # bytes of one hidden state
    assert more(12) < more(2) + 4 * hidden


@pytest.mark.parametrize("lora", [False, True])
def test_a_resume_point_holds_the_average_bit_for_bit(lora: bool, tmp_path: Path) -> None:
    from mlx.utils import tree_flatten

    begun, again = (stepper(LossConfig(teacher="ema"), lora) for _ in range(2))
    for i in range(3):
        begun.step([cycle_batch(2, 16, i)])
    parts = [dict(tree_flatten(tree)) for tree in begun.state]
    save_resume_point(tmp_path, ResumePoint(*parts[:2], Progress(iteration=3), parts[2]))
    held = load_resume_point(tmp_path, 3)
    again.restore(held.params, held.optimizer, held.teacher)
    for part, tree in zip(parts, again.state, strict=True):
        assert all(np.array_equal(np.array(part[name]), np.array(w)) for name, w in tree_flatten(tree))
    batch = [cycle_batch(2, 16, 3)]
    np.testing.assert_allclose(np.array(begun.step(batch)[0]), np.array(again.step(batch)[0]), rtol=1e-6)


def test_every_rank_takes_over_the_average_of_the_first() -> None:
    from mlx.utils import tree_flatten, tree_map

    lead = stepper(LossConfig(teacher="ema"))
    lead.step([cycle_batch(2, 16, 0)])

    class Second(World):
        def sum(self, tree: Any, dtype: mx.Dtype | None = None, after: mx.array | None = None) -> Any:
            return tree_map(mx.add, tree, lead.state)

    follower = stepper(LossConfig(teacher="ema"))
    follower.world = Second(1, 2)
    follower.follow_lead()
    for (name, a), (_, b) in zip(tree_flatten(lead.teacher), tree_flatten(follower.teacher), strict=True):
        assert np.array_equal(np.array(a), np.array(b)), name


def joint_run(out: Path, base: Path, data: Path, *extra: str, train: str = "joint") -> int:
    return main(train_args(base, data, out, "--train", train, *MEAN_OF_EMA, *extra, num_layers=2 if train == "lora" else None))


@pytest.mark.parametrize("train", ["joint", "lora"])
def test_interrupted_run_resumes_to_the_same(
    train: str, tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "broken"
    extra = ("--learning-rate", "1e-3", "--grad-accumulation-steps", "2")
    assert joint_run(whole, tiny_base, text_data, *extra, train=train) == 0
    stop_at(4)
    assert joint_run(out, tiny_base, text_data, *extra, train=train) == 130
    monkeypatch.undo()
    (point,) = out.glob("resume-*")
    average, weights = (load_arrays(point / f"{name}.safetensors") for name in ("teacher", "params"))
    assert {f"base.{name}" for name in average} == {name for name in weights if name.startswith("base.")}
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert_same_run(whole, out)
    assert_same_heads(whole, out)


def test_the_checkpoint_says_how_it_was_taught(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    assert joint_run(tmp_path / "out", tiny_base, text_data) == 0
    _, _, config = load_checkpoint(tmp_path / "out")
    loss = config.record["loss"]
    assert (loss["heads_reduction"], loss["teacher"], loss["ema_decay"], loss["detach_teacher"]) == ("mean", "ema", 0.6, True)
    options = json.loads((tmp_path / "out" / "train_options.json").read_text())
    assert options["teacher"] == "ema" and options["heads_reduction"] == "mean"
    rows = [json.loads(row) for row in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    for row in (r for r in rows if "loss" in r):
        assert row["loss"] == pytest.approx(row["main_loss"] + sum(row["head_loss"]) / 2, rel=1e-5)


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_damaged_average_is_refused(
    fault: str, tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    stop_at(3)
    assert joint_run(out, tiny_base, text_data) == 130
    monkeypatch.undo()
    (file,) = out.glob("resume-*/teacher.safetensors")
    held = load_arrays(file)
    if fault == "missing":
        file.unlink()
    else:
        mx.save_safetensors(str(file), {name: w[:1] for name, w in held.items()})
    assert main(["train", "--resume", "--out", str(out)]) == 1
    one_line(capsys, "damaged resume point")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"heads_reduction": "mean"}, "--heads-reduction mean: expected --train joint or lora"),
        ({"teacher": "ema"}, "--teacher ema: expected --train joint or lora"),
        ({"train": "joint", "ema_decay": 0.9}, "--ema-decay: expected --teacher ema"),
        ({"train": "joint", "teacher": "ema", "loss": "ce"}, "--teacher ema: expected --loss mtpd or kl or lk or tv, got ce"),
        ({"train": "joint", "teacher": "ema", "detach_teacher": False}, "--teacher ema: not with --no-detach-teacher"),
        ({"train": "lora", "teacher": "ema", "ema_decay": 1.0}, "--ema-decay: got 1.0, expected at least 0 and less than 1"),
        (
            {"train": "joint", "heads_reduction": "mean", "loss": "tv"},
            "--heads-reduction: expected --loss mtpd or ce or kl or lk",
        ),
    ],
)
def test_what_has_no_effect_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        TrainOptions.build({}, {"model": "m"} | given)
    assert said in str(error.value) and "\n" not in str(error.value)
