"""Which MLX decoder `mtpd parity` and the demo measure: the one of `mtpd generate`, the oracle only where it is asked for."""

from pathlib import Path

import pytest
from mtpd_onnx.export.export import export_checkpoint

from mtpd_mlx.cli import main
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.demo import run as demo_run
from mtpd_mlx.measure import parity
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.stats import DecodeStats


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[Backend]:
    """Every backend that decode_all was given."""
    seen, decode_all = [], parity.decode_all

    def recorded(backend: Backend, *arguments: object) -> object:
        seen.append(backend)
        return decode_all(backend, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parity, "decode_all", recorded)
    monkeypatch.setattr(demo_run, "decode_all", recorded)
    return seen


def test_parity_of_the_decoder_of_generate_and_of_the_oracle(
    tiny_checkpoint: Path, tmp_path: Path, backends: list[Backend], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "onnx"
    prompts.write_text("abcdefgh\n")
    export_checkpoint(tiny_checkpoint, folder)
    arguments = ["parity", str(tiny_checkpoint), str(folder), "--prompts", str(prompts), "-m", "8"]
    for extra, kind in (([], Decoder), (["--step-by-step"], StepBackend)):
        backends.clear()
        assert main([*arguments, *extra]) == 0
        assert "1 of 1 prompts identical over 8 tokens" in capsys.readouterr().out
        mlx, onnx = backends
        assert type(mlx) is kind and type(onnx).__module__.startswith("mtpd_onnx.")
        assert mlx.num_draft_tokens == onnx.num_draft_tokens > 0


def test_the_speeds_of_the_demo_are_those_of_the_decoder_of_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arms of the measurement, without its texts."""
    from types import SimpleNamespace

    from mtpd_onnx.runtime import open as opening

    from mtpd_mlx.model.load_save import load_checkpoint

    base, heads, _ = load_checkpoint(demo_run.ASSETS / "heads", dequantize=True)
    measured = []

    def decoded(backend: Backend, *_: object) -> tuple[list, DecodeStats]:
        measured.append(backend)
        return [], SimpleNamespace(tokens_per_second=1.0)  # type: ignore[return-value]

    monkeypatch.setattr(demo_run, "decode_all", decoded)
    monkeypatch.setattr(opening, "open_folder", lambda folder, **_: folder)
    demo = SimpleNamespace(base=base, prompts=[], eos=frozenset())
    speed = demo_run.measure_speed(demo, heads, heads, {4: Path("onnx")})  # type: ignore[arg-type]
    ours = {type(backend): backend.num_draft_tokens for backend in measured if not isinstance(backend, Path)}
    assert ours == {PlainDecoder: 0, Decoder: 4} and speed["mlx_num_draft_tokens"] == 4
