"""Which provider runs a folder, and one line for whatever keeps CUDA from starting. No GPU: its libraries are stand-ins."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mtpd_onnx import errors as messages
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime import cuda_runtime, cuda_stream, sessions
from mtpd_onnx.runtime.cuda_stream import Stream
from mtpd_onnx.runtime.open import can_capture
from mtpd_onnx.runtime.sessions import choose_provider, open_session

from mtpd_mlx.text.messages import messages_on_stderr

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeCuda:
    """A CUDA runtime whose calls return `status`."""

    def __init__(self, status: int = 0, devices: int = 1):
        self._status, self._devices = status, devices
        self.cudaGetErrorString = lambda status: b"driver version is insufficient"

    def cudaGetDeviceCount(self, pointer: Any) -> int:
        pointer._obj.value = self._devices
        return self._status

    def cudaStreamCreateWithFlags(self, pointer: Any, flags: int) -> int:
        return self._status


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Puts a stand-in for onnxruntime in place, with or without CUDA, and a CUDA runtime."""

    def replace(cuda: bool = True, runtime: Any = None, session: Any = None) -> SimpleNamespace:
        loads: list[bool] = []

        def preload() -> None:
            print("Failed to load libcublasLt.so.13")  # as the real one does
            loads.append(True)

        fake = SimpleNamespace(
            get_available_providers=lambda: [CUDA, CPU] if cuda else [CPU],
            preload_dlls=preload,
            loads=loads,
            set_default_logger_severity=lambda level: None,
            SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda *_: None),
            InferenceSession=session,
            __file__=str(tmp_path / "onnxruntime" / "__init__.py"),
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        for module in (cuda_runtime, cuda_stream):
            monkeypatch.setattr(module, "library", lambda: runtime)
        return fake

    return replace


def check_auto(use: Callable[..., SimpleNamespace]) -> None:
    fake = use(runtime=FakeCuda())
    assert choose_provider("auto", "fp32", "fp32") == "cpu"
    assert fake.loads == []  # CUDA is not touched where nothing runs on it
    assert choose_provider("auto", "int4", "fp32") == "cpu"
    assert choose_provider("auto", "fp16", "fp16") == "cuda"
    assert fake.loads == [True]
    use(cuda=False)
    assert choose_provider("auto", "fp32", "fp32") == "cpu"


def test_auto_says_what_it_runs_on_and_why(use: Callable[..., SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    with messages_on_stderr():
        check_auto(use)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "mtpd-onnx: running on cpu: the folder is fp32; for CUDA export it with --precision fp16",
        "mtpd-onnx: running on cpu: the folder is int4 (activations fp32); "
        "for CUDA export it with --precision int4 --activations fp16",
        "mtpd-onnx: running on cuda: the folder is fp16",
        "mtpd-onnx: running on cpu: the folder is fp32; this onnxruntime has no CUDA",
    ]
    with messages_on_stderr():
        assert choose_provider("cpu", "fp32", "fp32") == "cpu" and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("wanted", "cuda", "activations", "words"),
    [
        ("cuda", False, "fp16", '--provider cuda: this onnxruntime has no CUDA; install it with: pip install -e ".[onnx'),
        ("cuda", True, "fp32", "--provider cuda: the folder is fp32, which CUDA cannot run; export it with --precision fp16"),
        ("cpu", True, "fp16", "the folder is fp16, which the CPU cannot run; export it with --precision fp32, or use CUDA"),
        ("auto", False, "bf16", "the folder is bf16, which the CPU cannot run; export it with --precision fp32, or use CUDA, "),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(
    use: Callable[..., SimpleNamespace], wanted: str, cuda: bool, activations: str, words: str
) -> None:
    use(cuda)
    with pytest.raises(ValueError) as error:
        choose_provider(wanted, activations, activations)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (FakeCuda(status=35), "CUDA cannot start: driver version is insufficient (CUDA error 35); is an NVIDIA driver"),
        (FakeCuda(devices=0), "CUDA cannot start: no GPU is visible"),
    ],
)
def test_no_driver_and_no_gpu(use: Callable[..., SimpleNamespace], wanted: str, runtime: FakeCuda, words: str) -> None:
    use(runtime=runtime)
    with pytest.raises(ValueError) as error:
        choose_provider(wanted, "fp16", "fp16")
    assert str(error.value).startswith(words)


def test_a_stream_that_cuda_refuses(use: Callable[..., SimpleNamespace]) -> None:
    use(runtime=FakeCuda(status=2))
    with pytest.raises(ValueError, match=r"CUDA: making a stream failed: driver version is insufficient \(CUDA error 2\)$"):
        Stream.new()


def fallen_to_the_cpu(*args: Any, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(get_providers=lambda: [CPU])


def without_a_kernel(*args: Any, **options: Any) -> None:
    raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for FusedMatMul(1)\nmore")


@pytest.mark.parametrize("session", [fallen_to_the_cpu, without_a_kernel])
def test_the_missing_library_is_named_for_every_precision(use: Callable[..., SimpleNamespace], session: Any) -> None:
    use(session=session)
    words = r'CUDA cannot start: .*providers_cuda\.so: cannot open shared object file.*; install it with: pip install -e ".'
    with pytest.raises(ValueError, match=words) as error:
        open_session(Path("round.onnx"), "cuda", None)
    assert "\n" not in str(error.value)


def test_other_reasons_of_onnxruntime_are_passed_on(
    use: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "missing_library", lambda: None)
    use(session=without_a_kernel)
    with pytest.raises(ValueError, match=r"^round\.onnx: onnxruntime cannot load it: Could not find .* FusedMatMul\(1\)$"):
        open_session(Path("round.onnx"), "cuda", None)

    def refused(*args: Any, **options: Any) -> None:
        raise RuntimeError("This session cannot use the graph capture feature as requested")

    use(session=refused)
    with pytest.raises(ValueError, match=r"; --no-cuda-graph decodes without CUDA graphs$"):
        open_session(Path("round.onnx"), "cuda", None, captured=True)
    monkeypatch.setattr(sessions, "missing_library", lambda: "libcuda.so.1: cannot open shared object file")
    use(session=fallen_to_the_cpu)
    with pytest.raises(ValueError, match=r"libcuda\.so\.1: .*; it comes with the NVIDIA driver$"):
        open_session(Path("round.onnx"), "cuda", None)


def test_too_small_for_cuda_graphs_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    messages.say_once.cache_clear()

    def manifest(capacity: int) -> Manifest:
        kinds = {"layout": "fused", "precision": "fp16", "activations": "fp16", "hidden_source": "postnorm"}
        empty: dict[str, Any] = {name: {} for name in ("dims", "base", "files", "io", "weights_read", "versions")}
        return Manifest(**kinds, num_heads=3, capacity=capacity, **empty)

    with messages_on_stderr():
        assert can_capture(manifest(32)) and not can_capture(manifest(31)) and not can_capture(manifest(31))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mtpd-onnx: decoding without CUDA graphs, which need a capacity of 32 (the folder has 31)")
