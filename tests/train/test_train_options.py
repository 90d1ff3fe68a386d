"""Options of a step: gradient checkpointing, non-finite guard, compute type, reports, rates."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import logged, one_line, train_args
from tiny import LLAMA, cycle_batch

from mtpd_mlx.cli import main
from mtpd_mlx.losses.objective import Model, objective
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import (
    COPIES_SHARE,
    FINE_RATE,
    FRESH_RATE,
    FRESH_WIDTH,
    KL_START_FROM_SCRATCH,
    MUON_WIDTH,
    LossConfig,
    OptimConfig,
    TrainOptions,
    with_rate,
)
from mtpd_mlx.ranks.world import World
from mtpd_mlx.train.loop import LOG_NAME
from mtpd_mlx.train.screen import depths
from mtpd_mlx.train.step import Stepper, compute_dtype


def stepper(joint: bool = False, **options: object) -> Stepper:
    base = new_base(LLAMA, 0)
    optim = OptimConfig(iters=20, warmup=0, learning_rate=1e-3, **options)  # type: ignore[arg-type]
    model = Model(base, init_heads(base, 2, "postnorm", 0), joint, grad_checkpoint=optim.grad_checkpoint)
    return Stepper(model, LossConfig(), optim)


@pytest.mark.parametrize("joint", [False, True])
def test_grad_checkpoint_changes_nothing(joint: bool) -> None:
    plain, saving = stepper(joint), stepper(joint, grad_checkpoint=True)
    for seed in range(3):
        a, b = plain.step([cycle_batch(2, 16, seed)]), saving.step([cycle_batch(2, 16, seed)])
        np.testing.assert_allclose(np.array(a[0]), np.array(b[0]), rtol=1e-5)
        assert a[1].item() == pytest.approx(b[1].item(), rel=1e-4)


def test_a_frozen_base_keeps_no_activations() -> None:
    """The memory of a step does not grow with the layers of a frozen base; it does with those of a base that trains."""

    def memory(layers: int, joint: bool) -> int:
        base = new_base(LLAMA | {"num_hidden_layers": layers}, 0)
        model = Model(base, init_heads(base, 1, "postnorm", 0), joint)
        batch, masks = cycle_batch(8, 256), np.ones((2, 8, 256), dtype=bool)
        inputs = mx.array(batch.tokens), mx.array(masks), mx.ones(2)

        def loss(params: dict) -> mx.array:
            model.bind(params)
            return objective(model, model.fused_loss(LossConfig()), *inputs)[0]

        params = model.trainable()
        mx.eval(params, inputs)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.value_and_grad(loss)(params))
        return mx.get_peak_memory() - before

    activations = 8 * 256 * 64 * 4  # one hidden state
    assert memory(12, False) - memory(2, False) < 4 * activations
    assert memory(12, True) - memory(2, True) > 40 * activations


@pytest.mark.parametrize("accumulation", [1, 2])
def test_non_finite_gradient_changes_nothing(accumulation: int) -> None:
    from mlx.utils import tree_flatten

    run = stepper(max_grad_norm=0.0)
    batches = [cycle_batch(2, 16, seed) for seed in range(accumulation)]
    assert run.step(batches)[2]
    before = [np.array(a) for _, a in tree_flatten(run.state)]
    healthy = run.params["heads"]["heads"][0]["enorm"]["weight"]
    run.params["heads"]["heads"][0]["enorm"]["weight"] = healthy * float("inf")
    _, norm, counted = run.step(batches)
    assert not counted and not np.isfinite(norm.item())
    run.params["heads"]["heads"][0]["enorm"]["weight"] = healthy
    after = [np.array(a) for _, a in tree_flatten(run.state)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert run.step(batches)[2]
    assert not np.array_equal(before[0], np.array(tree_flatten(run.state)[0][1]))


def test_run_stops_after_skipped_steps_and_resumes(
    tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    step, calls = Stepper.step, []

    def poisoned(self: Stepper, batches: list) -> tuple:
        calls.append(1)
        if len(calls) in (1, 3, 4):
            return mx.full((1 + 2 + 2,), float("nan")), mx.array(float("nan")), False
        return step(self, batches)

    monkeypatch.setattr(Stepper, "step", poisoned)
    assert main(train_args(tiny_base, text_data, tmp_path / "out", "--max-skipped-steps", "2")) == 1
    one_line(capsys, "step 4", "2 times in a row")
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(tmp_path / "out")]) == 0
    last = logged(tmp_path / "out")[-2]
    assert last["iter"] == 6 and last["skipped_steps"] == 3


def test_compute_dtype_follows_the_device() -> None:
    assert compute_dtype(OptimConfig()) == (mx.float32 if mx.default_device().type == mx.DeviceType.cpu else mx.bfloat16)
    assert compute_dtype(OptimConfig(compute_dtype="bfloat16")) == mx.bfloat16


def test_bfloat16_compute_keeps_float32_weights() -> None:
    exact, half = stepper(compute_dtype="float32"), stepper(compute_dtype="bfloat16")
    for seed in range(3):
        a, b = exact.step([cycle_batch(4, 24, seed)]), half.step([cycle_batch(4, 24, seed)])
    np.testing.assert_allclose(np.array(a[0])[:3], np.array(b[0])[:3], rtol=2e-2)
    assert half.params["heads"]["heads"][0]["eh_proj"]["weight"].dtype == mx.float32


def test_report_to(tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.tuner import callbacks

    told: list[tuple[dict, int]] = []
    started: list[dict] = []
    fake = types.SimpleNamespace(
        init=lambda **options: started.append(options), log=lambda figures, step: told.append((figures, step))
    )
    monkeypatch.setattr(callbacks, "wandb", fake)
    out = tmp_path / "out"
    assert main(train_args(tiny_base, text_data, out, "--report-to", "wandb", "--project-name", "mine")) == 0
    assert started[0]["project"] == "mine" and started[0]["config"]["num_heads"] == 2
    train = [f for f, _ in told if "train_loss" in f]
    valid = [f for f, _ in told if "val_loss" in f]
    assert [f["iteration"] for f in train] == [1, 2, 3, 4, 5, 6] and [f["iteration"] for f in valid] == [0, 3, 6]
    assert {"train_tau", "train_car_1", "train_car_2", "learning_rate"} <= train[0].keys() and "val_tau" in valid[0]


@pytest.mark.parametrize("service", ["wandb", "nothing"])
def test_unknown_or_missing_service_is_one_line(
    service: str, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(train_args(tiny_base, text_data, tmp_path / "out", "--report-to", service)) == 1
    one_line(capsys, f"--report-to {service}")
    assert not (tmp_path / "out" / LOG_NAME).exists()


def test_depths_are_drawn() -> None:
    assert depths([1.0, 0.5, 0.0]) == "█ 1.00  ▄ .50    .00"


def test_rows_of_ranks() -> None:
    with pytest.raises(ValueError, match="got 5 rows for 2 ranks"):
        World(0, 2).rows(5)
    assert [list(range(6))[World(r, 3).rows(6)] for r in range(3)] == [[0, 3], [1, 4], [2, 5]]


def test_what_joint_training_does_with_the_teacher() -> None:
    """Where nothing is said it is not detached; detached from scratch, it teaches from half of the steps on."""
    joint: dict[str, object] = {"model": "m", "train": "joint"}
    scratch: dict[str, object] = {"train": "joint", "model_config": "config.json", "tokenizer": "folder"}
    detached = {"detach_teacher": True}
    for flags, is_detached, start in (
        ({"model": "m"}, True, 0.0),
        (joint, False, 0.0),
        (joint | detached, True, 0.0),
        (joint | {"teacher": "ema"}, True, 0.0),
        (joint | {"loss": "ce"}, True, 0.0),
        (joint | {"kl_reaches": "heads"}, True, 0.0),
        (scratch, False, 0.0),
        (scratch | detached, True, KL_START_FROM_SCRATCH),
        (scratch | detached | {"kl_start": 0.0}, True, 0.0),
        (scratch | detached | {"heads_reduction": "mean"}, True, 0.0),
        (scratch | {"teacher": "ema"}, True, 0.0),
        (scratch | {"kl_reaches": "heads"}, True, KL_START_FROM_SCRATCH),
    ):
        loss = TrainOptions.build({}, flags).loss
        assert (loss.detach_teacher, loss.kl_start) == (is_detached, start), flags
        assert TrainOptions.from_dict(TrainOptions.build({}, flags).to_dict()).loss == loss  # a resumed run keeps its own


def test_the_rate_of_new_heads_falls_with_the_hidden_size() -> None:
    def rate(hidden_size: int, **flags: object) -> float | None:
        return with_rate(TrainOptions.build({}, {"model": "base", **flags}), hidden_size).optim.learning_rate

    adamw = {"optimizer": "adamw"}
    assert rate(64, **adamw) == rate(FRESH_WIDTH, **adamw) == FRESH_RATE["adamw"] < FRESH_RATE["muon"] == rate(64)
    assert rate(2 * FRESH_WIDTH) == pytest.approx(FRESH_RATE["muon"] / 2)
    assert rate(2 * FRESH_WIDTH, **adamw) == pytest.approx(FRESH_RATE["adamw"] / 2)
    extending = with_rate(TrainOptions.build({}, {"model": "base"}), 64, COPIES_SHARE).optim.learning_rate
    assert extending == pytest.approx(FRESH_RATE["adamw"] / 3)
    assert rate(100 * FRESH_WIDTH) == FINE_RATE
    scratch = {"model": None, "train": "joint", "model_config": "config.json", "tokenizer": "folder"}
    assert rate(64, **scratch) == pytest.approx(2e-3) and rate(100 * FRESH_WIDTH, **scratch) == FINE_RATE
    assert rate(64, init_heads="heads") == rate(64, train="joint") == FINE_RATE
    assert rate(64, learning_rate=1e-4) == rate(8192, learning_rate=1e-4) == 1e-4


def test_new_heads_of_a_narrow_frozen_base_train_by_muon() -> None:
    def optimizer(hidden_size: int = 64, share: float = 1.0, **flags: object) -> str | None:
        return with_rate(TrainOptions.build({}, {"model": "base", **flags}), hidden_size, share).optim.optimizer

    assert optimizer() == optimizer(MUON_WIDTH) == optimizer(learning_rate=1e-3) == "muon"
    assert optimizer(MUON_WIDTH + 1) == optimizer(share=COPIES_SHARE) == optimizer(init_heads="heads") == "adamw"
    assert optimizer(train="joint") == optimizer(train="lora") == optimizer(optimizer="adamw") == "adamw"
    assert optimizer(MUON_WIDTH + 1, optimizer="muon") == optimizer(train="joint", optimizer="muon") == "muon"


def test_the_rate_that_was_chosen_is_recorded(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    """Where it was not given: in the checkpoint, and for --resume."""
    out = tmp_path / "heads"
    assert main(train_args(tiny_base, text_data, out)) == 0
    record = json.loads((out / "mtp_config.json").read_text())
    saved = json.loads((out / "train_options.json").read_text())
    assert saved["optimizer"] == record["training"]["optimizer"] == "muon"
    assert saved["learning_rate"] == record["training"]["learning_rate"] == FRESH_RATE["muon"]
