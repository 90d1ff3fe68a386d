"""The error of integers is that of each group: an outlier does not hide what its neighbours lost."""

import json
from pathlib import Path

import numpy as np
import pytest
from mtpd_onnx.weights.quantize import largest_errors, round_to_nearest
from tiny import write_base, write_checkpoint

from mtpd_mlx.cli import main
from mtpd_mlx.files.safetensors import Raw, RawTensors, write_raw

FP32, GROUP = np.dtype("float32"), 32


def true_errors(weight: np.ndarray, bits: int) -> tuple[float, float]:
    matrix = round_to_nearest(weight, bits, GROUP, FP32)
    shape = (*matrix.scales.shape, GROUP)
    steps = matrix.integers.reshape(shape).astype(np.float64) - matrix.zeros[..., None]
    error = np.abs(steps * matrix.scales[..., None] - weight.reshape(shape)).max(-1)
    return float(error.max()), float((error / np.abs(weight.reshape(shape)).max(-1)).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("places", ["another row", "another group", "the same group"])
def test_an_outlier_hides_nothing(bits: int, outlier: float, places: str) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (8, 2 * GROUP)).astype(np.float32)
    at = {"another row": (7, slice(0, GROUP)), "another group": (0, slice(GROUP, None)), "the same group": (0, 3)}[places]
    weight[at] = outlier  # a group of one value is exact
    matrix = round_to_nearest(weight, bits, GROUP, FP32)
    np.testing.assert_allclose(largest_errors(matrix, weight, FP32), true_errors(weight, bits), rtol=1e-3)


def test_what_float32_explains_is_nothing() -> None:
    exact = (np.arange(4 * GROUP) % 16).reshape(2, 2 * GROUP).astype(np.float32) * np.float32(0.1)
    exact[1] *= 1e6
    assert largest_errors(round_to_nearest(exact, 4, GROUP, FP32), exact, FP32) == (0.0, 0.0)
    assert largest_errors(round_to_nearest(np.zeros((2, GROUP), np.float32), 4, GROUP, FP32), np.zeros((2, GROUP)), FP32) == (
        0,
        0,
    )


def test_it_is_printed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    source = RawTensors([base / "model.safetensors"])
    tensors = {name: source[name] for name in source}
    name = "model.layers.1.mlp.up_proj.weight"
    weight = tensors[name].floats().copy()
    weight[5, :GROUP] = 1e7
    tensors[name] = Raw.of_floats(weight)
    write_raw(base / "model.safetensors", tensors)
    checkpoint, out = write_checkpoint(tmp_path / "heads", base, 1), tmp_path / "onnx"
    asked = ["--precision", "int8", "--group-size", str(GROUP), "--out", str(out)]
    capsys.readouterr()
    assert main(["export", str(checkpoint), *asked]) == 0
    said = capsys.readouterr().out
    record = json.loads((out / "manifest.json").read_text())["record"]["weights"]
    assert 1e-4 < record["base"]["largest_error"] < 0.1
    assert 0.001 < record["in_groups"]["base"]["largest_share"] < 0.01
    share = record["in_groups"]["base"]
    assert f"{100 * share['largest_share']:.3g}% of its group's largest weight at most (in {share['in']})" in said
