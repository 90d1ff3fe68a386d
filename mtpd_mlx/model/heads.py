"""`MTPHeads`: K cascaded heads as in DeepSeek-V3 (arXiv 2412.19437, eq. 21-23) and MTP-D (arXiv 2603.23911).
Called by training, decoding and measuring.

Offsets and names are drawn in docs/architecture.md.
"""

from collections.abc import Callable
from typing import Any

from mtpd_mlx.checkpoints.format import check_num_heads
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.blocks import call_block, recomputed
from mtpd_mlx.model.runtime import mx, nn


class MTPHead(nn.Module):
    """h'^k_i = M_k [RMSNorm_h(h^{k-1}_i) ; RMSNorm_e(Emb(x_{i+k}))],  h^k = Block_k(h'^k)."""

    def __init__(self, base: Base, own_norm: bool = False):
        super().__init__()
        d, eps = base.hidden_size, base.dims.rms_norm_eps
        self.hnorm = nn.RMSNorm(d, eps=eps)
        self.enorm = nn.RMSNorm(d, eps=eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.block = base.new_block()
        if own_norm:
            self.post_norm = nn.RMSNorm(d, eps=eps)
        self.grad_checkpoint = False

    def finish(self, base: Base, raw: mx.array) -> mx.array:
        """FinalNorm(h^k): the base's own norm, or the head's where it was imported with one."""
        return self.post_norm(raw) if "post_norm" in self else base.norm(raw)

    def __call__(self, hidden: mx.array, embedded: mx.array, mask: Any, cache: Any = None) -> mx.array:
        """hidden, embedded [B, T, d] -> h^k [B, T, d] before the final norm."""
        joined = mx.concatenate([self.hnorm(hidden), self.enorm(embedded)], axis=-1)  # [B, T, 2d]
        if self.grad_checkpoint and cache is None:
            return recomputed(self.block)(self.eh_proj(joined), mask)
        return call_block(self.block, self.eh_proj(joined), mask, cache)


class MTPHeads(nn.Module):
    """The cascade. `hidden_source` says which state enters and is passed from head to head."""

    def __init__(self, base: Base, num_heads: int, hidden_source: str, post_norms: bool = False):
        super().__init__()
        check_num_heads(num_heads, "number of heads")
        self.heads = [MTPHead(base, post_norms) for _ in range(num_heads)]
        self.post_norms = post_norms
        self.hidden_source = hidden_source
        self._draft_tokens: mx.array | None = None  # not a parameter

    @property
    def draft_tokens(self) -> mx.array | None:
        """The token ids [D] that the heads draft in, ascending (int32); None: the whole vocabulary."""
        return self._draft_tokens

    def draft_among(self, tokens: mx.array | None) -> None:
        """Sets draft_tokens (nn.Module would take a property's array for a parameter)."""
        self._draft_tokens = tokens

    def guesser(self, base: Base) -> Callable[[mx.array], mx.array]:
        """States after the final norm [.., d] -> the heads' guesses, token ids [..]."""
        tokens = self.draft_tokens
        if tokens is None:
            return lambda states: mx.argmax(base.logits(states), axis=-1)
        head = base.draft_head(tokens)
        return lambda states: tokens[mx.argmax(head(states), axis=-1)].astype(mx.uint32)

    @property
    def num_heads(self) -> int:
        return len(self.heads)

    def source(self, base: Base, hidden_prenorm: mx.array, hidden_postnorm: mx.array) -> mx.array:
        return hidden_postnorm if self.hidden_source == "postnorm" else hidden_prenorm

    def cascade(self, base: Base, hidden_prenorm: mx.array, tokens: mx.array) -> list[mx.array]:
        """Teacher-forced pass over whole rows.

        hidden_prenorm [B, T, d] and tokens [B, T] -> K states [B, T, d] after the final norm (inputs of the output head).
        Row i of state k is meaningful for i + k < T; the tail sees padding tokens and must be masked by the caller
        (it cannot reach earlier rows, attention being causal).
        """
        state = self.source(base, hidden_prenorm, base.norm(hidden_prenorm))
        embedded = base.embed(tokens)
        outputs = []
        for k, head in enumerate(self.heads, start=1):
            raw = head(state, shift_left(embedded, k), "causal")
            normed = head.finish(base, raw)
            outputs.append(normed)
            state = self.source(base, raw, normed)
        return outputs


def shift_left(x: mx.array, k: int) -> mx.array:
    """x [B, T, ...] -> y with y[:, i] = x[:, i + k] and zeros in the last k rows. k may exceed T."""
    k = min(k, x.shape[1])
    return mx.concatenate([x[:, k:], mx.zeros_like(x[:, :k])], axis=1)


def init_heads(base: Base, num_heads: int, hidden_source: str, seed: int) -> MTPHeads:
    """New heads for `base`, float32, that start close to "pass the hidden state on".

    M_k is [I ; noise], and the block's matrices are small (normal, 0.02), so that its residual branches add little: a head
    begins in the language of the output head and learns what to add. Starting the block as a copy of the base's last block
    was measured and is worse (docs/log.md): it begins by pushing the state further along than the output head expects.
    """
    from mlx.utils import tree_flatten, tree_unflatten

    heads = MTPHeads(base, num_heads, hidden_source)
    flat: Any = tree_flatten(heads.parameters())
    weights = []
    for i, (name, w) in enumerate(flat):
        if name.endswith(("bias", "sinks")):
            w = mx.zeros(w.shape)
        elif w.ndim >= 2:
            w = mx.random.normal(w.shape, scale=0.02, key=mx.random.key(seed * 100_003 + i))
            if name.endswith("eh_proj.weight"):
                w = mx.concatenate([mx.eye(w.shape[0]), w[:, w.shape[0] :]], axis=1)
        else:
            w = mx.full(w.shape, 1.0 - base.dims.offset_of(name))
        weights.append((name, w))
    heads.update(tree_unflatten(weights))
    mx.eval(heads.parameters())
    return heads
