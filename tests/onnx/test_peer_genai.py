"""The peer, onnxruntime-genai, behind a fake module: what is asked of it, what is counted, what is refused in one line."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mtpd_onnx.peer.genai import GenaiPeer
from mtpd_onnx.peer.process import genai_arm

EOS = 9  # the last token of the fake vocabulary
CONFIG: dict[str, Any] = {
    "model": {
        "context_length": 64,
        "vocab_size": 10,
        "eos_token_id": 3,
        "decoder": {"filename": "model.onnx", "session_options": {"provider_options": []}},
    }
}


class FakeGenerator:
    """Counts up from the last token of the prompt, modulo the vocabulary."""

    can_rewind = True
    made = 0

    def __init__(self, model: Any, parameters: Any):
        type(self).made += 1
        self.parameters, self.tokens = parameters, list[int]()

    def append_tokens(self, tokens: Any) -> None:
        assert tokens.dtype == "int32"
        self.tokens += tokens.tolist()

    def generate_next_token(self) -> None:
        assert not self.is_done()
        self.tokens.append((self.tokens[-1] + 1) % 10)

    def get_next_tokens(self) -> list[int]:
        return self.tokens[-1:]

    def is_done(self) -> bool:
        return self.tokens[-1] == EOS or len(self.tokens) >= self.parameters.options["max_length"]

    def rewind_to(self, length: int) -> None:
        if not self.can_rewind:
            raise RuntimeError("Continuous decoding is not supported on the selected device type")
        del self.tokens[length:]


class FakeParameters:
    def __init__(self, model: Any):
        self.options: dict[str, Any] = {}

    def set_search_options(self, **options: Any) -> None:
        self.options |= options


class FakeConfig:
    overlays: list[dict[str, Any]]

    def __init__(self, folder: str):
        type(self).overlays = []

    def overlay(self, text: str) -> None:
        self.overlays.append(json.loads(text))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    generator = type("Generator", (FakeGenerator,), {})
    module = SimpleNamespace(
        Config=FakeConfig, Model=lambda config: config, GeneratorParams=FakeParameters, Generator=generator
    )
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "genai_config.json").write_text(json.dumps(CONFIG))
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).touch()
    return tmp_path


def test_generates_counts_and_ignores_eos(fake: Any, folder: Path) -> None:
    peer = GenaiPeer(folder, capacity=32, num_threads=3)
    overlay = {"eos_token_id": 9, "decoder": {"session_options": {"intra_op_num_threads": 3}}}
    assert FakeConfig.overlays == [{"model": overlay}]
    tokens, prefill, decode = peer.generate([7, 1], 6)
    assert tokens == [2, 3, 4, 5, 6, 7]
    assert prefill > 0 and decode == pytest.approx(sum(peer.step_seconds)) and len(peer.step_seconds) == 5
    assert peer.generate([7, 1], 1)[0] == [2] and peer.step_seconds == []
    assert peer.generate([5], 20)[0] == [6, 7, 8, EOS]  # the stand-in for EOS does end a text
    assert fake.Generator.made == 1


def test_takes_a_new_generator_where_genai_cannot_rewind(fake: Any, folder: Path) -> None:
    fake.Generator.can_rewind = False
    peer = GenaiPeer(folder, capacity=32)
    peer.warm_up()
    assert [peer.generate([1, 2], 4)[0] for _ in range(2)] == [[3, 4, 5, 6]] * 2
    assert fake.Generator.made == 3  # the warm-up and two prompts


def test_cuda_folders_get_the_cuda_libraries_and_no_threads(fake: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads(json.dumps(CONFIG))
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"enable_cuda_graph": "1"}}]
    (folder / "genai_config.json").write_text(json.dumps(config))
    loaded: list[bool] = []
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(preload_dlls=lambda: loaded.append(True)))
    assert GenaiPeer(folder, capacity=32).provider == "cuda"
    assert loaded == [True] and FakeConfig.overlays == [{"model": {"eos_token_id": 9}}]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "words"),
    [([], 5, "0 prompt tokens"), ([1], 0, "max_tokens 0"), ([10], 5, "10..10"), ([1] * 30, 5, "35, expected at most 32")],
)
def test_refuses_in_one_line(fake: Any, folder: Path, prompt: list[int], max_tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        GenaiPeer(folder, capacity=32).generate(prompt, max_tokens)
    assert "\n" not in str(error.value)


def test_refuses_folders_that_genai_could_not_load(fake: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"capacity: got 65, expected 2\.\.64"):
        GenaiPeer(folder, capacity=65)

    def fail(config: Any) -> None:
        raise RuntimeError("no such operator\nmore")

    monkeypatch.setattr(fake, "Model", fail)
    with pytest.raises(ValueError, match=r"cannot load it: no such operator$"):
        GenaiPeer(folder, capacity=32)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(ValueError, match=r"model\.onnx\.data: missing"):
        GenaiPeer(folder)
    (folder / "genai_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a genai_config\.json"):
        GenaiPeer(folder)
    with pytest.raises(ValueError, match="not a genai folder"):
        GenaiPeer(folder / "absent")


def test_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(ImportError, match="pip install onnxruntime-genai"):
        GenaiPeer(folder, capacity=32)


PEER = """
from pathlib import Path
from mtpd_onnx.peer import genai, process

class Peer:
    def __init__(self, *args): pass
    def warm_up(self): pass
    def generate(self, prompt, max_tokens): return prompt[:max_tokens], 0.25, 0.5

genai.GenaiPeer = Peer
process.serve(Path(), 32, 0)
"""


def test_the_child_leaves_ctrl_c_to_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        assert json.loads(child.stdout.readline()) == {"ready": True}
        child.send_signal(signal.SIGINT)
        print(json.dumps({"prompt": [1, 2, 3], "max_tokens": 2}), file=child.stdin, flush=True)
        assert json.loads(child.stdout.readline())["tokens"] == [1, 2]
        child.stdin.close()
        assert child.wait(30) == 0


def test_a_child_that_ended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\necho '{\"ready\": true}'\nexec 0<&-\necho '{\"ready\": true}'\nexit 3\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    children, popen = [], subprocess.Popen

    def start(*args: Any, **options: Any) -> Any:
        children.append(popen(*args, **options))
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    arm = genai_arm(tmp_path, 32, None)
    children[0].stdout.readline()  # its end of the pipe is closed
    with pytest.raises(ValueError, match=r"^--genai: it ended with status 3$"):
        arm.decode([1], 2)
