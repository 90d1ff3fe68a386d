"""Marks, checks and differences that NaN cannot pass."""

import numpy as np
import pytest
from helpers.fakes import ScriptedModel
from helpers.finite import INF, NAN, ROWS

from mtpd_mlx.model.finite import finite_rows
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.speculative.finite import NO_TOKEN, NotFiniteError, check_logits, check_tokens, largest_difference, naming
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.rounds import StepBackend


@pytest.mark.parametrize(("row", "finite"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_a_row_is_finite_where_its_maximum_is(row: list[float], finite: bool, dtype: mx.Dtype) -> None:
    assert finite_rows(mx.array([row, [0.0] * 4]).astype(dtype)).tolist() == [finite, True]
    logits = np.array([[0.0] * 4, row], np.float32)
    if finite:
        check_logits(logits, 5)
    else:
        with pytest.raises(NotFiniteError, match="not finite after 6 tokens"):
            check_logits(logits, 5)


def test_differences() -> None:
    a = np.array([1.0, -INF, 3.0])
    assert largest_difference(a, a) == 0 and largest_difference(a, a + np.array([0.5, 0, -0.25])) == 0.5
    for broken in ([NAN, -INF, 3.0], [1.0, INF, 3.0], [1.0, 0.0, 3.0], [NAN, NAN, NAN]):
        assert largest_difference(a, np.array(broken)) == INF and largest_difference(np.array(broken), a) == INF
    assert largest_difference(np.array([NAN]), np.array([NAN])) == INF, "two runs of the same broken thing"
    assert largest_difference(np.zeros(0), np.zeros(0)) == 0
    with pytest.raises(ValueError, match="same"):
        largest_difference(a, a[:2])


def test_the_first_token_that_is_none_is_named() -> None:
    check_tokens([3, 0, 9], 4)
    with (
        naming(["a", "b"]),
        pytest.raises(NotFiniteError, match=r"^the base's logits are not finite after 1 token: .* bfloat16"),
    ):
        check_tokens([NO_TOKEN, NO_TOKEN], 1, "bfloat16")
    with pytest.raises(NotFiniteError, match=r"^prompt b: the base's logits are not finite after 8 tokens"), naming(["a", "b"]):
        raise NotFiniteError("the base's logits are not finite after 8 tokens", 1)


@pytest.mark.parametrize("right", [0, 2, 4])
@pytest.mark.parametrize("last", range(4, 12))
def test_step_backends_end_where_a_token_of_the_text_is_none(last: int, right: int) -> None:
    """Not where a draft that is refused leads to one."""

    def target(tokens: list[int]) -> int:
        if len(tokens) == last + 1 and tokens[-1] == last:
            return NO_TOKEN
        return len(tokens)

    model = ScriptedModel(target, iter([right] * 99), 4)  # type: ignore[arg-type]
    text: list[int] = []
    with pytest.raises(NotFiniteError, match=f"after {last + 1} tokens"):
        for chunk in generate(StepBackend(model), [0, 1, 2, 3], max_tokens=20):
            text += chunk.tokens
    assert text == list(range(4, 4 + len(text))) and len(text) <= last - 3
