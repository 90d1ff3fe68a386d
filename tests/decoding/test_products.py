"""Products row by row: the same values, only inside the context, and only where they are meant."""

import numpy as np
import pytest
from tiny import write_base

from mtpd_mlx.decoding.row_products import MOST_ROWS, RowEmbedding, RowLinear, RowProducts, by_rows
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.runtime import mx, nn


def test_rows_are_those_of_the_product() -> None:
    x, w = mx.random.normal((1, 5, 12), key=mx.random.key(0)), mx.random.normal((7, 12), key=mx.random.key(1))
    got = by_rows(x, mx.broadcast_to(w, (5, 7, 12)))
    assert got.shape == (1, 5, 7)
    np.testing.assert_allclose(got, x @ w.T, rtol=1e-5, atol=1e-6)


def test_few_rows_alone_and_only_inside(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    base = load_base(str(write_base(tmp_path / "base")))
    calls: list[int] = []
    monkeypatch.setattr("mtpd_mlx.decoding.row_products.by_rows", lambda x, w: calls.append(w.shape[0]) or by_rows(x, w))
    products, kinds = RowProducts(base.model), {type(m) for m in base.model.modules()}
    before = [base.logits(base.norm(base.trunk(mx.arange(n)[None] % 50))) for n in (1, 4, MOST_ROWS + 1)]
    assert not calls
    with products:
        assert {RowLinear, RowEmbedding} <= {type(m) for m in base.model.modules()}
        after = [base.logits(base.norm(base.trunk(mx.arange(n)[None] % 50))) for n in (1, 4, MOST_ROWS + 1)]
    assert set(calls) == {4} and len(calls) == 7 * len(base.layers) + 1
    assert {type(m) for m in base.model.modules()} == kinds
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_other_weights_are_seen(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A matrix that was replaced is not remembered."""
    layer = nn.Linear(6, 4, bias=False)
    x, products = mx.ones((3, 6)), RowProducts(layer)
    for value in (1.0, 2.0):
        layer.weight = mx.full((4, 6), value)
        with products:
            assert (layer(x) == 6 * value).all().item()
    assert [name for name in layer.parameters()] == ["weight"]


def test_biases_and_quantised_matrices_are_left_alone() -> None:
    biased, packed = nn.Linear(64, 8), nn.QuantizedLinear(64, 8, bias=False)
    with RowProducts(biased, packed):
        assert type(biased) is nn.Linear and type(packed) is nn.QuantizedLinear


def test_what_fails_inside_leaves_no_trace() -> None:
    layer = nn.Linear(6, 4, bias=False)
    with pytest.raises(ZeroDivisionError), RowProducts(layer):
        raise ZeroDivisionError
    assert type(layer) is nn.Linear
