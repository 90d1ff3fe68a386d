"""Teachers of another type than the students' logits, and stored ones that are rounded: q sums to 1, all paths agree."""

import numpy as np
import pytest

from mtpd_mlx.losses.row_losses import TeacherRows, head_rows, stored_teacher, teacher_rows
from mtpd_mlx.losses.row_stats import row_stats
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.train import LossConfig

R, V = 5, 301
HALF = [mx.bfloat16, mx.float16]


def drawn(seed: int, dtype: mx.Dtype) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(0, 3, (R, V)).astype(np.float32)).astype(dtype)


def values(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))


def test_q_of_a_stored_teacher_sums_to_one() -> None:
    logits = drawn(0, mx.float32)
    ids = mx.argsort(-logits, axis=-1)[:, :40].astype(mx.int32)
    for dtype in (mx.float32, *HALF):
        teacher = stored_teacher(ids, mx.take_along_axis(logits, ids, axis=-1), V, dtype)
        q = np.maximum(values(teacher.weights), 0).astype(np.float64) / np.array(teacher.mass)
        np.testing.assert_allclose(q.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("loss", ["kl", "lk", "tv"])
def test_a_stored_teacher_is_the_computed_one(loss: str, dtype: mx.Dtype) -> None:
    main, logits = drawn(0, dtype), drawn(1, dtype)
    computed = teacher_rows(main, row_stats(main), V)
    ids = mx.argsort(-main, axis=-1).astype(mx.int32)
    stored = stored_teacher(ids, mx.take_along_axis(main, ids, axis=-1), V, dtype)
    np.testing.assert_allclose(np.array(stored.mass), np.array(computed.mass), rtol=1e-6)
    check_same(loss, logits, stored, computed)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("loss", ["lk", "tv"])
def test_a_teacher_of_another_type_is_cast_once(loss: str, dtype: mx.Dtype) -> None:
    """The kernels read weights in the type of the logits; value and gradient are of the same ones."""
    main, logits = drawn(0, mx.float32), drawn(1, dtype)
    teacher = teacher_rows(main, row_stats(main), V)
    cast = TeacherRows(teacher.weights.astype(dtype), teacher.mass, teacher.negative_entropy, True)
    check_same(loss, logits, teacher, cast)


def check_same(loss: str, logits: mx.array, a: TeacherRows, b: TeacherRows) -> None:
    targets, weights = mx.zeros((R,), mx.int32), mx.ones((R,))
    one, other = (head_rows(LossConfig(loss=loss), logits, t, targets, weights, 0.0, 1.0) for t in (a, b))
    np.testing.assert_allclose(np.array(one.value), np.array(other.value), rtol=1e-5)
    np.testing.assert_allclose(values(one.gradient), values(other.gradient), rtol=1e-2, atol=1e-6)
