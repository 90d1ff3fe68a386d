"""Which MLX decoder `mtpd parity` and the demo measure: the one of `mtpd generate`, the oracle only where it is asked for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mtpd_onnx.export.export import export_checkpoint

from mtpd_mlx.cli import main
from mtpd_mlx.decoding.choosing import ChoosingDecoder
from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.demo import measuring
from mtpd_mlx.demo.models import BUNDLED
from mtpd_mlx.measure import parity
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[Backend]:
    """Every backend that decode_all was given."""
    seen, decode_all = [], parity.decode_all

    def recorded(backend: Backend, *arguments: object) -> object:
        seen.append(backend)
        return decode_all(backend, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parity, "decode_all", recorded)
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
    from mtpd_onnx import manifest
    from mtpd_onnx.runtime import open as opening

    from mtpd_mlx.model.load_save import load_checkpoint

    base, heads, _ = load_checkpoint(BUNDLED.heads, dequantize=True)
    measured: dict[str, Backend] = {}

    def arm(name: str, backend: Backend, plain: bool = False) -> SimpleNamespace:
        measured[name] = backend
        return SimpleNamespace(tokens_per_second=1.0, runs=[], stats=None)

    monkeypatch.setattr(measuring, "backend_arm", arm)
    monkeypatch.setattr(measuring, "interleave", lambda *rest, **options: None)
    monkeypatch.setattr(measuring, "identical", lambda one, other: 1.0)
    monkeypatch.setattr(opening, "open_folder", lambda folder, **_: SimpleNamespace(num_draft_tokens=4))
    monkeypatch.setattr(manifest, "read_manifest", lambda folder: SimpleNamespace(precision="fp32", activations="fp32"))
    speed = measuring.measure_speed(BUNDLED, base, heads, {"k4": Path("onnx")}, [])
    ours = {type(backend): backend.num_draft_tokens for name, backend in measured.items() if name.startswith("mlx")}
    assert ours == {PlainDecoder: 0, ChoosingDecoder: 4} and speed["mlx_num_draft_tokens"] == 4
