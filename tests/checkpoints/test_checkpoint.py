"""What is written is read back; what is damaged or foreign is refused in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import refused
from tiny import write_base

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.model.load_save import flatten, load_arrays, load_checkpoint, save_arrays, save_heads
from mtpd_mlx.model.runtime import mx


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def not_loaded(folder: Path, *words: str) -> None:
    refused(lambda: load_checkpoint(folder), *words)


def test_truncated_weights(copy: Path) -> None:
    data = (copy / "heads.safetensors").read_bytes()
    for size in (0, 5, 200, len(data) - 1):
        (copy / "heads.safetensors").write_bytes(data[:size])
        not_loaded(copy, "heads.safetensors")


def test_missing_unexpected_and_misshapen_keys(copy: Path) -> None:
    whole = load_arrays(copy / "heads.safetensors")
    name = "heads.1.eh_proj.weight"
    save_arrays(copy / "heads.safetensors", {n: w for n, w in whole.items() if n != name})
    not_loaded(copy, "missing key", name)
    save_arrays(copy / "heads.safetensors", whole | {"extra.weight": whole[name]})
    not_loaded(copy, "unexpected key", "extra.weight")
    save_arrays(copy / "heads.safetensors", whole | {name: whole[name][:, :5]})
    not_loaded(copy, name, "(64, 5)", "(64, 128)")


def test_damaged_config(copy: Path) -> None:
    good = json.loads((copy / "mtp_config.json").read_text())
    for change, word in (
        ({"format": "other"}, "mtpd-heads"),
        ({"format_version": 9}, "9"),
        ({"num_heads": 0}, "num_heads"),
        ({"hidden_source": "x"}, "hidden_source"),
        ({"base": {}}, "missing"),
    ):
        (copy / "mtp_config.json").write_text(json.dumps(good | change))
        not_loaded(copy, word)
    (copy / "mtp_config.json").write_text("{")
    not_loaded(copy, "not valid JSON")
    (copy / "mtp_config.json").unlink()
    not_loaded(copy, "not a heads checkpoint")


def test_another_base_is_refused(copy: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", seed=7)
    with pytest.raises(ValueError, match="another base"):
        load_checkpoint(copy, str(other))


def test_fingerprint_sees_one_changed_value(tiny_base: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    assert fingerprint_base(other) == fingerprint_base(tiny_base)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    assert fingerprint_base(other) != fingerprint_base(tiny_base)


def test_quantised_heads_are_what_their_integers_stand_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Scales in bfloat16, as they ship: an export unpacks in float32, and so do we."""
    _, heads, config = load_checkpoint(tiny_checkpoint)
    heads.set_dtype(mx.bfloat16)
    save_heads(tmp_path, heads, config, bits=8)
    read, arrays = flatten(load_checkpoint(tmp_path)[1]), load_arrays(tmp_path / "heads.safetensors")
    stem = "heads.1.eh_proj"
    q = np.array(arrays[f"{stem}.weight"]).view(np.uint8).astype(np.float32)
    scales, biases = (np.array(arrays[f"{stem}.{part}"].astype(mx.float32)) for part in ("scales", "biases"))
    exact = (q.reshape(*scales.shape, -1) * scales[..., None] + biases[..., None]).reshape(q.shape)
    assert np.abs(np.array(read[f"{stem}.weight"]) - exact).max() < 1e-7


def test_quantised_heads_load_close_to_their_values(tiny_checkpoint: Path, tmp_path: Path) -> None:
    _, heads, config = load_checkpoint(tiny_checkpoint)
    save_heads(tmp_path, heads, config, bits=8)
    assert read_config(tmp_path).quantization == {"group_size": 64, "bits": 8}
    _, packed, _ = load_checkpoint(tmp_path)
    whole, read = flatten(heads), flatten(packed)
    assert all(np.abs(np.array(whole[n] - read[n])).max() < 0.02 for n in whole)
    arrays = load_arrays(tmp_path / "heads.safetensors")
    whole_file = (tmp_path / "heads.safetensors").read_bytes()
    for name in ("heads.0.eh_proj.biases", "heads.0.eh_proj.scales"):
        save_arrays(tmp_path / "heads.safetensors", {n: w for n, w in arrays.items() if n != name})
        not_loaded(tmp_path, "heads.safetensors", "heads.0.eh_proj")
    save_arrays(tmp_path / "heads.safetensors", arrays | {"heads.0.eh_proj.scales": mx.zeros((1, 1))})
    not_loaded(tmp_path, "heads.safetensors: cannot be unpacked")
    (tmp_path / "heads.safetensors").write_bytes(whole_file)
    assert (tmp_path / "heads.safetensors").stat().st_size < 0.5 * (tiny_checkpoint / "heads.safetensors").stat().st_size
