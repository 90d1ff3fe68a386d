"""mtpd refit: worse heads are never written, better ones are, and the table says which."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.decode import oracle, text
from helpers.runs import one_line
from tiny import LLAMA, write_base, write_checkpoint, write_quantised

from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.cli import main
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.speculative.rounds import StepBackend


def refit(checkpoint: Path, base: Path, data: Path, out: Path, *more: str) -> int:
    options = ["--max-seq-length", "32", "--batch-size", "4", "--iters", "12", "--warmup", "1", "--steps-per-eval", "4"]
    return main(["refit", str(checkpoint), "--model", str(base), "--data", str(data), "--out", str(out), *options, *more])


def test_better_heads_are_kept_for_the_new_base(
    tiny_checkpoint: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = write_base(tmp_path / "tuned", seed=5)
    with pytest.raises(ValueError, match="mtpd refit"):
        load_checkpoint(tiny_checkpoint, str(base))
    load_checkpoint(tiny_checkpoint, str(base), allow_mismatch=True)
    assert refit(tiny_checkpoint, base, text_data, tmp_path / "out", "--learning-rate", "3e-3") == 0
    said = capsys.readouterr().out
    assert "CAR before" in said and "AR after" in said
    _, heads, config = load_checkpoint(tmp_path / "out")
    assert config.record["refit"]["from_fingerprint"] == read_config(tiny_checkpoint).base.fingerprint
    evaluation = config.record["eval"]
    assert heads.num_heads == 3
    assert evaluation["iteration"] > 0 and evaluation["validation"]["tau"] > evaluation["start"]["tau"]


def test_the_revision_of_the_old_base_is_recorded(tiny_checkpoint: Path, text_data: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_checkpoint, tmp_path / "old"))
    values = json.loads((old / "mtp_config.json").read_text())
    base = values["base"]["id"]
    values["base"] |= {"id": "owner/base", "revision": "v1"}
    (old / "mtp_config.json").write_text(json.dumps(values))
    assert refit(old, Path(base), text_data, tmp_path / "out", "--iters", "0") == 0
    assert read_config(tmp_path / "out").record["refit"]["from_base"] == "owner/base@v1"


def test_worse_heads_are_never_written(
    tiny_checkpoint: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A learning rate that ruins everything: what is written is what came in, for the quantised base."""
    base = write_quantised(tmp_path / "q4", Path(read_config(tiny_checkpoint).base.id), 4)
    good = tmp_path / "good"
    assert refit(tiny_checkpoint, base, text_data, good, "--learning-rate", "3e-3", "--iters", "40", "--loss", "kl") == 0
    capsys.readouterr()
    assert refit(good, base, text_data, tmp_path / "out", "--learning-rate", "50", "--max-grad-norm", "0", "--loss", "kl") == 0
    assert "they are kept" in capsys.readouterr().out
    (_, before, _), (_, after, config) = load_checkpoint(good), load_checkpoint(tmp_path / "out")
    assert config.record["eval"]["iteration"] == 0
    for k in range(3):
        assert np.array_equal(np.array(before.heads[k].eh_proj.weight), np.array(after.heads[k].eh_proj.weight))


def test_refusals(tiny_checkpoint: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = Path(read_config(tiny_checkpoint).base.id)
    narrow = write_base(tmp_path / "narrow", LLAMA | {"hidden_size": 32, "head_dim": 8})
    for checkpoint, model, out, word in (
        (tiny_checkpoint, base, tiny_checkpoint, "itself"),
        (tmp_path, base, tmp_path / "o", "not a heads checkpoint"),
        (tiny_checkpoint, narrow, tmp_path / "o", "hidden_size"),
    ):
        assert refit(checkpoint, model, text_data, out) == 1
        one_line(capsys, word)


def test_heads_of_another_base_are_no_starting_point_unless_told(
    tiny_checkpoint: Path, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--data", str(text_data), "--num-heads", "3", "--init-heads", str(tiny_checkpoint), "--iters", "1"]
    options += ["--max-seq-length", "32", "--batch-size", "2", "--warmup", "0", "--val-batches", "1"]
    other = write_base(tmp_path / "other", seed=5)
    assert main(["train", "--model", str(other), "--out", str(tmp_path / "no"), *options]) == 1
    one_line(capsys, "belong to another base")
    assert not (tmp_path / "no").exists()
    for base, more in ((other, ["--allow-base-mismatch"]), (tiny_base, [])):
        assert main(["train", "--model", str(base), "--out", str(tmp_path / base.name), *options, *more]) in (0, 3)
        assert "another base" not in capsys.readouterr().err


def test_allowed_mismatch_stays_exact(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "a"), noise=0.05)
    other = write_base(tmp_path / "b", seed=9)
    base, heads, _ = load_checkpoint(checkpoint, str(other), allow_mismatch=True)
    assert text(StepBackend(MLXModel(base, heads)), [5, 6, 7, 8], 30) == oracle(base, [5, 6, 7, 8], 30)
