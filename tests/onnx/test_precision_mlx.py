"""MLX-quantised models in int4 and int8 folders: the same integers and scales, and the products they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.decode import text
from helpers.precision import SMALL, TEXT, initializers, plain_logits, unpacked
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import Manifest
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.weights.tensors import Tensors
from tiny import VOCAB, write_base, write_checkpoint, write_quantised

from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.export import ExportOptions

WIDE = SMALL | {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
LAYER = "model.layers.0"
STACKS = {
    f"{LAYER}.self_attn.qkv_proj": [f"{LAYER}.self_attn.{n}_proj" for n in "qkv"],
    f"{LAYER}.self_attn.o_proj": [f"{LAYER}.self_attn.o_proj"],
    f"{LAYER}.mlp.gate_up_proj": [f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"],
    f"{LAYER}.mlp.down_proj": [f"{LAYER}.mlp.down_proj"],
    "model.embed_tokens": ["model.embed_tokens"],
    "lm_head": ["lm_head"],
}


def export(folder: Path, base: Path, precision: str, name: str = "out", **options: Any) -> tuple[Path, Manifest]:
    """One untrained head for `base`, exported with it to folder/name."""
    checkpoint = folder / "heads"
    if not checkpoint.is_dir():
        write_checkpoint(checkpoint, base, 1, noise=0.02, draft_tokens=options.pop("draft_tokens", None))
    if precision in ("int4", "int8"):
        options.setdefault("activations", "fp32")  # exact products: held against MLX's to 1e-4
    return folder / name, export_checkpoint(checkpoint, folder / name, ExportOptions(precision=precision, **options))


@pytest.mark.parametrize(
    ("bits", "group_size", "tied"),
    [(4, 32, True), (4, 64, False), (4, 128, True), (8, 32, False), (8, 64, True), (8, 128, False)],
)
def test_integers_scales_matrices_logits_and_text(bits: int, group_size: int, tied: bool, tmp_path: Path) -> None:
    plain = write_base(tmp_path / "plain", WIDE | {"tie_word_embeddings": tied}, scale=2.0)
    base = write_quantised(tmp_path / "base", plain, bits, group_size)
    out, manifest = export(tmp_path, base, f"int{bits}")
    assert manifest.record["weights"]["base"]["largest_error"] == 0
    stored = initializers(out / "plain.onnx")
    model = load_base(str(base))
    weights = dict(mx.load(str(base / "model.safetensors")))
    for stem, parts in STACKS.items():
        if stem == "lm_head" and tied:
            assert "lm_head.weight" not in stored
            continue
        packed = np.concatenate([np.array(weights[f"{p}.weight"]).view(np.uint8) for p in parts])
        assert stored[f"{stem}.weight"].tobytes() == packed.tobytes()
        scales = np.concatenate([np.array(weights[f"{p}.scales"]) for p in parts])
        np.testing.assert_array_equal(stored[f"{stem}.scales"], scales)
        if stem == "model.embed_tokens" and not tied:
            continue  # looked up only: no zero points
        assert f"{stem}.residual" not in stored, "float32 scales leave integer zero points"
        matrices = [[weights[f"{p}.{part}"] for part in ("weight", "scales", "biases")] for p in parts]
        wanted = np.concatenate([np.array(mx.dequantize(*m, group_size=group_size, bits=bits)) for m in matrices])
        np.testing.assert_allclose(unpacked(stored, stem), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(plain_logits(out), MLXModel(model, None).logits(TEXT), atol=1e-4)
    fused, greedy = (open_folder(out, provider="cpu", num_threads=1, plain=plain) for plain in (False, True))
    assert text(fused, TEXT) == text(greedy, TEXT)


def test_one_copy_serves_embedding_output_head_and_both_graphs(tmp_path: Path) -> None:
    base = write_quantised(tmp_path / "base", write_base(tmp_path / "plain", SMALL), 8)
    out, manifest = export(tmp_path, base, "int8")
    names, places = set(), set()
    for file in ("round.onnx", "plain.onnx"):
        for tensor in onnx.load(str(out / file), load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                names.add(tensor.name)
                places.add(where["offset"])
    assert len(names) == len(places)
    assert manifest.files["weights.bin"]["bytes"] <= (max(int(p) for p in places)) + VOCAB * 64 * 8


def shifted(weight: Any) -> Any:
    """Every third row of a matrix far above zero, so that its groups have one sign."""
    rows = mx.arange(weight.shape[0])[:, None] % 3 == 0
    return mx.where(rows, mx.abs(weight) + 0.5, weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", ["bfloat16", "one-signed"])
def test_what_integer_zero_points_leave_over_is_added(
    case: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same base unpacked to float32; without the residual the logits are far off."""
    plain = write_base(tmp_path / "plain", SMALL, scale=2.0)
    if case == "one-signed":
        file = str(plain / "model.safetensors")
        arrays = {n: shifted(w) if w.ndim == 2 else w for n, w in mx.load(file).items()}
        mx.save_safetensors(file, arrays)
    base = write_quantised(tmp_path / "base", plain, bits, dtype="bfloat16" if case == "bfloat16" else "float32")
    out, manifest = export(tmp_path, base, f"int{bits}")
    assert manifest.record["weights"]["base"]["largest_error"] == 0
    assert f"{LAYER}.mlp.down_proj.residual" in initializers(out / "plain.onnx")
    wanted = plain_logits(export(tmp_path, base, "fp32", "float")[0])
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(plain_logits(out), wanted, atol=2e-5 * scale)
    fused, greedy = (open_folder(out, provider="cpu", num_threads=1, plain=plain) for plain in (False, True))
    assert text(fused, TEXT) == text(greedy, TEXT)

    from mtpd_onnx.weights import quantised_layouts as layouts
    from mtpd_onnx.weights import quantize

    whole = quantize.affine
    for module in (layouts, quantize):
        monkeypatch.setattr(module, "affine", lambda s, b, n: (whole(s, b, n)[0], np.zeros_like(whole(s, b, n)[1])))
    without, manifest = export(tmp_path, base, f"int{bits}", "without")
    assert manifest.record["weights"]["base"]["largest_error"] > 0
    assert np.abs(plain_logits(without) - wanted).max() > 1e-3 * scale


