"""Precisions made at export: rounding to int4 and int8, half precisions, what is refused, what is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.decode import text
from helpers.precision import SMALL, TEXT, initializers, plain_logits, unpacked
from mtpd_onnx.cli import main
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.weights.quantize import round_to_nearest
from test_operators import CUDA_OPERATORS
from tiny import write_base, write_checkpoint

from mtpd_mlx.model.load_save import flatten, load_checkpoint
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.export import ExportOptions

INTEGER_OPERATORS = {"MatMulNBits", "GatherBlockQuantized", "ReduceSum"}  # these have CUDA kernels for float16 and bfloat16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    return write_checkpoint(folder / "heads", write_base(folder / "base", SMALL, scale=2.0), 2, noise=0.02)


def bound(weight: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """Half a step of each weight's group, whose range contains 0."""
    groups = weight.reshape(len(weight), -1, group_size)
    steps = (np.maximum(groups.max(-1), 0) - np.minimum(groups.min(-1), 0)) / (2**bits - 1)
    return np.repeat(steps / 2, group_size, axis=1)


@pytest.mark.parametrize("scale", [0.02, 3.0])
@pytest.mark.parametrize("shift", [0.0, 2.0, -2.0])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_off_by_half_a_step_at_most(bits: int, shift: float, scale: float) -> None:
    weight = (np.random.default_rng(0).normal(size=(50, 128)) * scale + shift).astype(np.float32)
    weight[7] = 0
    for group_size in (32, 64, 128):
        matrix = round_to_nearest(weight, bits, group_size, np.dtype(np.float32))
        steps = matrix.integers.reshape(50, -1, group_size).astype(np.float32) - matrix.zeros[..., None]
        restored = (steps * matrix.scales[..., None]).reshape(50, 128)
        assert (np.abs(restored - weight) <= bound(weight, bits, group_size) * (1 + 1e-4)).all()
        assert not matrix.residual.any() and not restored[7].any()


@pytest.mark.parametrize(("precision", "group_size"), [("int4", 32), ("int8", 64)])
def test_an_unquantised_model_is_rounded(precision: str, group_size: int, checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(precision=precision, activations="fp32", group_size=group_size)
    manifest = export_checkpoint(checkpoint, tmp_path / "out", options)
    stored = initializers(tmp_path / "out" / "round.onnx")
    base, heads, _ = load_checkpoint(checkpoint)
    weights = {n: np.array(w.astype(mx.float32)) for n, w in {**flatten(base.model), **flatten(heads)}.items()}
    worst: dict[str, tuple[float, str | None]] = {"base": (0.0, None), "heads": (0.0, None)}
    stems = [name.removesuffix(".zero_points") for name in stored if name.endswith(".zero_points")]
    assert len(stems) == 5 + 2 * 5
    for stem in stems:
        path, last = stem.rpartition(".")[::2]
        parts = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}.get(last, [last])
        wanted = np.concatenate([weights[f"{path}.{part}.weight"] for part in parts])
        bits = 4 if precision == "int4" and stem != "model.embed_tokens" else 8
        assert stored[f"{stem}.weight"].shape == (len(wanted), wanted.shape[1] // group_size, group_size * bits // 8)
        error = np.abs(unpacked(stored, stem) - wanted)
        assert (error <= bound(wanted, bits, group_size) * (1 + 1e-4)).all()
        source = "heads" if stem.startswith("heads.") else "base"
        worst[source] = max(worst[source], (float(error.max()), f"{stem}.weight"))
    for source, (error, name) in worst.items():
        account = manifest.record["weights"][source]
        assert account["largest_error"] == pytest.approx(error, rel=1e-4) and account["largest_error_in"] == name
    fused, greedy = (open_folder(tmp_path / "out", provider="cpu", num_threads=1, plain=plain) for plain in (False, True))
    assert text(fused, TEXT) == text(greedy, TEXT)


def test_int8_for_cpus_is_unpacked_when_the_session_opens(checkpoint: Path, tmp_path: Path) -> None:
    """Not in every run: after onnxruntime's own constant folding nothing of the unpacking is left."""
    export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(precision="int8", activations="fp32"))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(tmp_path / "out" / "plain.onnx"), options, providers=["CPUExecutionProvider"])
    before, after = (
        [n.op_type for n in onnx.load(str(f), load_external_data=False).graph.node]
        for f in (tmp_path / "out" / "plain.onnx", tmp_path / "optimised.onnx")
    )
    assert "MatMulNBits" not in before and before.count("Mul") > 5
    assert after.count("Mul") == 1 and after.count("Sub") == 1  # SwiGLU's; the mark of a row that is not finite
    assert after.count("Cast") <= 3 and after.count("Unsqueeze") <= 1  # lengths, with and without a spare row; tokens -> [1, S]


def test_int8_activations_round_inside_products_only(checkpoint: Path, tmp_path: Path) -> None:
    """They are the default of integer weights."""
    wanted = plain_logits(folder_of(checkpoint, tmp_path, "int4", "fp32"))
    out = folder_of(checkpoint, tmp_path, "int4")
    difference = np.abs(plain_logits(out) - wanted).max() / np.abs(wanted).max()
    assert 1e-5 < difference < 0.1
    levels = {
        a.i for n in graph_of(out, "plain.onnx").node if n.op_type == "MatMulNBits" for a in n.attribute if "level" in a.name
    }
    assert levels == {4} and read_manifest(out).activations == "int8"


