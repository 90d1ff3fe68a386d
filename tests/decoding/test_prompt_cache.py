"""The cache of a text in a file: what was saved goes on as if nothing had been."""

import io
import sys
from pathlib import Path

import pytest
from tiny import LLAMA, write_base, write_checkpoint

from mtpd_mlx.cli import main
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.prompt_cache import load_cache, save_cache
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_for_decoding
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend

PROMPT = list(range(5, 25))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    return write_checkpoint(folder / "heads", write_base(folder / "base", scale=8.0), 4)


def text(backend: Backend, prompt: list[int], length: int = 20) -> list[int]:
    return [t for c in generate(backend, prompt, max_tokens=length) for t in c.tokens]


@pytest.mark.parametrize(("plan", "drafts"), [("growing", 4), ("fixed", 4), ("growing", 0), ("fixed", 0)])
def test_saved_and_loaded(checkpoint: Path, tmp_path: Path, plan: str, drafts: int) -> None:
    base, heads, _ = load_for_decoding(checkpoint)
    first, second = (open_decoder(base, heads, DecodingConfig(plan=plan), num_draft_tokens=drafts) for _ in range(2))
    answer = text(first, PROMPT)
    save_cache(first, tmp_path / "a.safetensors")
    loaded = load_cache(second, tmp_path / "a.safetensors")
    assert loaded == second.tokens == first.tokens == (PROMPT + answer)[: first.length]
    expected = text(StepBackend(MLXModel(base, None)), [*loaded, 3, 1, 4])
    assert text(first, [3, 1, 4]) == text(second, [3, 1, 4]) == expected


def test_what_does_not_fit_is_said(checkpoint: Path, tmp_path: Path) -> None:
    base, heads, _ = load_for_decoding(checkpoint)
    file = tmp_path / "a.safetensors"
    two = open_decoder(base, heads, DecodingConfig(plan="growing"), num_draft_tokens=2)
    with pytest.raises(ValueError, match="nothing to save"):
        save_cache(two, file)
    text(two, PROMPT)
    save_cache(two, file)
    with pytest.raises(ValueError, match=r"missing key 'heads\.2\.keys'"):
        load_cache(open_decoder(base, heads, DecodingConfig(plan="growing"), num_draft_tokens=4), file)
    with pytest.raises(ValueError, match="expected at most 30"):
        load_cache(open_decoder(base, heads, DecodingConfig(plan="growing"), num_draft_tokens=2, capacity=30), file)
    with pytest.raises(ValueError, match="not a cache that mtpd saved"):
        load_cache(two, checkpoint / "heads.safetensors")
    other, _, _ = load_for_decoding(
        write_checkpoint(tmp_path / "h", write_base(tmp_path / "b", LLAMA | {"num_key_value_heads": 4}), 1)
    )
    with pytest.raises(ValueError, match=r"base\.0\.keys: got mlx.core.float32 \[1, 2, "):
        load_cache(open_decoder(other, None), file)
    tuned, drafts, _ = load_for_decoding(write_checkpoint(tmp_path / "t", write_base(tmp_path / "c", scale=7.0), 4))
    with pytest.raises(ValueError, match="saved with another base"):  # of the same shape
        load_cache(open_decoder(tuned, drafts, DecodingConfig(plan="growing"), num_draft_tokens=2), file)


def test_chat_goes_on(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    file, prefilled = tmp_path / "chat.safetensors", []
    from mtpd_mlx.decoding.decoder import Decoder

    prefill = Decoder.prefill
    monkeypatch.setattr(Decoder, "prefill", lambda self, tokens: (prefilled.append(len(tokens)), prefill(self, tokens))[1])
    answers = []
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.StringIO("abcdefghijk\nq\n"))
        arguments = ["chat", str(checkpoint), "--plan", "growing", "-m", "12", "--prompt-cache-file", str(file)]
        assert main(arguments) == 0
        answers.append(capsys.readouterr().out.splitlines()[1])
    assert answers[0] == answers[1] and prefilled == [11, 1]


def test_chat_refuses_at_once_what_it_could_not_save(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["chat", str(checkpoint), "--plan", "growing", "-m", "12", "--prompt-cache-file"]
    for extra, message in (
        ([str(tmp_path / "missing" / "x")], f"no folder {tmp_path / 'missing'}"),
        ([str(tmp_path)], "cannot write"),
        ([str(tmp_path / "x"), "--kv-bits", "4"], "leave --kv-bits out"),
    ):
        assert main([*arguments, *extra]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and message in captured.err and len(captured.err.splitlines()) == 1
    for _ in range(2):  # any name will do
        monkeypatch.setattr(sys, "stdin", io.StringIO("abc\nq\n"))
        assert main([*arguments, str(tmp_path / "x")]) == 0
        assert [f.name for f in tmp_path.iterdir()] == ["x"]
