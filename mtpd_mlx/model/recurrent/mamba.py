"""`Mamba2`: Mamba-2 layers (arXiv 2405.21060) of Granite 4 and Nemotron-H over a RecurrentCache or a GraphState.
Called by model/recurrent/mixers.py."""

from typing import Any

from mtpd_mlx.families.dims import Recurrent
from mtpd_mlx.model.recurrent.cache import Arrays, RecurrentCache
from mtpd_mlx.model.recurrent.convolution import convolve, next_window
from mtpd_mlx.model.recurrent.graph_state import GraphState, Keep, state_at, window_at
from mtpd_mlx.model.runtime import mx, nn

FEW = 17  # positions: so many are computed one by one, so that plain steps and rounds round alike; more of them at once


class GroupedNorm(nn.Module):
    """RMSNorm of x silu(gate) by groups of channels, as transformers has it; mlx-lm's Granite takes all channels at once."""

    def __init__(self, weight: mx.array, groups: int, eps: float):
        super().__init__()
        self.weight, self._groups, self._eps = weight, groups, eps

    def __call__(self, x: mx.array, gate: mx.array) -> mx.array:
        gated = mx.unflatten(nn.silu(gate) * x, -1, (self._groups, -1))
        return self.weight * mx.fast.rms_norm(gated, None, self._eps).flatten(-2)


class Mamba2:
    """S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T and y_t = S_t C_t + D x_t, with x, B and C behind a convolution.

    State: the convolution's window and S [1, H, Dh, Ds] in float32. Goes before mlx-lm's mixers.
    """

    num_states = 2

    def settle(self, recurrent: Recurrent) -> None:
        """Sets what mlx-lm would guess."""
        self.time_step_limit = recurrent.step_limit
        if recurrent.groups > 1 and not hasattr(self.norm, "group_size"):
            self.norm = GroupedNorm(self.norm.weight, recurrent.groups, self.norm.eps)

    in_proj: Any
    conv1d: Any
    norm: Any
    out_proj: Any
    A_log: mx.array
    D: mx.array
    dt_bias: mx.array
    num_heads: int
    head_dim: int
    n_groups: int
    ssm_state_size: int
    intermediate_size: int
    conv_dim: int
    time_step_limit: tuple[float, float]

    def __call__(self, hidden_states: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """hidden_states [B, T, d] -> [B, T, d]."""
        if not isinstance(cache, RecurrentCache | GraphState):
            return super().__call__(hidden_states, mask, cache)  # type: ignore[misc]
        places = [self.intermediate_size, self.intermediate_size + self.conv_dim]
        gate, rows, dt = mx.split(self.in_proj(hidden_states), places, axis=-1)
        return self.out_proj(self.norm(cache.run((rows, dt)), gate))

    def advance(self, inputs: Arrays, state: Arrays) -> tuple[mx.array, Arrays]:
        """inputs: rows [1, n, C], dt [1, n, H] -> (y [1, n, H Dh], the state behind them)."""
        x, b, c, seen = self.parts(inputs[0], state)
        n = x.shape[1]
        if n <= FEW:
            y, states = self.one_by_one(x, b, c, inputs[1], state[1] if state else None)
            return y, (next_window(seen, n), states[-1])
        from mlx_lm.models.ssm import ssm_attn

        memory, skip = state[1] if state else None, self.D.astype(x.dtype)
        y, memory = ssm_attn(x, self.A_log, b, c, skip, inputs[1], self.dt_bias, memory, self.time_step_limit)
        return y.reshape(1, n, self.intermediate_size), (next_window(seen, n), memory)

    def steps(self, inputs: Arrays, state: Arrays) -> tuple[mx.array, Keep]:
        """As GraphState takes it."""
        x, b, c, seen = self.parts(inputs[0], state)
        y, states = self.one_by_one(x, b, c, inputs[1], state[1])
        return y, lambda last: (window_at(seen, last, state[0].shape[1]), state_at(states, last))

    def parts(self, rows: mx.array, state: Arrays) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Behind the convolution: x [1, n, H, Dh], B and C [1, n, G, Ds]; and what the convolution saw."""
        convolved, seen = convolve(rows, state[0] if state else None, self.conv1d)
        inner, group = self.intermediate_size, self.n_groups * self.ssm_state_size
        x, b, c = mx.split(nn.silu(convolved), [inner, inner + group], axis=-1)
        b, c = (part.reshape(1, -1, self.n_groups, self.ssm_state_size) for part in (b, c))
        return x.reshape(1, -1, self.num_heads, self.head_dim), b, c, seen

    def one_by_one(
        self, x: mx.array, b: mx.array, c: mx.array, dt: mx.array, memory: mx.array | None
    ) -> tuple[mx.array, list[mx.array]]:
        """(y [1, n, H Dh], the state behind each position)."""
        from mlx_lm.models.ssm import compute_dt

        repeats = self.num_heads // self.n_groups
        b, c = (mx.repeat(part, repeats, axis=2).astype(mx.float32) for part in (b, c))  # [1, n, H, Ds]
        dt = compute_dt(dt, self.dt_bias, self.time_step_limit)  # float32 [1, n, H]
        decay = mx.exp(dt * -mx.exp(self.A_log.astype(mx.float32)))
        if memory is None:
            memory = mx.zeros((1, self.num_heads, self.head_dim, self.ssm_state_size), mx.float32)
        rows, states = [], []
        for t in range(x.shape[1]):
            drive = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]  # [1, H, Dh, Ds]
            memory = memory * decay[:, t, :, None, None] + drive
            states.append(memory)
            rows.append((memory * c[:, t, :, None]).sum(axis=-1))
        y = mx.stack(rows, axis=1).astype(x.dtype) + x * self.D.astype(x.dtype)[:, None]
        return y.reshape(1, -1, self.intermediate_size), states
