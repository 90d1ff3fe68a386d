"""Ranks on free ports of this machine: sums, the watch over each other, and tools/bench_scaling.py."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.ring import ring
from helpers.tools import tool

from mtpd_mlx.model.load_save import save_arrays
from mtpd_mlx.model.runtime import kernel_cache, mx
from mtpd_mlx.options.train import TrainOptions
from mtpd_mlx.ranks import world as distributed
from mtpd_mlx.ranks.world import World
from mtpd_mlx.train.run import train
from mtpd_mlx.train.setup import gather

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, time
import mtpd_mlx.ranks.watch as watch
from mtpd_mlx.ranks.world import World
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.text.messages import messages_on_stderr

watch.PATIENCE[b""] = 0.5
world = World.launched()
try:
    with messages_on_stderr(), watch.stop_clearly(world, "continue so"):
        {body}
    print("left", world.rank)
except ValueError:
    print("ended", world.rank)
"""
HANG = "mx.eval(mx.distributed.all_sum(mx.ones(4), group=world.group))"


@contextmanager
def started(body: str, log: Path) -> Iterator[list[subprocess.Popen]]:
    """Two ranks of PROGRAM on a ring."""
    with log.open("wb") as output, ring(log.parent, ["-c", PROGRAM.format(body=body)], stdout=output, stderr=output) as ranks:
        yield ranks


LOST = ["rank 0 stops: another rank was lost (rank 1); continue so"]
CASES = {
    "killed": ("os.kill(os.getpid(), 9) if world.rank else time.sleep(60)", [1, -9], LOST),
    "failed alone": ("1 / 0 if world.rank else time.sleep(60)", [1, 1], LOST),
    "finished": ("time.sleep(0 if world.rank else 1.5)", [0, 0], ["left 0", "left 1"]),
    "ended together": ("time.sleep(0 if world.rank else 1.5); int('x')", [0, 0], ["ended 0", "ended 1"]),
}


@pytest.mark.parametrize(
    "case", ["killed", "ended together", *(pytest.param(c, marks=pytest.mark.slow) for c in ("failed alone", "finished"))]
)
def test_ranks_stop_together(case: str, tmp_path: Path) -> None:
    body, codes, expected = CASES[case]
    log = tmp_path / "log"
    with started(body, log) as processes:
        assert [p.wait(40) for p in processes] == codes, log.read_text()
    text = log.read_text()
    assert all(line in text for line in expected), text
    assert ("lost" in text) == (expected == LOST), text


@pytest.mark.slow
def test_sigterm_ends_a_rank_inside_a_collective(tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = f"print('here', flush=True); os.kill(os.getpid(), signal.SIGSTOP) if world.rank else {HANG}"
    with started(body, log) as processes:
        deadline = time.time() + 40
        while log.read_text().count("here") < 2 and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert processes[0].poll() is None, log.read_text()
        processes[0].send_signal(signal.SIGTERM)
        assert processes[0].wait(10) == 143
    assert "rank 0 was told to stop" in log.read_text() and "continue so" in log.read_text()


def test_sums_do_not_depend_on_the_order_of_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[list[float]] = []

    def all_sum(x: mx.array, group: Any) -> mx.array:
        sent.append(x.astype(mx.float32).tolist())
        return x + x

    monkeypatch.setattr(distributed.mx.distributed, "all_sum", all_sum)
    a, b, c = mx.array([1.0, 2.0]), mx.array([[3.0]]), mx.array([4.0])
    world = World(0, 2, bucket_bytes=12)
    first = world.sum({"a": a, "b": b, "c": c}, after=mx.array([9.0]))
    second = world.sum({"c": c, "b": b, "a": a}, after=mx.array([9.0]))
    assert sent[:2] == sent[2:] == [[4, 3, 9], [1, 2, 6]]  # the last of each: one element of the sum before
    for total in (first, second):
        assert {k: v.tolist() for k, v in total.items()} == {"a": [2, 4], "b": [[6]], "c": [8]}
    sent.clear()
    world.sum({f"layers.{i}": mx.array([float(i)]) for i in (1, 10, 9)})
    assert [n for part in sent for n in part][:3] == [10, 9, 1]  # as a backward pass makes them
    halves = world.sum({"a": a + 0.001}, mx.bfloat16)
    assert halves["a"].dtype == mx.float32 and halves["a"].tolist() == [2, 4]


def test_what_rank_0_refuses_alone_all_ranks_hear(tmp_path: Path, tiny_base: Path, text_data: Path) -> None:
    """A damaged resume point, a missing service: within from_lead, else the other ranks would wait for a rank that has gone."""
    out, heard = tmp_path / "out", []
    options = {"model": str(tiny_base), "data": [str(text_data)], "out": str(out), "num_heads": 1, "iters": 2, "warmup": 0}
    options |= {"max_seq_length": 24, "val_batches": 1, "save_every": 1}

    class Lead(World):
        def from_lead(self, make: Any) -> Any:
            try:
                return make()
            except ValueError as error:
                heard.append(str(error))
                raise

    def run(**more: Any) -> None:
        chosen = TrainOptions.build(options | more, {})
        train(chosen, gather(chosen), lambda record: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtpd_mlx.train.run.World.launched", lambda: Lead(0, 1))
        with pytest.raises(ValueError, match="report-to"):
            run(report_to="nobody")
        assert len(heard) == 1 and "report-to" in heard[0]
        patch.setattr("mtpd_mlx.train.run.finish", lambda out: None)
        run(overwrite=True)
        save_arrays(out / "resume-2" / "params.safetensors", {"a": mx.zeros(1)})
        with pytest.raises(ValueError, match="damaged resume point"):
            run(resume=True)
        assert len(heard) == 2 and "damaged resume point" in heard[1]


def program(*arguments: str) -> subprocess.CompletedProcess:
    env = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "export")])}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


