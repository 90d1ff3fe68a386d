"""Every test of this folder runs once per reference model (tools/family_references.py)."""

import fcntl
from pathlib import Path

import pytest
from family_models import NAMES, Reference, build, train_checkpoint

# What heads, decoders and graphs do with these, they do with another reference too: quick runs compare their logits alone.
SISTERS = ("gemma3-vision", "gemma4-unified", "glm4-moe-groups", "gpt-oss-mxfp4", "llama-bias", "llama2", "mimo", "ministral")
SISTERS += ("mistral", "mistral3-vision", "nemotron3", "phi4-mini", "qwen2", "qwen3-moe-raw", "qwen3.5-vision", "smollm2")


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest, shared: Path) -> Reference:
    with (shared / f"{request.param}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(request.param, shared / request.param / "base")


@pytest.fixture(scope="module")
def checkpoint(reference: Reference, shared: Path) -> Path:
    """Two heads that have seen some of the base's own text: rounds of several lengths occur. Trained once a run, by the worker
    that needs them first."""
    folder = shared / reference.name / "heads"
    with (shared / f"{reference.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder if (folder / "mtp_config.json").exists() else train_checkpoint(reference, folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks; and one file works from the other end, so that two workers do not want the same heads at the same time."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.families)
        trained = isinstance(item, pytest.Function) and "checkpoint" in item.fixturenames
        if trained and item.callspec.params["reference"] in SISTERS:
            item.add_marker(pytest.mark.slow)
    places = [i for i, item in enumerate(items) if item.path.name == "test_families_onnx.py" and item in ours]
    names = [str(items[i].callspec.params["reference"]) for i in places]  # type: ignore[attr-defined]
    order = sorted(range(len(places)), key=lambda at: names[at], reverse=True)  # stable: tests of a reference as they were
    for place, item in zip(places, [items[places[at]] for at in order], strict=True):
        items[place] = item
