"""extend, eval, generate, export and parity as a user calls them, on tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import assert_same_heads, error_line, flags

from mtpd_mlx.cli import main
from mtpd_mlx.decoding.tuning.stored import Tuned, read_tuned, write_tuned
from mtpd_mlx.model.load_save import load_arrays, load_checkpoint

SMALL = flags(num_heads=None, learning_rate="1e-3")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": str(i), "prompt": "abcdefgh"[: i + 1]}) + "\n" for i in range(6)))
    return file


def test_extend_trains_only_new_heads(tiny_checkpoint: Path, text_data: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "long"
    assert main(["extend", str(tiny_checkpoint), "--to", "7", "--data", str(text_data), "--out", str(out), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "6 heads" in text and "7 heads" in text and "CAR copied" in text
    old, new = (load_arrays(f / "heads.safetensors") for f in (tiny_checkpoint, out))
    assert all(np.array_equal(np.array(old[n]), np.array(new[n])) for n in old)
    _, heads, _ = load_checkpoint(out)
    assert heads.num_heads == 7
    copies = [n for n in new if n.startswith("heads.5.")]
    assert any(not np.array_equal(np.array(new[n]), np.array(old[n.replace("heads.5.", "heads.2.")])) for n in copies)
    assert main(["extend", str(out), "--to", "7", "--data", str(text_data), "--out", str(tmp_path / "x"), *SMALL]) == 1


def test_extend_train_free_copies(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out, tuned = tmp_path / "copies", Path(shutil.copytree(tiny_checkpoint, tmp_path / "tuned"))
    write_tuned(tuned, "here", Tuned(1, "growing", 1.5))
    assert main(["extend", str(tuned), "--to", "12", "--train-free", "--out", str(out)]) == 0
    assert read_tuned(out, "here") is None, "measured with the shorter cascade"
    new = load_arrays(out / "heads.safetensors")
    for k in range(12):
        for name in (n for n in new if n.startswith(f"heads.{k}.")):
            assert np.array_equal(np.array(new[name]), np.array(new[name.replace(f"heads.{k}.", f"heads.{k % 3}.")]))


def test_eval_prints_all_three_figures(tiny_checkpoint: Path, prompts: Path, text_data: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["eval", str(tiny_checkpoint), "--prompts", str(prompts), "-m", "24"]
    assert main([*arguments, "--valid", str(text_data / "valid.jsonl")]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("CAR", "AR", "tau", "distinct-4", "nats per token"))
    assert main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["sets"]["prompts"]
    assert figures["tau"] == pytest.approx(1 + sum(figures["car"])) and figures["prompts"] == 6


@pytest.mark.parametrize(("after", "told"), [(1.5, False), (1.25, True)])
def test_eval_tells_the_loss_of_a_base_that_trained(after: float, told: bool) -> None:
    from mtpd_mlx.commands.eval import describe

    validation = {"start": {"main_loss": 1.5}, "validation": {"main_loss": after}}
    text = describe({"num_heads": 2, "sets": {}, "training_validation": validation})
    assert ("base validation loss before and after training: 1.5000 -> 1.2500" in text) is told


def test_the_loss_on_a_text_is_within_the_context(tiny_base: Path, text_data: Path) -> None:
    from mtpd_mlx.commands.eval import base_loss
    from mtpd_mlx.model.base import Base, load_base
    from mtpd_mlx.text.tokenizer import Tokenizer

    base, trunk = load_base(str(tiny_base)), Base.trunk
    seen: list[int] = []
    base.trunk = lambda tokens: seen.append(tokens.shape[1]) or trunk(base, tokens)  # type: ignore[method-assign]
    base_loss(base, text_data / "train.jsonl", Tokenizer.from_folder(tiny_base))
    assert set(seen) == {base.context_length} == {256}


def test_generate_speculative_equals_plain(tiny_checkpoint: Path, prompts: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    outputs = []
    for extra in ([], ["--plain"], ["--num-draft-tokens", "1"]):
        assert main(["generate", str(tiny_checkpoint), "--prompts", str(prompts), "-m", "30", "--json", *extra]) == 0
        outputs.append([json.loads(line)["tokens"] for line in capsys.readouterr().out.splitlines()])
    assert outputs[0] == outputs[1] == outputs[2] and len(outputs[0]) == 6


def test_export_and_parity(tiny_checkpoint: Path, prompts: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    for layout in ("fused", "split"):
        folder = tmp_path / layout
        assert main(["export", str(tiny_checkpoint), "--out", str(folder), "--layout", layout]) == 0
        capsys.readouterr()
        arguments = ["parity", str(tiny_checkpoint), str(folder), "--prompts", str(prompts), "-m", "40"]
        assert main([*arguments, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["tokens_equal"] and report["max_logit_diff"] < 1e-3 and report["tokens"] == 6 * 40
        if layout == "split":
            assert report["car"]["mlx"] == report["car"]["onnx"]


def test_parity_notices_a_difference(tiny_checkpoint: Path, prompts: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "onnx"
    assert main(["export", str(tiny_checkpoint), "--out", str(folder)]) == 0
    weights = folder / "weights.bin"
    data = np.frombuffer(weights.read_bytes(), dtype=np.float32).copy()
    data[: 97 * 64] = np.roll(data[: 97 * 64].reshape(97, 64), 1, axis=0).ravel()  # other embeddings, same size
    weights.write_bytes(data.tobytes())
    assert main(["parity", str(tiny_checkpoint), str(folder), "--prompts", str(prompts), "-m", "20"]) == 1
    assert "first difference" in capsys.readouterr().out


def test_bad_arguments_are_one_line(
    tiny_base: Path, tiny_checkpoint: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, word in (
        (["eval", str(tiny_checkpoint), "--prompts", str(tmp_path / "empty.txt")], "no prompts"),
        (["eval", str(tiny_checkpoint), "--prompts", str(tmp_path / "none.txt")], "none.txt"),
        (["generate", str(tiny_checkpoint), "-p", ""], "prompt"),
        (["generate", str(tiny_checkpoint), "-p", "abc", "--num-draft-tokens", "9"], "expected 0..3"),
        (["generate", str(tiny_checkpoint), "-p", "a" * 500], "prompt"),
        (["generate", str(tmp_path), "-p", "a"], "not a heads checkpoint"),
        (["generate", str(tiny_base), "-p", "a", "--no-lookup"], "not a heads checkpoint (no mtp_config.json); it is a model"),
        (["generate", str(tiny_base), "-p", "a", "--num-draft-tokens", "2"], "not a heads checkpoint"),
        (
            ["train", "--model", str(tiny_base), "--data", "no", "--out", str(tmp_path / "o")],
            "--data no: no such file or folder",
        ),
        (
            ["train", "--model", str(tiny_checkpoint), "--data", str(tmp_path / "empty.txt"), "--out", str(tmp_path / "o")],
            "no config.json in it, but heads",
        ),
        (["eval", str(tiny_checkpoint), "--prompts", str(prompts), "--valid", "none.txt"], "--valid none.txt: no such file"),
        (["parity", str(tiny_checkpoint), str(tmp_path), "--prompts", str(tmp_path / "empty.txt")], "manifest.json"),
    ):
        assert main(arguments) == 1, arguments
        assert word in error_line(capsys), arguments


def test_interrupted_extension_resumes(
    tiny_checkpoint: Path, text_data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its first stage; in a later one: tests/train/test_run_folder.py."""

    def extend(out: Path, *extra: str) -> int:
        arguments = ["extend", str(tiny_checkpoint), "--to", "5", "--data", str(text_data), "--out", str(out), *SMALL]
        return main([*arguments, "--save-every", "2", *extra])

    assert extend(tmp_path / "broken", "--resume") == 1, "nothing is there to go on from"
    assert not (tmp_path / "broken").exists()
    assert extend(tmp_path / "whole") == 0
    stop_at(3)
    assert extend(tmp_path / "broken") == 130
    monkeypatch.undo()
    assert extend(tmp_path / "broken", "--resume") == 0
    assert_same_heads(tmp_path / "whole", tmp_path / "broken")
    before = (tmp_path / "broken" / "heads.safetensors").read_bytes()
    for other in (["--to", "4"], ["--to", "5", "--seed", "1"]):  # after its end, other extensions replace nothing unasked
        arguments = ["extend", str(tiny_checkpoint), *other, "--out", str(tmp_path / "broken")]
        assert main([*arguments, "--resume"]) == 1 and main([*arguments, "--data", str(text_data), *SMALL]) == 1
    assert (tmp_path / "broken" / "heads.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("[malloc] Unable to allocate 9 bytes.\nand more"), "[malloc] Unable to allocate 9 bytes."),
        (MemoryError(), "MemoryError"),
    ],
)
def test_faults_of_mlx_give_one_line(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    from mtpd_mlx.commands import generate

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(generate, "open_from", fail)
    monkeypatch.delenv("MTPD_TRACEBACK", raising=False)
    assert main(["generate", str(tiny_checkpoint), "-p", "a"]) == 1
    assert capsys.readouterr().err == f"mtpd generate: error: {line} (--traceback shows where)\n"
    monkeypatch.setenv("MTPD_TRACEBACK", "1")
    assert main(["generate", str(tiny_checkpoint), "-p", "a"]) == 1
    assert "Traceback" in (text := capsys.readouterr().err) and text.splitlines()[-1].startswith("mtpd generate: error:")


def test_help_names_the_defaults_that_hold(capsys: pytest.CaptureFixture) -> None:
    shown = {}
    for command in ("generate", "verify"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown[command] = " ".join(capsys.readouterr().out.split())
    assert "drafts per round; 0: plain decoding (default: chosen round by round)" in shown["generate"]
    assert "repeatable (default: another text every time)" in shown["generate"]
    assert "repeatable (default: 0)" in shown["verify"]
