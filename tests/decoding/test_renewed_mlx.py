"""Decoders of MLX whose text goes on as another one's draw that anew (protocol.Renews)."""

from typing import Any

import pytest
from helpers.renewed import differ
from tiny import write_base, write_checkpoint

from mtpd_mlx.decoding.open import open_choosing, open_decoder
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.decode import DecodingConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("renewed")
    return load_for_decoding(write_checkpoint(folder / "heads", write_base(folder / "base", scale=2.0), 3))[:2]


@pytest.mark.parametrize("plan", ["growing", "fixed"])
@pytest.mark.parametrize("count", [0, 3])
def test_decoders(model: Any, plan: str, count: int) -> None:
    base, heads = model
    given = {"num_draft_tokens": count} if count else {}
    options = DecodingConfig(plan=plan)  # type: ignore[arg-type]
    assert differ(lambda sampling: open_decoder(base, heads if count else None, options, sampling=sampling, **given))


@pytest.mark.parametrize("plan", ["growing", "fixed"])
def test_decoders_that_choose(model: Any, plan: str) -> None:
    options = DecodingConfig(plan=plan)  # type: ignore[arg-type]
    assert differ(lambda sampling: open_choosing(*model, options, sampling=sampling))
