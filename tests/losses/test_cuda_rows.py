"""The CUDA kernels against their portable twins: run where MLX has an NVIDIA GPU, skipped elsewhere."""

from itertools import product

import numpy as np
import pytest

from mtpd_mlx.losses import row_losses, row_stats
from mtpd_mlx.model.runtime import mx, on_cuda
from mtpd_mlx.options.train import LossConfig

pytestmark = pytest.mark.skipif(not on_cuda(), reason="needs MLX on an NVIDIA GPU")
WHOLE = 10**6  # more than any vocabulary
TOLERANCE = {mx.float32: 2e-5, mx.bfloat16: 1e-2, mx.float16: 2e-3}


def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (row_stats, row_losses):
        monkeypatch.setattr(module, "on_cuda", lambda: False)


def rows(dtype: mx.Dtype, size: int, seed: int) -> mx.array:
    z = (mx.random.normal((19, size), key=mx.random.key(seed)) * 3).astype(dtype)
    z[0, : size // 2] = z[0, -1]  # many ties
    return z


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("size", [101, 4096, 151936])
@pytest.mark.parametrize(("loss", "top_n"), [*product(("mtpd", "ce", "kl"), (1, 7, 64, WHOLE)), ("lk", WHOLE), ("tv", WHOLE)])
def test_losses_and_gradients(dtype: mx.Dtype, size: int, loss: str, top_n: int, monkeypatch: pytest.MonkeyPatch) -> None:
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

    kernel = run()
    portable(monkeypatch)
    plain = run()
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for a, b in zip(kernel, plain, strict=True):
        for name, value in vars(b).items():
            other = getattr(a, name)
            if not isinstance(value, mx.array) or name == "exps":
                continue
            if name == "best":
                assert np.array_equal(np.array(other), np.array(value))
            else:
                got, want = (np.array(x.astype(mx.float32)) for x in (other, value))
                assert ((got >= 0) == (want >= 0)).all() or name != "weights"  # the same top-N set
                np.testing.assert_allclose(got, want, **close, err_msg=f"{type(b).__name__}.{name}")
