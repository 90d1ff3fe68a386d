"""On CPUs a row has the same logits, bit for bit, alone and among others: verified texts are those of plain decoding."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.precision import SMALL, initializers, unpacked
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.graphs import folding
from mtpd_onnx.runtime.open import open_folder
from mtpd_onnx.runtime.plain import PlainBackend
from tiny import FAMILIES, VOCAB, write_base, write_checkpoint, write_quantised

from mtpd_mlx.options.export import ExportOptions

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXT = np.random.default_rng(0).integers(0, VOCAB, 200).tolist()
SLIDING = {
    "model_type": "gemma3_text",
    "sliding_window": 24,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 32,
    "rope_local_base_freq": 10000.0,
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp32": (FAMILIES["llama-bias"], {}),
    "fp32, norms of heads": (FAMILIES["qwen3"], {}),
    "fp32, sliding": (FAMILIES["llama-tied"] | SLIDING, {}),
    "int4, int8 activations": (FAMILIES["llama-tied"], {"precision": "int4", "activations": "int8"}),
    "int4, groups of 128": (FAMILIES["qwen3"], {"precision": "int4", "activations": "int8", "group_size": 128}),
    "int8, int8 activations": (FAMILIES["llama-untied"], {"precision": "int8", "activations": "int8", "group_size": 128}),
    "int8, unpacked": (FAMILIES["llama-tied"], {"precision": "int8", "activations": "fp32"}),
}


def plain_of(folder: Path, num_threads: int = 1) -> PlainBackend:
    backend = open_folder(folder, provider="cpu", plain=True, num_threads=num_threads)
    assert isinstance(backend, PlainBackend)
    return backend


def compare(folder: Path, starts: tuple[int, ...] = (1, 7, 31, 64, 129), most: int = 9) -> None:
    """Rows of 2 to `most` tokens after each start, against single steps."""
    several, alone = plain_of(folder), plain_of(folder)
    for start in starts:
        several.rewind_to(0)
        alone.rewind_to(0)
        several.prefill(TEXT[:start])
        alone.prefill(TEXT[:start])
        expected = np.concatenate([alone.logits([t]) for t in TEXT[start : start + most]])
        for rows in range(2, most + 1):
            several.rewind_to(start)
            got = several.logits(TEXT[start : start + rows])
            np.testing.assert_array_equal(got, expected[:rows], err_msg=f"{rows} rows after {start}")


@pytest.mark.parametrize("case", CASES)
def test_a_row_is_the_same_alone_and_among_others(case: str, tmp_path: Path) -> None:
    config, options = CASES[case]
    base = write_base(tmp_path / "base", config | WIDE, scale=2.0)
    export_checkpoint(write_checkpoint(tmp_path / "heads", base, 1), tmp_path / "out", ExportOptions(**options))
    compare(tmp_path / "out")


@pytest.mark.parametrize("case", ["fp32", "fp32, norms of heads", "int4, int8 activations"])
def test_heads_folded_into_rows_change_no_bit(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against graphs that never fold. Single rows fold from position 8 on, up to 5 rows from 40, more and prefill never."""
    config, options = CASES[case]
    base = write_base(tmp_path / "base", config | WIDE, scale=2.0)
    heads = write_checkpoint(tmp_path / "heads", base, 1)
    never, folded, wrong = (tmp_path / name for name in ("never", "folded", "wrong"))
    export_checkpoint(heads, never, ExportOptions(**options))
    for name, value in (("LONG", 0), ("ALONE_FROM", 8), ("FROM", 40), ("MOST_ROWS", 5)):
        monkeypatch.setattr(folding, name, value)
    export_checkpoint(heads, folded, ExportOptions(**options))
    compare(folded, (1, 7, 31, 129))
    monkeypatch.setattr(folding, "HIDDEN", 0.0)  # nothing is masked: other logits, where heads are folded
    export_checkpoint(heads, wrong, ExportOptions(**options))
    plain = [plain_of(folder) for folder in (never, folded, wrong)]
    for start in (6, 30, 60):
        for rows in (1, 3, 6):
            for backend in plain:
                backend.rewind_to(0)
                backend.prefill(TEXT[:start])
            expected, got, unmasked = (backend.logits(TEXT[start : start + rows]) for backend in plain)
            np.testing.assert_array_equal(got, expected)
            folds = start >= (8 if rows == 1 else 40) and rows <= 5
            assert np.array_equal(unmasked, expected) != folds, (start, rows)


