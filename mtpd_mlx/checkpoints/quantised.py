"""`unpack_bits`, `dequantise`: MLX's affine integers (packed weight, scales, biases per group) without MLX.
Called by the exporter and by shipped/write.py."""

from collections.abc import Mapping

import numpy as np

from mtpd_mlx.files.safetensors import Raw

LARGEST = float(np.finfo(np.float16).max)


def unpack_bits(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint32 [..., n * bits / 32] -> uint8 [..., n]: a little-endian stream of `bits`-wide integers."""
    if not 2 <= bits <= 8:
        raise ValueError(f"quantization: got {bits} bits, expected 2..8")
    data = packed.view(np.uint8)
    if bits == 8:
        return data
    if bits == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
    stream = np.unpackbits(data, axis=-1, bitorder="little")
    values = stream.reshape(*stream.shape[:-1], -1, bits)
    summed: np.ndarray = (values << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)
    return summed


def dequantise(tensors: Mapping[str, Raw], group_size: int, bits: int) -> dict[str, Raw]:
    """The tensors with scale * integer + bias in place of each packed weight [..., n * bits / 32], rounded once to float16
    (float32 where that is too small). ValueError where the shapes do not fit group_size and bits."""
    plain: dict[str, Raw] = {}
    for name, raw in tensors.items():
        stem = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        plain[name] = _floating(name, raw, tensors, group_size, bits) if f"{stem}.scales" in tensors else raw
    return plain


def _floating(name: str, raw: Raw, tensors: Mapping[str, Raw], group_size: int, bits: int) -> Raw:
    stem = name.removesuffix(".weight")
    scales, biases = (tensors[f"{stem}.{part}"].floats()[..., None] for part in ("scales", "biases"))
    integers = unpack_bits(np.ascontiguousarray(raw.bits), bits)
    if integers.shape != (*scales.shape[:-2], scales.shape[-2] * group_size):
        raise ValueError(f"{name}: got {integers.shape} for {scales.shape[:-1]} scales, expected groups of {group_size}")
    values = integers.reshape(*scales.shape[:-1], group_size).astype(np.float32) * scales + biases
    values = values.reshape(integers.shape)
    if np.abs(values).max(initial=0) > LARGEST:
        return Raw.of_floats(values)
    return Raw("F16", np.ascontiguousarray(values.astype(np.float16)).view("<u2"))