def mixed(path: str, module: Any) -> bool | dict[str, int]:
    """Different bits and group sizes inside one stack, odd widths, more bits at the end, one matrix left alone."""
    for name, (bits, group_size) in {
        "q_proj": (4, 64),
        "k_proj": (6, 32),
        "v_proj": (8, 32),
        "o_proj": (3, 64),
        "gate_proj": (2, 32),
        "up_proj": (4, 64),
        "lm_head": (5, 32),
    }.items():
        if path.endswith(name):
            return {"bits": bits, "group_size": group_size}
    return "down_proj" not in path and hasattr(module, "to_quantized")


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_mixed_settings_are_exact(precision: str, tmp_path: Path) -> None:
    plain = write_base(tmp_path / "plain", SMALL | {"tie_word_embeddings": False}, scale=2.0)
    base = write_quantised(tmp_path / "base", plain, 4, quant_predicate=mixed)
    out, manifest = export(tmp_path, base, precision)
    account = manifest.record["weights"]["base"]
    assert (account["kept"], account["rounded"], account["floating"], account["largest_error"]) == (5, 0, 1, 0)
    stored, source = initializers(out / "plain.onnx"), Tensors.of_base(base, load_base(str(base)).config["quantization"])
    sizes = {stem: stored[f"{stem}.weight"].shape[1:] for stem in STACKS if stored[f"{stem}.weight"].ndim == 3}
    qkv, gate_up = f"{LAYER}.self_attn.qkv_proj", f"{LAYER}.mlp.gate_up_proj"
    assert sizes[qkv] == (2, 32) and sizes[gate_up] == (2, 16) and sizes[f"{LAYER}.self_attn.o_proj"] == (1, 32)
    for stem in (qkv, gate_up):
        wanted = np.concatenate([source.get(f"{p}.weight", (len(source.integers(p)), 64)) for p in STACKS[stem]])
        np.testing.assert_allclose(unpacked(stored, stem), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(plain_logits(out), MLXModel(load_base(str(base)), None).logits(TEXT), atol=1e-4)


def test_draft_vocabulary_of_a_quantised_head_stays_in_integers(tmp_path: Path) -> None:
    ids = sorted(np.random.default_rng(1).choice(VOCAB, 40, replace=False).tolist())
    base = write_quantised(tmp_path / "base", write_base(tmp_path / "plain", SMALL, scale=2.0), 4)
    out, _ = export(tmp_path, base, "int4", draft_tokens=ids)
    stored = initializers(out / "round.onnx")
    for part in ("weight", "scales", "zero_points"):
        np.testing.assert_array_equal(stored[f"draft_head.{part}"], stored[f"model.embed_tokens.{part}"][ids])
    fused, greedy = (open_folder(out, provider="cpu", num_threads=1, plain=plain) for plain in (False, True))
    assert text(fused, TEXT) == text(greedy, TEXT)


def test_quantised_heads_keep_their_integers(tmp_path: Path) -> None:
    from mtpd_mlx.model.load_save import load_checkpoint, save_heads

    base = write_quantised(tmp_path / "base", write_base(tmp_path / "plain", SMALL), 8)
    _, heads, config = load_checkpoint(write_checkpoint(tmp_path / "float", base, 2, noise=0.02))
    save_heads(tmp_path / "heads", heads, config, bits=8)
    _, manifest = export(tmp_path, base, "int8")
    exact = {"kept": 10, "rounded": 0, "floating": 0, "largest_error": 0.0, "largest_error_in": None}
    assert manifest.record["weights"]["heads"] == exact | {"group_sizes": []}