def test_the_end_of_the_cache_has_no_room_for_folded_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LONG", 0)
    monkeypatch.setattr(folding, "ALONE_FROM", 8)
    base = write_base(tmp_path / "base", FAMILIES["llama-tied"] | WIDE, scale=2.0)
    export_checkpoint(write_checkpoint(tmp_path / "heads", base, 1), tmp_path / "out", ExportOptions(capacity=24))
    plain, whole = plain_of(tmp_path / "out"), plain_of(tmp_path / "out")
    wanted = whole.logits(TEXT[:24])
    plain.prefill(TEXT[:10])
    got = np.concatenate([plain.logits([t]) for t in TEXT[10:24]])
    np.testing.assert_allclose(got, wanted[10:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bits", "group_size", "stored"), [(4, 64, 32), (4, 128, 32), (8, 128, 64), (8, 32, 32)])
def test_larger_groups_are_cut_without_changing_a_weight(bits: int, group_size: int, stored: int, tmp_path: Path) -> None:
    """bfloat16 scales leave residuals, whose products are a matter of rows too."""
    plain = write_base(tmp_path / "plain", FAMILIES["llama-tied"] | WIDE, scale=2.0)
    base = write_quantised(tmp_path / "base", plain, bits, group_size, dtype="bfloat16")
    heads = write_checkpoint(tmp_path / "heads", base, 1)
    weights = {}
    for kind in ("int8", "fp32"):
        out = tmp_path / kind
        export_checkpoint(heads, out, ExportOptions(precision=f"int{bits}", activations=kind, group_size=group_size))
        weights[kind] = initializers(out / "plain.onnx")
    stem = "model.layers.0.mlp.down_proj"
    assert f"{stem}.residual" in weights["int8"]
    assert [weights[kind][f"{stem}.weight"].shape[1] for kind in ("int8", "fp32")] == [256 // stored, 256 // group_size]
    np.testing.assert_array_equal(*(unpacked(weights[kind], stem) for kind in ("int8", "fp32")))
    compare(tmp_path / "int8")


def test_the_last_position_of_the_cache_has_no_room_for_a_spare_row(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", SMALL, scale=2.0)
    export_checkpoint(write_checkpoint(tmp_path / "heads", base, 1), tmp_path / "out", ExportOptions(capacity=20))
    plain, whole = plain_of(tmp_path / "out"), plain_of(tmp_path / "out")
    wanted = whole.logits(TEXT[:20])
    plain.prefill(TEXT[:17])
    assert np.array_equal(plain.logits(TEXT[17:18]), plain_after(plain, 17)) and plain.length == 18
    got = np.concatenate([plain.logits([t]) for t in TEXT[18:20]])
    np.testing.assert_allclose(got, wanted[18:20], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="context full"):
        plain.logits([3])


def plain_after(backend: PlainBackend, start: int) -> np.ndarray:
    """The logits of the row at `start`, computed with the one after it; the backend is left after the row."""
    backend.rewind_to(start)
    both = backend.logits(TEXT[start : start + 2])
    backend.rewind_to(start + 1)
    return both[:1]


def test_attention_without_the_spare_row_is_another_one() -> None:
    """What the graphs guard against: should this fail, onnxruntime has mended it, and graphs need no spare row."""
    import onnx
    from onnx import TensorProto, helper

    heads, width, capacity = 4, 64, 256
    inputs = ["q", "", "", "past_k", "past_v", "last", "total"]
    node = helper.make_node(
        "GroupQueryAttention", inputs, ["o", "k", "v"], domain="com.microsoft", num_heads=heads, kv_num_heads=heads
    )
    cache = [1, heads, capacity, width]

    def info(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        [node],
        "attention",
        [
            info("q", [1, "S", 3 * heads * width]),
            info("past_k", cache),
            info("past_v", cache),
            info("last", [1], TensorProto.INT32),
            info("total", [], TensorProto.INT32),
        ],
        [info("o", [1, "S", heads * width]), info("k", cache), info("v", cache)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1, 131, 3 * heads * width), dtype=np.float32)

    def run(rows: np.ndarray, past: int, k: np.ndarray, v: np.ndarray) -> list[np.ndarray]:
        last, total = np.array([past + rows.shape[1] - 1], np.int32), np.array(capacity, np.int32)
        return session.run(None, {"q": rows, "past_k": k, "past_v": v, "last": last, "total": total})

    empty = np.zeros(cache, np.float32)
    _, k, v = run(rows[:, :128], 0, empty, empty)
    three, two, one = (run(rows[:, 128 : 128 + n], 128, k, v)[0] for n in (3, 2, 1))
    np.testing.assert_array_equal(three[:, :2], two)
    np.testing.assert_allclose(one[:, 0], two[:, 0], rtol=0, atol=1e-6)
    if np.array_equal(one[:, 0], two[:, 0]):
        pytest.skip("this CPU's kernel sums up one row as it does several")


def test_only_folders_of_a_large_capacity_fold(tmp_path: Path) -> None:
    import onnx

    base = write_base(tmp_path / "base", FAMILIES["llama-tied"] | {"max_position_embeddings": 4096}, scale=2.0)
    heads = write_checkpoint(tmp_path / "heads", base, 1)
    for capacity, wanted in ((folding.LONG - 1, 0), (folding.LONG, 2)):
        export_checkpoint(heads, tmp_path / str(capacity), ExportOptions(capacity=capacity))
        graph = onnx.load(str(tmp_path / str(capacity) / "plain.onnx"), load_external_data=False).graph
        assert sum(node.op_type == "If" for node in graph.node) == wanted
