"""Every test of this folder runs once per reference model (tools/family_references.py)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REFERENCES = Path(__file__).parent / "references"
NAMES = sorted(file.stem for file in REFERENCES.glob("*.json"))
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Reference:
    """`folder`: the model in Hugging Face layout; tokens and logits [T, V] as transformers computes them."""

    name: str
    folder: Path
    config: dict[str, Any]
    tokens: list[int]
    logits: np.ndarray


def build(name: str, folder: Path) -> Reference:
    from family_weights import write_weights
    from tiny import write_tokenizer

    record = json.loads((REFERENCES / f"{name}.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(record["config"]))
    write_weights(folder / "model.safetensors", record["shapes"], record["norm_center"])
    write_tokenizer(folder)
    return Reference(name, folder, record["config"], record["tokens"], np.load(REFERENCES / f"{name}.npz")["logits"])


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def checkpoint(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two noisy heads: right often enough and wrong often enough that rounds of all lengths occur."""
    from tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("heads"), reference.folder, num_heads=2, noise=0.02)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.families)
