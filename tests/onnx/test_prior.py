"""What the choice of drafts takes a checkpoint's heads to be worth before it has seen a text."""

from types import SimpleNamespace
from typing import Any

import pytest
from mtpd_onnx.runtime.chosen import ELSEWHERE, prior_of

from mtpd_mlx.speculative.choice import DEFAULT_AR


def test_the_acceptance_that_the_checkpoint_was_validated_with() -> None:
    manifest: Any = SimpleNamespace(record={"eval": {"validation": {"ar": [0.7, 0.8]}}})
    assert prior_of(manifest) == pytest.approx([ELSEWHERE * 0.7, ELSEWHERE * 0.8])


@pytest.mark.parametrize(
    "record",
    [{}, {"eval": {}}, {"eval": {"validation": None}}, *({"eval": {"validation": {"ar": ar}}} for ar in ([], [2.0], ["a"], 1))],
)
def test_a_record_without_it_leaves_the_default(record: dict[str, Any]) -> None:
    manifest: Any = SimpleNamespace(record=record)
    assert prior_of(manifest) == DEFAULT_AR