def bench(*arguments: str) -> dict[str, Any]:
    done = program("-m", "tools.bench_scaling", "--dims", "tiny", "--ranks", "1", "2", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_table_of_two_ranks() -> None:
    result = bench("--modes", "heads", "--steps", "2", "--warmup", "1", "--num-heads", "1")
    steps = {(r["ranks"], r["scaling"], r["gradients"]): r for r in result["steps"]}
    assert set(steps) == {(1, "weak", "none")} | {
        (2, scaling, way) for scaling in ("weak", "strong") for way in ("none", "float32", "bfloat16")
    }
    assert steps[2, "strong", "float32"]["rows_per_rank"] * 2 == steps[2, "weak", "float32"]["rows_per_rank"] == 8
    alone = steps[1, "weak", "none"]
    assert alone["efficiency"] == 1 and alone["tokens_per_s"] == pytest.approx(8 * 32 / alone["step_s"])
    for scaling, rows in (("weak", 16), ("strong", 8)):
        silent, summed = steps[2, scaling, "none"], steps[2, scaling, "float32"]
        assert summed["tokens_per_s"] == pytest.approx(rows * 32 / summed["step_s"])
        assert summed["efficiency"] == pytest.approx(summed["tokens_per_s"] / alone["tokens_per_s"] / 2)
        assert summed["all_reduce_share"] == pytest.approx((summed["step_s"] - silent["step_s"]) / summed["step_s"])
        assert not {"efficiency", "all_reduce_share"} & set(silent)
    assert len(steps[2, "weak", "bfloat16"]["peak_gb_by_rank"]) == 2
    sizes = {r["way"]: r["bytes"] for r in result["all_reduce"]}
    assert all(r["bus_gb_per_s"] == pytest.approx(r["bytes"] / r["seconds"] / 1e9) for r in result["all_reduce"])
    assert sizes["float32"] == 2 * sizes["bfloat16"] == sizes["float32, array by array"] > 0


@pytest.mark.slow
def test_losses_on_two_ranks_and_resumed() -> None:
    options = ["--modes", "joint", "--check-losses", "--steps", "4", "--num-heads", "1", "--grad-reduce-dtype", "bfloat16"]
    losses = bench(*options)["losses"]
    assert losses["resume_points"] == ["resume-2"] and losses["reduce"] == "bfloat16"
    assert len(losses["differences"]) == 2
    assert 0 < max(losses["differences"].values()) < losses["tolerance"] <= 1e-3


GPUS = """
from pathlib import Path
from tools.scaling import ranks
ranks.gpus = lambda: ["5", "7"]
print([r["MLX_RANK"] + ":" + r["CUDA_VISIBLE_DEVICES"] + ":" + r["MLX_WORLD_SIZE"] for r in ranks.environments(2, Path())])
ranks.check([1, 2])
ranks.check([1, 4])
"""


def test_each_rank_has_a_gpu_and_no_more_than_there_are() -> None:
    done = program("-c", GPUS)
    assert done.stdout.strip() == "['0:5:2', '1:7:2']"
    assert done.stderr.splitlines()[-1] == "ValueError: --ranks 4: expected at most 2, the GPUs that are visible here"
    refused = tool("bench_scaling", "--dims", "tiny", "--ranks", "1", "3")
    assert refused.returncode == 1 and refused.stderr.startswith("bench_scaling: --rows 8: expected a multiple")
    assert "Traceback" not in refused.stderr


def test_ranks_do_not_share_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", "kept")
    assert [kernel_cache(r) for r in range(3)] == ["kept", "kept-rank-1", "kept-rank-2"]
