"""MLPs and mixtures of them. graphs/modules.py puts them into blocks."""

import onnx_ir as ir
from onnxscript import OpBuilder
from onnxscript.nn import Module, Parameter

from mtpd_mlx.families.dims import Experts
from mtpd_onnx.dims import Dims
from mtpd_onnx.graphs.basics import Linear
from mtpd_onnx.graphs.flavours import ExpertWeights, Flavour

LEFT_OUT = -30000.0  # the score of an expert that does not work: its share is 0, in float16 too


class MLP(Module):
    """SwiGLU (Gemma: GeGLU) with gate and up in one product."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour, size: int | None = None):
        """size: None: the family's."""
        super().__init__()
        self.size, self.flavour, self.activation = size or dims.intermediate_size, flavour, dims.activation
        self.gate_up_proj = Linear(dims.hidden_size, 2 * self.size, dtype, flavour, dims.mlp_bias)
        self.down_proj = Linear(self.size, dims.hidden_size, dtype, flavour, dims.mlp_bias)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate, up = op.Split(self.gate_up_proj(op, x), [self.size, self.size], axis=-1, _outputs=2)
        active = (self.flavour.silu if self.activation == "silu" else self.flavour.gelu)(op, gate)
        return self.down_proj(op, op.Mul(active, up))


class MoE(Module):
    """A mixture of SwiGLU experts; `experts_gate_up` [E, 2 size, d] has gate and up in turn, `experts_down` is [E, d, size]."""

    def __init__(self, dims: Dims, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        assert dims.experts is not None
        e, self.flavour = dims.experts, flavour
        self.experts_of = e
        if e.shared:
            setattr(self, e.shared_name, MLP(dims, dtype, flavour, e.shared))
        if e.shared_gate:
            setattr(self, f"{e.shared_name}_gate", Gate(dims.hidden_size, dtype, flavour))
        self.correction = Parameter([e.count], dtype) if e.sigmoid else None
        self.router_name = e.gate.partition(".")[0]
        setattr(self, self.router_name, Linear(dims.hidden_size, e.count, dtype, flavour, e.bias))
        self.experts_gate_up = Parameter([e.count, 2 * e.size, dims.hidden_size], dtype)
        self.experts_down = Parameter([e.count, dims.hidden_size, e.size], dtype)
        self.experts_gate_up_bias = Parameter([e.count, 2 * e.size], dtype) if e.bias else None
        self.experts_down_bias = Parameter([e.count, dims.hidden_size], dtype) if e.bias else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        scores, e = getattr(self, self.router_name)(op, x), self.experts_of
        w = ExpertWeights(self.experts_gate_up, self.experts_down, self.experts_gate_up_bias, self.experts_down_bias)
        total: ir.Value | float = 1.0
        if self.correction is not None:
            scores, total = routed(op, e, scores, self.correction)
        y = self.flavour.experts(op, e, x, scores, w)
        if not isinstance(total, float) or total != 1.0:
            y = op.Mul(y, total)
        if not e.shared:
            return y
        beside = getattr(self, e.shared_name)(op, x)
        if e.shared_gate:
            beside = op.Mul(beside, op.Sigmoid(getattr(self, f"{e.shared_name}_gate")(op, x)))
        return op.Add(y, beside)


class Gate(Module):
    """One number a row; its matrix stays in floating point."""

    def __init__(self, inputs: int, dtype: ir.DataType, flavour: Flavour):
        super().__init__()
        self.weight, self.flavour = Parameter([1, inputs], dtype), flavour

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.flavour.linear(op, x, self.weight, None)


def routed(op: OpBuilder, e: Experts, scores: ir.Value, correction: ir.Value) -> tuple[ir.Value, ir.Value | float]:
    """Router scores [.., E] of sigmoids -> scores whose softmax is the chosen experts' shares, and what their sum is multiplied
    by. `correction` [E] helps to choose, within the groups whose two best experts have the largest sums (DeepSeek-V3)."""
    sure = op.Sigmoid(scores)
    choice = op.Add(sure, correction)
    if e.groups > 1:
        before = [0] * (2 if scores.shape is None else len(scores.shape) - 1)
        grouped = op.Reshape(choice, [*before, e.groups, e.count // e.groups])
        best, _ = op.TopK(grouped, [min(2, e.count // e.groups)], axis=-1, _outputs=2)
        sums = op.ReduceSum(best, [-1], keepdims=0)  # [.., G]
        _, which = op.TopK(sums, [e.chosen_groups], axis=-1, _outputs=2)
        kept = op.ScatterElements(op.Mul(sums, 0.0), which, op.CastLike(op.Add(op.Mul(which, 0), 1), sums), axis=-1)
        choice = op.Reshape(op.Mul(grouped, op.Unsqueeze(kept, [-1])), [*before, e.count])
    _, which = op.TopK(choice, [e.chosen], axis=-1, _outputs=2)
    chosen = op.GatherElements(sure, which, axis=-1)  # [.., k]
    shares = op.ScatterElements(op.Add(op.Mul(sure, 0.0), LEFT_OUT), which, op.Log(chosen), axis=-1)
    total = e.scaling if e.normalized else op.Mul(op.ReduceSum(chosen, [-1], keepdims=1), e.scaling)
    return shares, total
