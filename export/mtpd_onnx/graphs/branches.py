"""`branches`: If nodes whose branches are written like any other part of a graph.
Called by graphs/decoder.py, batch.py, folding.py and sampled_rows.py."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder

Kind = tuple[ir.DataType, Sequence[Any]]  # type and shape of a value


def branches(
    op: OpBuilder,
    wanted: ir.Value,
    name: str,
    kinds: Sequence[Kind],
    run: Callable[[OpBuilder], list[ir.Value]],
    skip: Callable[[OpBuilder], list[ir.Value]],
) -> Sequence[ir.Value]:
    """The outputs of `run` where `wanted` [1] is true, else those of `skip`; all of these types and shapes."""
    graphs = {}
    for which, trace in (("then", run), ("else", skip)):
        declared = [
            ir.Value(name=f"{name}.{which}.{i}", type=ir.TensorType(kind), shape=ir.Shape(shape))
            for i, (kind, shape) in enumerate(kinds)
        ]
        branch = op.builder.subgraph(trace, [], declared, name=f"{name}_{which}")
        for value in [each for node in branch for each in node.outputs if each.name and each not in branch.outputs]:
            value.name = f"{name}.{which}/{value.name}"  # the graph around it may use the same names
        graphs[f"{which}_branch"] = branch
    found = op.If(wanted, **graphs, _outputs=len(kinds))
    outputs: Sequence[ir.Value] = [found] if isinstance(found, ir.Value) else found
    for value, (kind, shape) in zip(outputs, kinds, strict=True):
        value.dtype, value.shape = kind, ir.Shape(shape)
    return outputs
