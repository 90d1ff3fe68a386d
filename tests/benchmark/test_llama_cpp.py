"""The benchmark's llama.cpp arm against llama-cpp-python itself, where it is installed (it is no dependency): pip install
llama-cpp-python."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.decode import oracle

pytestmark = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="not installed: llama_cpp")


def test_llama_cpp_writes_our_greedy_text_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's float32 values in our base: the same texts, also after a longer one and for a prompt of several chunks."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "gguf"))
    from gguf_models import write_source

    from mtpd_mlx.model.base import load_base
    from tools.benchmark.arms import Common
    from tools.benchmark.peers import llama_cpp

    source = write_source("llama", tmp_path, lambda name: "F32")
    base = load_base(str(source.folder))
    about, decode = llama_cpp(str(source.file), Common({}, 256, 2, "cpu"))
    assert about["capacity"] == 256
    for prompt in ([5, 9, 3, 30, 31], [7, 8] * 60, [5, 9, 3, 30, 31]):
        done = decode(prompt, 12)
        assert done["tokens"] == oracle(base, prompt, 12)
        assert done["prefill_seconds"] > 0 and done["decode_seconds"] > 0
