"""Every test of this folder runs once per reference model (tools/family_references.py)."""

from pathlib import Path

import pytest
from family_models import NAMES, Reference, build, train_checkpoint


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def checkpoint(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads that have seen some of the base's own text: rounds of several lengths occur."""
    return train_checkpoint(reference, tmp_path_factory.mktemp("heads"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.families)
