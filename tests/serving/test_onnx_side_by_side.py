"""mtpd-onnx serve: sixteen requests at once over one session get the texts they get alone; one folder that cannot says so."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import serving, with_template
from mtpd_onnx.commands.serve import OnnxRuntime
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.batch import OnnxBatch
from tiny import write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.options.runtime import RuntimeOptions
from mtpd_mlx.speculative.one_by_one import OneByOne

TEXTS = ["hello", "what is 2+2?", "count to ten", "a", "b c d e f", "once upon a time, there was", "x" * 60, "why"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    heads = write_checkpoint(place / "heads", with_template(write_base(place / "base", scale=2.0)), 3, noise=0.02)
    export_checkpoint(heads, place / "onnx", ExportOptions(capacity=160))
    return place / "onnx"


def runtime(folder: Path, drafts: int | None = None, most: int = 16) -> OnnxRuntime:
    return OnnxRuntime(RuntimeOptions(folder=folder, provider="cpu", num_threads=1), drafts, most)


@pytest.fixture(scope="module")
def asked(exported: Path) -> Iterator[Any]:
    with serving(lambda: runtime(exported)) as (client, engine):
        yield client, engine


def text_of(client: Any, body: dict[str, Any]) -> str:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_sixteen_at_once_are_what_each_is_alone(asked: Any) -> None:
    client, _ = asked
    bodies: list[dict[str, Any]] = [{"prompt": text, "max_tokens": 20 + 3 * i} for i, text in enumerate(TEXTS)]
    bodies += [body | {"temperature": 0.8, "top_p": 0.9, "seed": i} for i, body in enumerate(bodies)]
    alone = [text_of(client, body) for body in bodies]
    for _ in range(2):
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(lambda body: text_of(client, body), bodies)) == alone
    health = client.get("/health").json()
    assert health["status"] == "ok" and health.get("integrity", "ok") == "ok"


def test_one_graph_is_open_whatever_is_sampled(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    opened, right = list[str](), onnxruntime.InferenceSession

    def counted(file: str, *args: Any, **options: Any) -> Any:
        opened.append(Path(file).name)
        return right(file, *args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    with serving(lambda: runtime(exported)) as (client, _):
        for extra in ({}, {"temperature": 1}, {"temperature": 0.5, "top_k": 3}, {"repetition_penalty": 1.3}):
            text_of(client, {"prompt": "hello", "max_tokens": 8} | extra)
    assert opened == ["batch.onnx"]


@pytest.mark.parametrize("drafts", [0, 2])
def test_a_fixed_number_of_drafts(drafts: int, exported: Path, asked: Any) -> None:
    body = {"prompt": "hello there", "max_tokens": 30}
    with serving(lambda: runtime(exported, drafts)) as (client, _):
        answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == text_of(asked[0], body)
    kinds = {kind for kind in answer["usage"]["mtpd"]["rounds"] if kind != "plain"}
    assert kinds == ({f"heads {drafts}"} if drafts else set())


def test_a_folder_of_an_earlier_version_decodes_one_at_a_time(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(runtime(exported).batch(16), OnnxBatch)
    old = Path(shutil.copytree(exported, tmp_path / "old"))
    values = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(values | {"format_version": 7}))
    with caplog.at_level("INFO"):
        assert isinstance(runtime(old).batch(16), OneByOne)
    assert "one at a time: the folder was exported by an earlier version; export the checkpoint again" in caplog.text


def test_side_by_side_on_cuda_is_asked_for(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a CPU takes the device's place: one at a time unless the command says otherwise."""
    monkeypatch.setattr("mtpd_onnx.commands.serve.PROVIDERS", {"fp32": "cuda"})
    options = RuntimeOptions(folder=exported, provider="cpu", num_threads=1)
    assert isinstance(OnnxRuntime(options, None, 4).batch(4), OneByOne)
    assert isinstance(OnnxRuntime(options, None, 4, cuda_batches=True).batch(4), OnnxBatch)
