"""Rows of a batch on a device, of which a lone one is decoded elsewhere: here on a CPU, in float32."""

import random
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from helpers.decode import decoded
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime import open_rows as opening
from mtpd_onnx.runtime.alone_rows import AloneElsewhere, common
from mtpd_onnx.runtime.device_rounds import DeviceBackend
from mtpd_onnx.runtime.open import open_folder
from tiny import FAMILIES, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.sampling import Sampling

PROMPTS = [list(range(5, 25)), [9], list(range(90, 40, -1)), [*range(5, 25), 7, 8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("mtpd_onnx.export.export", "mtpd_onnx.manifest", "mtpd_onnx.runtime.open_rows"):
            patch.setattr(f"{module}.PROVIDERS", {"fp32": "cuda"})
        patch.setattr("mtpd_onnx.graphs.batch.WHOLE_CACHES", (ir.DataType.FLOAT,))
        patch.setattr("mtpd_onnx.runtime.open.choose_provider", lambda *_: "cpu")
        place = tmp_path_factory.mktemp("alone")
        base = write_base(place / "base", FAMILIES["llama-tied"], scale=2.0)
        heads = write_checkpoint(place / "heads", base, 4, noise=0.05)
        export_checkpoint(heads, place / "onnx", ExportOptions(capacity=128))
        yield place / "onnx"


def opened(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> AloneElsewhere:
    """As it is opened for a device, whose place the CPU takes."""

    monkeypatch.setattr(opening, "choose_provider", lambda *_: "cpu")
    monkeypatch.setattr(opening, "on_device", lambda provider: True)
    return opening.open_rows(folder, 4, resting=1, num_threads=1, captured=False, **options)  # type: ignore[return-value]


def plain(folder: Path) -> list[list[int]]:
    backend = open_folder(folder, provider="cpu", num_threads=1, plain=True)
    return [decoded(backend, prompt, 90)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("seed", range(3))
def test_texts_that_go_and_come_home(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, rows, expected = random.Random(seed), opened(folder, monkeypatch), plain(folder)
    texts: dict[int, tuple[int, list[int]]] = {}
    away = 0
    for _ in range(150):
        what, free = rng.random(), [row for row in texts if rows.length(row) < rows.capacity]
        if (what < 0.2 or not texts) and len(texts) < rows.max_rows:
            which, row = rng.randrange(len(PROMPTS)), rows.join(Sampling())
            texts[row] = which, [rows.prefill(row, PROMPTS[which])]
        elif what < 0.3 and texts:
            row = rng.choice(list(texts))
            del texts[row]
            rows.leave(row)
        elif what < 0.4 and texts:
            row = rng.choice(list(texts))
            which, tokens = texts[row]
            kept = rng.randrange(1, len(tokens) + 1)
            rows.rewind_to(row, len(PROMPTS[which]) + kept - 1)
            texts[row] = which, tokens[:kept]
        elif what < 0.7 and free:
            row = rng.choice(free)
            backend = rows.alone(row)
            away += isinstance(backend, DeviceBackend)
            for _ in range(rng.randrange(1, 4)):
                if backend.length < rows.capacity:
                    texts[row][1].extend(backend.round(texts[row][1][-1]).emitted)
        elif free:
            chosen = rng.sample(free, rng.randrange(1, min(4, len(free)) + 1))
            turns = [Turn(row, texts[row][1][-1], rng.choice([0, 2, 4, None])) for row in chosen]
            for turn, done in zip(turns, rows.round(turns), strict=True):
                texts[turn.row][1].extend(done.emitted)
        rows.check()
        for row, (which, tokens) in texts.items():
            assert tokens[:80] == expected[which][: min(80, len(tokens))]
            assert rows.length(row) == min(len(PROMPTS[which]) + len(tokens) - 1, rows.capacity)
    assert away > 10


def test_seeded_texts_do_not_leave_and_others_are_not_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = opened(folder, monkeypatch)
    row = rows.join(Sampling(temp=1.0, seed=3))
    rows.prefill(row, PROMPTS[0])
    assert not isinstance(rows.alone(row), DeviceBackend)
    texts = []
    for temp in (1.0, 1.0, 0.01):
        rows.restart(row, Sampling(temp=temp), 0)
        token = rows.prefill(row, PROMPTS[0])
        backend = rows.alone(row)
        assert isinstance(backend, DeviceBackend)
        texts.append([token])
        while len(texts[-1]) < 30:
            texts[-1] += backend.round(texts[-1][-1]).emitted
        rows.rewind_to(row, 5)
        assert rows.length(row) == 5
    assert texts[0] != texts[1]
    assert texts[2][1:21] == decoded(open_folder(folder, provider="cpu", num_threads=1, plain=True), PROMPTS[0], 40)[0][1:21]
    rows.check()


def test_common() -> None:
    assert [common(a, b) for a, b in (([], [1]), ([1, 2], [1, 2]), ([1, 2], [1, 3, 2]), ([2], [1]))] == [0, 2, 1, 0]
