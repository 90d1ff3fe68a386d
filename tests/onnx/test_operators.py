"""Which operators the graphs are made of: CUDA must run every node of the fused ones, anybody the split ones."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.fused import FusedBackend
from mtpd_onnx.runtime.open import open_folder
from tiny import FAMILIES, write_base, write_checkpoint

from mtpd_mlx.options.export import ExportOptions

# Operators with a CUDA kernel for float16 / int64 / int32 (onnxruntime's docs/OperatorKernels.md). Shape is not among
# them on purpose: it runs on the CPU, and a CUDA graph refuses a model with such a node.
CUDA_OPERATORS = {
    *(
        "Add",
        "Cast",
        "Concat",
        "Equal",
        "Gather",
        "GatherElements",
        "GreaterOrEqual",
        "MatMul",
        "Mul",
        "ReduceMax",
        "ReduceMin",
        "ReduceSum",
        "Reshape",
        "RMSNormalization",
        "ScatterND",
        "Slice",
        "TopK",
    ),
    *("Split", "Squeeze", "Sub", "Unsqueeze", "Where", "Constant"),
    *("FusedMatMul", "GroupQueryAttention", "QuickGelu", "SkipSimplifiedLayerNormalization"),
}


@pytest.fixture(scope="module", params=["llama-bias", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return write_checkpoint(folder / "heads", write_base(folder / "base", FAMILIES[request.param], scale=2.0), 3)


def graph_of(folder: Path, name: str) -> onnx.ModelProto:
    return onnx.load(str(folder / name), load_external_data=False)


def test_cuda_has_a_kernel_for_every_node_of_the_fused_graphs(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "fp16", ExportOptions(precision="fp16"))
    for name in ("round.onnx", "plain.onnx", "given.onnx", "heads_1.onnx", "heads_3.onnx"):
        model = graph_of(tmp_path / "fp16", name)
        assert {node.op_type for node in model.graph.node} <= CUDA_OPERATORS
        stored = {tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.FLOAT not in stored, "a float32 initializer in a float16 graph"


def test_nodes_per_block_stay_few(checkpoint: Path, tmp_path: Path) -> None:
    """Decoding one token is bound by the number of launches; 10 is 4 products, 2 norms, attention and 3 of SwiGLU. Head norms
    are 7 (on CUDA the attention's own), biases 4. Of those outside the blocks, 5 look whether the logits are finite. On CPUs
    2 more a block and 8 more in all give attention a spare row. On CUDA 8 find the best token, on CPUs one."""
    for precision, each, all_ in (("fp16", 0, 0), ("fp32", 2, 8)):
        export_checkpoint(checkpoint, tmp_path / precision, ExportOptions(precision=precision))
        nodes = graph_of(tmp_path / precision, "plain.onnx").graph.node
        kinds = Counter(node.op_type for node in nodes)
        blocks = kinds["GroupQueryAttention"]
        extra = 7 if kinds["Reshape"] else 4 if kinds["Add"] > blocks else 0
        assert len(nodes) <= blocks * (10 + each + extra) + 17 + (7 if precision == "fp16" else 0) + all_


def test_split_graphs_use_an_old_standard_opset(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "split", ExportOptions(layout="split"))
    for name in ("main.onnx", "mtp_heads.onnx"):
        model = graph_of(tmp_path / "split", name)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert {node.domain for node in model.graph.node} == {""}


def test_the_output_head_sees_only_the_last_row_of_a_prefill(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "out")
    fused = open_folder(tmp_path / "out", provider="cpu", num_threads=1, fixed_rounds=True)
    assert isinstance(fused, FusedBackend)
    rows: list[int] = []
    run = fused.runner.free

    def watch(inputs: dict, outputs: tuple[str, ...]) -> list:
        results = run(inputs, outputs)
        rows.append(len(results[0]) - 1)  # after the number of accepted drafts
        return results

    fused.runner.free = watch  # type: ignore[method-assign]
    fused.prefill(list(range(20)))
    assert rows == [1]


def test_a_round_with_another_token_than_drafted_for_proposes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path / "out")
    fused, fresh = (open_folder(tmp_path / "out", provider="cpu", num_threads=1, fixed_rounds=True) for _ in range(2))
    text = list(range(30, 50))
    other = (fused.prefill(text) + 1) % 90
    result = fused.round(other)
    assert (result.proposed, result.accepted) == (0, 0)
    assert result.emitted == [fresh.prefill([*text, other])]
    assert fused.round(result.emitted[0]) == fresh.round(result.emitted[0])


def test_overwrite_never_removes_anything_but_an_export(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an exported folder") as error:
        export_checkpoint(checkpoint, checkpoint, ExportOptions(overwrite=True))
    assert "\n" not in str(error.value) and (checkpoint / "heads.safetensors").is_file()
    export_checkpoint(checkpoint, tmp_path / "out")
    assert export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(num_draft_tokens=2, overwrite=True)).num_heads == 2