def folder_of(checkpoint: Path, folder: Path, precision: str, activations: str | None = None) -> Path:
    out = folder / f"{precision}-{activations}"
    export_checkpoint(checkpoint, out, ExportOptions(precision=precision, activations=activations))
    return out


def graph_of(folder: Path, name: str) -> onnx.GraphProto:
    return onnx.load(str(folder / name), load_external_data=False).graph


@pytest.mark.parametrize("activations", ["fp16", "bf16"])
@pytest.mark.parametrize("precision", ["half", "int4", "int8"])
def test_graphs_for_cuda(precision: str, activations: str, checkpoint: Path, tmp_path: Path) -> None:
    """Valid ONNX (checked while exporting), operators with CUDA kernels, no float32 weights."""
    chosen = (activations, None) if precision == "half" else (precision, activations)
    out = folder_of(checkpoint, tmp_path, *chosen)
    dtype = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[activations]
    for name in ("round.onnx", "plain.onnx", "given.onnx", "heads_2.onnx"):
        graph = graph_of(out, name)
        assert {node.op_type for node in graph.node} <= CUDA_OPERATORS | INTEGER_OPERATORS
        assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in graph.initializer}
        caches = [i for i in graph.input if i.name.startswith("past_key")]
        assert caches and all(c.type.tensor_type.elem_type == dtype for c in caches)
    with pytest.raises(ValueError, match="which the CPU cannot run; export it with --precision") as error:
        open_folder(out, provider="cpu")
    assert "\n" not in str(error.value)


def test_bfloat16_argmax_sees_float32(checkpoint: Path, tmp_path: Path) -> None:
    out = folder_of(checkpoint, tmp_path, "bf16")
    for name in ("round.onnx", "plain.onnx"):
        model = onnx.shape_inference.infer_shapes(onnx.load(str(out / name), load_external_data=False))
        types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
        seen = [types.get(n.input[0]) for n in model.graph.node if n.op_type == "TopK"]
        assert seen and set(seen) == {onnx.TensorProto.FLOAT}
    assert {o.name: o.type.tensor_type.elem_type for o in graph_of(out, "plain.onnx").output}[
        "logits"
    ] == onnx.TensorProto.FLOAT


def test_half_precisions_round_the_weights_as_said(checkpoint: Path, tmp_path: Path) -> None:
    import ml_dtypes

    base, _, _ = load_checkpoint(checkpoint)
    embedding = np.array(base.model.model.embed_tokens.weight)
    for precision, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        manifest = export_checkpoint(checkpoint, tmp_path / precision, ExportOptions(precision=precision))
        rounding = float(np.abs(embedding - embedding.astype(dtype).astype(np.float32)).max())
        assert manifest.record["weights"]["base"]["largest_error"] >= rounding > 0


def test_widths_that_do_not_divide_into_groups_stay_in_floating_point(tmp_path: Path) -> None:
    config = SMALL | {"hidden_size": 80, "intermediate_size": 160, "num_attention_heads": 4, "head_dim": 16}
    checkpoint = write_checkpoint(tmp_path / "heads", write_base(tmp_path / "base", config), 1)
    manifest = export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(precision="int4", group_size=32))
    account = manifest.record["weights"]["base"]
    assert (account["rounded"], account["floating"]) == (2, 3)  # o_proj (64) and down_proj (160); the others are 80 wide
    assert len(plain_logits(tmp_path / "out")) == len(TEXT)


def test_what_does_not_go_together_is_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    for options, words in (
        ({"precision": "fp64"}, "--precision: got 'fp64'"),
        ({"precision": "fp32", "activations": "fp16"}, "--activations fp16: needs --precision int4 or int8"),
        ({"precision": "int4", "activations": "fp64"}, "--activations: got 'fp64'"),
        ({"precision": "int4", "layout": "split"}, "--layout split: got --precision int4"),
        ({"precision": "bf16", "layout": "split"}, "--layout split: got --precision bf16"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            export_checkpoint(checkpoint, tmp_path / "never", ExportOptions(**options))
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    out = folder_of(checkpoint, tmp_path, "int4")
    file = out / "manifest.json"
    good = json.loads(file.read_text())
    for values in ({"precision": "fp16"}, {"activations": "fp64"}, {"precision": "int3"}):
        file.write_text(json.dumps(good | values))
        with pytest.raises(ValueError, match=f"{next(iter(values))}|activations: got"):
            read_manifest(out)


def test_a_folder_for_the_cpu_is_refused_where_cuda_is_wanted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder_of(checkpoint, tmp_path, "int4")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(ValueError, match="CUDA cannot run; export it with --precision int4 --activations fp16"):
        open_folder(out, provider="cuda")


def test_export_says_sizes_and_errors(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*options: Any) -> list[str]:
        capsys.readouterr()
        assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--overwrite", *options]) == 0
        return capsys.readouterr().out.splitlines()

    first, base, heads = lines("--precision", "int4", "--activations", "fp16", "--group-size", "32")
    assert "int4 (activations fp16)" in first and "MB" in first
    assert "5 rounded here in groups of 32; largest weight error 0." in base and "(absolute, in model." in base
    assert "10 rounded here in groups of 32; largest weight error 0." in heads and "(absolute, in heads." in heads
    _, base, heads = lines()
    assert base == "base matrices: 5 in floating point; largest weight error 0" and heads.startswith("heads matrices: 10 in")
