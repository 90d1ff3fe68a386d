"""Losses and gradients by the CUDA kernels against their portable twins: on an NVIDIA GPU, and some of them on this CPU.

Without a GPU the first are skipped; where MTPD_REQUIRE_CUDA is set (a job that is there for the GPU) they fail.
"""

import os
from itertools import product

import numpy as np
import pytest
from cuda_emulator import COMPILER, emulated

from mtpd_mlx.losses import row_losses, row_stats
from mtpd_mlx.model.runtime import mx, on_cuda
from mtpd_mlx.options.train import LossConfig

WHOLE = 10**6  # more than any vocabulary
TOLERANCE = {mx.float32: 2e-5, mx.bfloat16: 1e-2, mx.float16: 2e-3}


LOSSES = [*product(("mtpd", "ce", "kl"), (1, 7, 64, WHOLE)), ("lk", WHOLE), ("tv", WHOLE)]


def use_kernels(monkeypatch: pytest.MonkeyPatch, used: bool) -> None:
    for module in (row_stats, row_losses):
        monkeypatch.setattr(module, "on_cuda", lambda: used)


def rows(dtype: mx.Dtype, size: int, seed: int) -> mx.array:
    z = (mx.random.normal((19, size), key=mx.random.key(seed)) * 3).astype(dtype)
    z[0, : size // 2] = z[0, -1]  # many ties
    return z


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("size", [101, 4096, 151936])
@pytest.mark.parametrize(("loss", "top_n"), LOSSES)
def test_on_a_gpu(dtype: mx.Dtype, size: int, loss: str, top_n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not on_cuda():
        assert not os.environ.get("MTPD_REQUIRE_CUDA"), "MTPD_REQUIRE_CUDA is set, and MLX has no NVIDIA GPU here"
        pytest.skip("needs MLX on an NVIDIA GPU")
    compare(dtype, size, loss, top_n, monkeypatch)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("dtype", "size", "loss", "top_n"),
    [
        (mx.float32, 101, "mtpd", 7),
        (mx.float32, 4096, "mtpd", WHOLE),
        (mx.bfloat16, 4096, "mtpd", 64),
        (mx.float32, 4096, "kl", 1),
        (mx.bfloat16, 101, "ce", WHOLE),
        (mx.float32, 4096, "lk", WHOLE),
        (mx.bfloat16, 4096, "tv", WHOLE),
    ],
    ids=str,
)
def test_emulated(dtype: mx.Dtype, size: int, loss: str, top_n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated(monkeypatch)
    compare(dtype, size, loss, top_n, monkeypatch)


def compare(dtype: mx.Dtype, size: int, loss: str, top_n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is not detached where the loss lets it be so."""
    student, main = rows(dtype, size, 0), rows(dtype, size, 1)
    targets = mx.random.randint(-1, size, (19,), key=mx.random.key(2))
    weights = mx.random.uniform(shape=(19,), key=mx.random.key(3))

    def run() -> tuple:
        stats = row_stats.row_stats(main)
        teacher = row_losses.teacher_rows(main, stats, top_n)
        cfg = LossConfig(loss=loss, detach_teacher=loss in ("ce", "lk", "tv"))
        made = row_losses.head_rows(cfg, student, teacher, targets, weights, 0.3, 0.5)
        return stats, teacher, made

    use_kernels(monkeypatch, True)
    kernel = run()
    use_kernels(monkeypatch, False)
    plain = run()
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for a, b in zip(kernel, plain, strict=True):
        for name, value in vars(b).items():
            other = getattr(a, name)
            if not isinstance(value, mx.array) or name == "exps":
                continue
            got, want = (np.array(x.astype(mx.float32)) for x in (other, value))
            if name == "best":
                assert np.array_equal(got, want)
            else:
                np.testing.assert_allclose(got, want, **close, err_msg=f"{type(b).__name__}.{name}")
        if isinstance(b, row_losses.TeacherRows):  # the same top-N set
            assert np.array_equal(np.array(a.weights >= 0), np.array(b.weights >= 0))
