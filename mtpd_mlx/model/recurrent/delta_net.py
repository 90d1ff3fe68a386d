"""`DeltaNet`: gated delta nets (arXiv 2412.06464) of Qwen3-Next and Qwen3.5 over a RecurrentCache or a GraphState.
Called by model/recurrent/mixers.py."""

from typing import Any

from mtpd_mlx.model.recurrent.cache import Arrays, RecurrentCache
from mtpd_mlx.model.recurrent.convolution import convolve, next_window
from mtpd_mlx.model.recurrent.graph_state import GraphState, Keep, state_at, window_at
from mtpd_mlx.model.runtime import mx, nn

Projected = tuple[mx.array, mx.array, mx.array, mx.array]


class DeltaNet:
    """S_t = g_t S_{t-1} + beta_t (v_t - g_t S_{t-1} k_t) k_t^T and y_t = S_t q_t, with q, k and v behind a convolution.

    State: the convolution's window and S [1, Hv, Dv, Dk] in float32. Goes before mlx-lm's GatedDeltaNet (Qwen3.5).
    """

    num_states = 2
    in_proj_qkv: Any
    in_proj_z: Any
    in_proj_b: Any
    in_proj_a: Any
    conv1d: Any
    norm: Any
    out_proj: Any
    A_log: mx.array
    dt_bias: mx.array
    key_dim: int
    num_k_heads: int
    num_v_heads: int
    head_k_dim: int
    head_v_dim: int

    def __call__(self, inputs: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """inputs [B, T, d] -> [B, T, d]."""
        if not isinstance(cache, RecurrentCache | GraphState):
            return super().__call__(inputs, mask, cache)  # type: ignore[misc]
        rows, z, b, a = self.projected(inputs)
        out = self.norm(cache.run((rows, b, a)), z)
        return self.out_proj(out.reshape(*inputs.shape[:2], -1))

    def projected(self, x: mx.array) -> Projected:
        """x [1, n, d] -> q, k and v in one [1, n, C], z [1, n, Hv, Dv], b and a [1, n, Hv]."""
        z = self.in_proj_z(x).reshape(*x.shape[:2], self.num_v_heads, self.head_v_dim)
        return self.in_proj_qkv(x), z, self.in_proj_b(x), self.in_proj_a(x)

    def advance(self, inputs: Arrays, state: Arrays) -> tuple[mx.array, Arrays]:
        """inputs: rows [1, n, C], b and a [1, n, Hv] -> (y [1, n, Hv, Dv], the state behind them)."""
        from mlx_lm.models.gated_delta import gated_delta_update

        q, k, v, seen = self.heads(inputs[0], state)
        memory = state[1] if state else None
        y, memory = gated_delta_update(q, k, v, inputs[2], inputs[1], self.A_log, self.dt_bias, memory)
        return y, (next_window(seen, y.shape[1]), memory)

    def steps(self, inputs: Arrays, state: Arrays) -> tuple[mx.array, Keep]:
        """As GraphState takes it."""
        from mlx_lm.models.gated_delta import compute_g

        window, memory = state
        q, k, v, seen = self.heads(inputs[0], state)
        y, states = delta_steps(q, k, v, compute_g(self.A_log, inputs[2], self.dt_bias), mx.sigmoid(inputs[1]), memory)
        return y, lambda last: (window_at(seen, last, window.shape[1]), state_at(states, last))

    def heads(self, rows: mx.array, state: Arrays) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Behind the convolution: q and k [1, n, Hk, Dk], normalised, v [1, n, Hv, Dv]; and what the convolution saw."""
        from mlx_lm.models.gated_delta import normalize_qk

        convolved, seen = convolve(rows, state[0] if state else None, self.conv1d)
        q, k, v = mx.split(nn.silu(convolved), [self.key_dim, 2 * self.key_dim], axis=-1)
        q, k = (x.reshape(*rows.shape[:2], self.num_k_heads, self.head_k_dim) for x in (q, k))
        q, k = normalize_qk(q, k, inv_scale=self.head_k_dim**-0.5, eps=1e-6)
        return q, k, v.reshape(*rows.shape[:2], self.num_v_heads, self.head_v_dim), seen


def delta_steps(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, list[mx.array]]:
    """The recurrence one position after the other: q and k [1, n, Hk, Dk], v [1, n, Hv, Dv], g and beta [1, n, Hv], state
    [1, Hv, Dv, Dk] in float32 -> (y [1, n, Hv, Dv], the state behind each position)."""
    states, rows, repeats = [], [], v.shape[2] // k.shape[2]
    q, k = (mx.repeat(x, repeats, axis=2) if repeats > 1 else x for x in (q, k))
    for t in range(v.shape[1]):
        key = k[:, t, :, None]  # [1, Hv, 1, Dk]
        state = state * g[:, t, :, None, None]
        change = (v[:, t] - (state * key).sum(axis=-1)) * beta[:, t, :, None]  # [1, Hv, Dv]
        state = state + key * change[..., None]
        states.append(state)
        rows.append((state * q[:, t, :, None]).sum(axis=-1))
    return mx.stack(rows, axis=1).astype(q.dtype), states


class JoinedDeltaNet(DeltaNet):
    """The same with two projections, whose rows lie by key heads. Goes before mlx-lm's Qwen3NextGatedDeltaNet."""

    in_proj_qkvz: Any
    in_proj_ba: Any
    fix_query_key_value_ordering: Any

    def projected(self, x: mx.array) -> Projected:
        parts = self.fix_query_key_value_ordering(self.in_proj_qkvz(x), self.in_proj_ba(x))
        q, k, v, z, b, a = parts
        return mx.concatenate([part.reshape(*x.shape[:2], -1) for part in (q, k, v)], axis=-1), z, b, a
