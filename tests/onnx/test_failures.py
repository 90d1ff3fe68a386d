"""What onnxruntime or a device refuses while decoding, and manifests that the graphs do not fit: one line, no traceback."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from mtpd_onnx.cli import main
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import Manifest, graph_name, read_manifest
from mtpd_onnx.runtime import open as opening
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.open_rows import open_rows
from mtpd_onnx.runtime.plain import PlainBackend
from mtpd_onnx.runtime.runner import NUMPY_TYPES, device_zeros
from mtpd_onnx.runtime.sampling_state import SamplingState
from mtpd_onnx.runtime.sessions import open_session
from tiny import write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling

K = 3
MEMORY = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code: CUDA failure 2: out of memory ; GPU=0\nmore\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("failures")
    checkpoint = write_checkpoint(place / "heads", write_base(place / "base", scale=2.0), K, noise=0.02)
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, place / layout, ExportOptions(layout=layout))
    return {layout: place / layout for layout in ("fused", "split")}


def said(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> str:
    assert main(["generate", str(folder), "-p", "abc", "-m", "12", "--provider", "cpu", "--quiet", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("layout", "change", "options", "words"),
    [
        ("fused", {"capacity": 2048}, [], "past_key_values.0.key is tensor(float) [1, 2, 2048, 16] by the manifest"),
        ("fused", {"capacity": 2048}, ["--plain"], "[1, 2, 256, 16] in the graph"),
        ("fused", {"capacity": 128}, ["--temp", "1"], "[1, 2, 128, 16] by the manifest"),
        ("fused", {"hidden_size": 32}, [], "window_hidden is tensor(float) [1, 32]"),
        ("fused", {"num_layers": 3}, [], "the graph has no input past_key_values.2.key"),
        ("fused", {"num_layers": 1}, ["--plain"], "the manifest leaves out past_key_values.1.key"),
        ("fused", {"capacity": 64}, ["--batch-size", "2"], "[2, 2, 64, 16] by the manifest"),
        ("split", {"num_kv_heads": 1}, [], "past.0.key is tensor(float) [1, 0, 16] by the manifest"),
        ("split", {"num_layers": 3}, [], "the graph has no input past.2.key"),
    ],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_the_graph(
    layout: str,
    change: dict[str, int],
    options: list[str],
    words: str,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(folders[layout], tmp_path / "onnx"))
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    for name, value in change.items():
        (manifest["dims"] if name in manifest["dims"] else manifest)[name] = value
    file.write_text(json.dumps(manifest))
    line = said(capsys, folder, *options)
    assert "manifest and graph differ: " in line and words in line


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_comparisons_want_the_fused_layout(
    command: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("abc")
    assert main([command, str(folders["split"]), "--prompts", str(tmp_path / "p.txt"), "-m", "8"]) == 1
    wanted = "got a folder of layout split, expected fused; export the checkpoint without --layout"
    assert capsys.readouterr().err == f"mtpd-onnx {command}: error: {command}: {wanted}\n"


class Failing:
    """A session that fails from its n-th run on."""

    def __init__(self, session: Any, runs: int):
        self._session, self._left = session, runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(MEMORY)

    def run_with_iobinding(self, *args: Any) -> None:
        self._count()
        self._session.run_with_iobinding(*args)

    def run(self, *args: Any) -> list[np.ndarray]:
        self._count()
        return self._session.run(*args)


@pytest.mark.parametrize("runs", [0, 1], ids=["prefill", "round"])
@pytest.mark.parametrize(("layout", "options"), [("fused", []), ("fused", ["--plain"]), ("split", [])])
def test_a_failing_run_is_one_line(
    layout: str,
    options: list[str],
    runs: int,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(opening, "open_session", lambda *args: Failing(open_session(*args), runs))
    line = said(capsys, folders[layout], *options)
    message = "Non-zero status code: CUDA failure 2: out of memory ; GPU=0; export with a smaller --capacity or --precision"
    assert line == f"mtpd-onnx generate: error: onnxruntime: {message}"


def test_no_memory_for_the_caches(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("bfc_arena.cc:359 AllocateRawInternal Failed to allocate memory for requested buffer of size 32768")

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", full)
    line = said(capsys, folders["fused"])
    assert "error: 0.0 MB on cpu: bfc_arena.cc:359 AllocateRawInternal Failed to allocate memory" in line
    assert line.endswith("; export with a smaller --capacity or --precision")


@pytest.mark.parametrize("sampling", [None, Sampling(temp=0.8, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("plain", [False, True], ids=["round", "step"])
def test_capturing_leaves_no_trace(plain: bool, sampling: Sampling | None, folders: dict[str, Path]) -> None:
    """On the CPU the run that captures is one round from scratch, which is enough to fill caches, tails and tokens."""
    manifest = read_manifest(folders["fused"])
    session = open_session(folders["fused"] / graph_name(plain, sampling is not None), "cpu", 1)
    make = PlainBackend if plain else FusedBackend
    texts, states = [], []
    for captured in (False, True):
        state = None if sampling is None else SamplingState(sampling, manifest)
        backend = make(session, manifest, "cpu", captured=captured, sampling=state)
        names: Mapping[str, Any] = backend.runner._state
        states.append({name: backend.runner.get(name).copy() for name in names})
        texts.append([t for chunk in generate(backend, [5, 6, 7, 8], max_tokens=40) for t in chunk.tokens])
    assert states[0].keys() == states[1].keys()
    assert all(not array.any() for state in states for array in state.values())
    assert texts[0] == texts[1]


def test_a_failed_capture_says_how_to_do_without(folders: dict[str, Path]) -> None:
    manifest = read_manifest(folders["fused"])
    session = Failing(open_session(folders["fused"] / graph_name(False, False), "cpu", 1), 0)
    with pytest.raises(ValueError, match=r"^capturing a CUDA graph \(--no-cuda-graph decodes without\): onnxruntime: Non-zero"):
        FusedBackend(session, manifest, "cpu", captured=True)


@pytest.mark.parametrize("activations", ["fp32", "fp16", "bf16"])
def test_state_of_every_type_can_be_zeroed(activations: str) -> None:
    kinds = {"layout": "fused", "precision": activations, "activations": activations, "hidden_source": "postnorm"}
    empty: dict[str, Any] = {name: {} for name in ("dims", "base", "files", "io", "weights_read", "versions")}
    value = device_zeros((2, 3), Manifest(**kinds, num_heads=K, capacity=8, **empty), "cpu")
    value.update_inplace(np.zeros((2, 3), NUMPY_TYPES[value.data_type()]))


class Interrupted(Failing):
    """Ctrl-C after the n-th run, which the device has done and the host has not seen."""

    def _count(self) -> None:
        pass

    def run_with_iobinding(self, *args: Any) -> None:
        super().run_with_iobinding(*args)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("action", ["prefill", "step", "round", "rewind"])
def test_an_interrupted_run_leaves_rounds_as_they_were(action: str, folders: dict[str, Path]) -> None:
    manifest, prompt = read_manifest(folders["fused"]), [5, 6, 7, 8, 9, 10, 11, 12]
    session = open_session(folders["fused"] / graph_name(False, False), "cpu", 1)
    expected = FusedBackend(session, manifest, "cpu")
    token = expected.prefill(prompt)
    rounds = [expected.round(token).emitted]
    rounds += [expected.round(rounds[0][-1]).emitted]
    backend = FusedBackend(Interrupted(session, 2), manifest, "cpu")
    backend.prefill([*prompt, 1, 2] if action == "rewind" else prompt)
    backend.rewind_to(len(prompt))
    act: dict[str, Any] = {"prefill": lambda: backend.prefill([3, 4]), "step": lambda: backend.step(1)}
    with pytest.raises(KeyboardInterrupt):
        act.get(action, lambda: backend.round(token))()
    assert backend.length == len(prompt)
    assert [backend.round(token).emitted, backend.round(rounds[0][-1]).emitted] == rounds


def test_an_interrupted_run_leaves_steps_as_they_were(folders: dict[str, Path]) -> None:
    manifest = read_manifest(folders["fused"])
    session = open_session(folders["fused"] / graph_name(True, False), "cpu", 1)
    expected = PlainBackend(session, manifest, "cpu")
    token = expected.prefill([5, 6, 7])
    backend = PlainBackend(Interrupted(session, 2), manifest, "cpu")
    assert backend.prefill([5, 6, 7]) == token
    with pytest.raises(KeyboardInterrupt):
        backend.prefill([token, 8, 9])
    assert backend.step(token) == expected.step(token)


def test_an_interrupted_verification_is_forgotten(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The split layout, stopped between the parts of its state."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    seen = []
    for interrupted in (False, True):
        backend: Any = opening.open_folder(folders["split"], provider="cpu", num_threads=1)
        token = backend.prefill([5, 6, 7, 8])
        if interrupted:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(np, "concatenate", interrupt)
                backend.model.verify([1, 2])
            assert backend.length == 4
            backend.rewind_to(4)
        first = backend.round(token)
        seen.append((first.emitted, backend.round(first.emitted[-1]).emitted, backend.model.draft(9)))
    assert seen[0] == seen[1]


def test_onnxruntime_does_not_say_it_as_well(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    rows = open_rows(folders["fused"], 2, provider="cpu", num_threads=1, num_draft_tokens=0)
    row = rows.join(Sampling())
    rows.alone(row).capacity = 1000
    with pytest.raises(ValueError, match=r"^onnxruntime: [^\n]*$"):
        rows.prefill(row, [1] * 300)
    assert capfd.readouterr().err == ""
