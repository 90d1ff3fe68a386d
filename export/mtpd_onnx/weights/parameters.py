"""`Parameters`: values of graph parameters, made of checkpoint tensors one at a time, and their rounding errors.
Called by export/export.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from mtpd_onnx.graphs.builder import Spec
from mtpd_onnx.graphs.packed_modules import Packed
from mtpd_onnx.weights.experts import EXPERT_PARTS, correction_values, expert_values
from mtpd_onnx.weights.quantised_layouts import DRAFT_HEAD, Part, Policy, gates_last, heads_together, parts_of
from mtpd_onnx.weights.quantize import CHUNK, Matrix, from_mlx, largest_errors, pack, round_to_nearest, stack
from mtpd_onnx.weights.recurrent import PARTS, recurrent_values
from mtpd_onnx.weights.tensors import Tensors

PACKED_PARTS = ("weight", "scales", "zero_points", "residual", "offset")


@dataclass
class Account:
    """How the matrices of a checkpoint were stored, and the one furthest from it: largest |w - w exported|, absolute."""

    kept: int = 0  # with MLX's integers
    rounded: int = 0
    floating: int = 0
    largest_error: float = 0.0
    largest_error_in: str | None = None
    group_sizes: list[int] = field(default_factory=list)  # of what was rounded here, ascending

    def note(self, error: float, name: str) -> None:
        if error > self.largest_error:
            self.largest_error, self.largest_error_in = error, name


class Parameters:
    """Values of the parameters of `spec`'s graphs; what is asked for is accounted for."""

    def __init__(self, spec: Spec, policy: Policy, base: Tensors, heads: Tensors, left_out: float = 0.0):
        """left_out: what the base's norms are stored without (checkpoints/shipped/left_out.py)."""
        self._left_out, self._spec, self._policy, self._base, self._heads = left_out, spec, policy, base, heads
        self._dtype = np.dtype(spec.dtype.numpy())
        self._current: tuple[str, Matrix] | None = None  # the parts of one matrix are asked for one after the other
        self._in_groups: dict[str, dict[str, Any]] = {}
        self._accounts = {"base": Account(), "heads": Account(), DRAFT_HEAD: Account()}

    def report(self) -> dict[str, Any]:
        """For the manifest: the account of each checkpoint, and by checkpoint the largest error in integers as a share of the
        largest weight of its group."""
        accounts = {name: vars(account) for name, account in self._accounts.items()}
        return accounts | {"in_groups": self._in_groups}

    def value(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The parameter `name`, floating point ones in float32; q/k/v and gate/up are stacked along the output axis."""
        stem, _, part = name.rpartition(".")
        layout = self._spec.layouts.get(stem)
        if part in EXPERT_PARTS:
            array = expert_values(name, shape, self._spec.dims, self._heads if stem.startswith("heads.") else self._base)
            self._account(stem).floating += 1
            self._account(stem).note(rounding(array, self._dtype), name)
        elif part == "correction":
            array = correction_values(name, shape, self._spec.dims, self._heads if stem.startswith("heads.") else self._base)
        elif part in PARTS:
            array = recurrent_values(name, shape, self._base)
        elif layout is not None and part in PACKED_PARTS:
            array = self._packed_value(stem, part, layout, shape[0])
        elif part == "weight_t":
            array = self._float_value(stem, "weight", shape[::-1]).T
        else:
            array = self._float_value(stem, part, shape)
        if array.shape != shape:
            raise ValueError(f"weights: {name}: got shape {array.shape}, expected {shape}")
        if array.dtype == np.float32:
            check_fits(name, array, self._dtype)
        return array

    def _account(self, stem: str) -> Account:
        return self._accounts[_owner(stem)]

    def _note_share(self, stem: str, share: float) -> None:
        if share > self._in_groups.get(_owner(stem), {"largest_share": 0.0})["largest_share"]:
            self._in_groups[_owner(stem)] = {"largest_share": share, "in": f"{stem}.weight"}

    def _float_value(self, stem: str, part: str, shape: tuple[int, ...]) -> np.ndarray:
        parts = parts_of(stem, shape[0], self._spec, self._base, self._heads)
        array = concatenated([p.source.get(f"{p.stem}.{part}", (p.rows, *shape[1:])) for p in parts])
        if offset := self._offset(stem):
            array = array + np.float32(offset)
        if (chosen := self._rows(stem)) is not None:
            array = array[chosen]
        if array.ndim == 2:
            self._account(stem).floating += 1
            self._account(stem).note(rounding(array, self._dtype), f"{stem}.{part}")
        return array

    def _packed_value(self, stem: str, part: str, layout: Packed, outputs: int) -> np.ndarray:
        if self._current is None or self._current[0] != stem:
            self._current = None  # frees the last one first
            self._current = (stem, self._matrix(stem, layout, outputs))
        matrix = self._current[1]
        if part == "offset":
            offset = matrix.offset(matrix.scales.astype(self._dtype).astype(np.float32))
            self._account(stem).note(rounding(offset, self._dtype), f"{stem}.weight")
            return offset[..., None]
        if part == "weight":
            return matrix.packed()
        return pack(matrix.zeros, matrix.bits) if part == "zero_points" else getattr(matrix, part)

    def _matrix(self, stem: str, layout: Packed, outputs: int) -> Matrix:
        parts, policy = parts_of(stem, outputs, self._spec, self._base, self._heads), self._policy.of(stem)
        inputs = parts[0].source.width(parts[0].stem)
        expected = [p.source.get(f"{p.stem}.weight", (p.rows, inputs)) for p in parts]
        matrix = stack([one_part(p, w, layout, policy, self._dtype) for p, w in zip(parts, expected, strict=True)])
        wanted = concatenated(expected)
        if (chosen := self._rows(stem)) is not None:
            matrix, wanted = matrix.rows(chosen), wanted[chosen]
        account = self._account(stem)
        error, share = largest_errors(matrix, wanted, self._dtype)
        account.note(error, f"{stem}.weight")
        self._note_share(stem, share)
        if all(policy.keeps(p.source, p.stem) for p in parts):
            account.kept += 1
        else:
            account.rounded += 1
            account.group_sizes = sorted({*account.group_sizes, layout.group_size})
        return matrix

    def _offset(self, stem: str) -> float:
        """What is added to the stored weights of a norm; a delta net's own is stored as it is."""
        offset = self._spec.dims.offset_of(stem)
        ours = stem.endswith("norm") and not stem.startswith("heads.") and not stem.endswith("linear_attn.norm")
        return offset + self._left_out if ours else offset

    def _rows(self, stem: str) -> Sequence[int] | None:
        """The rows of the stacked matrix, in the graph's order; None: as they are."""
        if stem == DRAFT_HEAD:
            return self._draft_rows()
        if stem.endswith("in_proj_all"):
            return heads_together(self._spec.dims)
        return gates_last(self._spec.dims, stem) if stem.endswith("qkv_proj") and self._spec.dims.gated else None

    def _draft_rows(self) -> Sequence[int]:
        tokens = self._spec.draft_tokens
        return range(self._spec.dims.vocab_size) if tokens is None else list(tokens)


def _owner(stem: str) -> str:
    """The checkpoint that a matrix of the graphs comes from; the drafts' own output head has an account of its own."""
    return stem if stem == DRAFT_HEAD else "heads" if stem.startswith("heads.") else "base"


def one_part(part: Part, weight: np.ndarray, layout: Packed, policy: Policy, dtype: np.dtype) -> Matrix:
    if not policy.keeps(part.source, part.stem):
        return round_to_nearest(weight, layout.bits, layout.group_size, dtype)
    scales, biases = part.source.scales_and_biases(part.stem)
    return from_mlx(part.source.integers(part.stem), scales, biases, layout.bits, layout.group_size)


def concatenated(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def check_fits(name: str, array: np.ndarray, dtype: np.dtype) -> None:
    """ValueError where float32 numbers do not fit the type that they are stored in."""
    largest, end = float(np.abs(array).max(initial=0)), float(ml_dtypes.finfo(dtype).max)
    if not largest <= end:
        raise ValueError(
            f"weights: {name}: got a number of size {largest:.5g}, {dtype.name} ends at {end:.5g}; "
            "export with --precision bf16 or fp32 (int4 and int8: --activations bf16 or fp32)"
        )


def rounding(array: np.ndarray, dtype: np.dtype) -> float:
    """The largest difference that storing float32 [N, n] in `dtype` makes."""
    parts = (array[start : start + CHUNK] for start in range(0, len(array), CHUNK))
    return max(float(np.abs(part - part.astype(dtype).astype(np.float32)).max(initial=0)) for part in parts)
