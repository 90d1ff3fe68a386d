"""Rows of logits, and whether they are finite."""

NAN, INF = float("nan"), float("inf")
ROWS = {  # row -> is it finite?
    "plain": ([0.5, -2.0, 1.0, 0.0], True),
    "masked tokens": ([-INF, -2.0, -INF, 0.0], True),
    "NaN first": ([NAN, 9.0, 1.0, 0.0], False),
    "NaN last": ([0.0, 9.0, 1.0, NAN], False),
    "NaN beside masks": ([-INF, NAN, 1.0, -INF], False),
    "inf": ([0.0, INF, 1.0, 0.0], False),
    "inf and -inf": ([0.0, INF, -INF, 0.0], False),
    "all NaN": ([NAN] * 4, False),
    "all masked": ([-INF] * 4, False),
}
