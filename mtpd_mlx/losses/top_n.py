"""`nth_largest`: the N-th largest value of every row without sorting, which is the threshold of a top-N set.
Called by losses/row_losses.py.

A top-N set is {v : z_v >= threshold}: values equal to the N-th largest all belong to it, so the set does not depend on the
order in which a sort would have met them.
"""

from mtpd_mlx.model.runtime import mx, on_cpu


def nth_largest(z: mx.array, n: int) -> mx.array:
    """z [R, V] floating point, 1 <= n <= V -> the n-th largest value of each row [R, 1], in the dtype of z."""
    if not 1 <= n <= z.shape[-1]:
        raise ValueError(f"nth_largest: got n = {n}, expected 1..{z.shape[-1]}")
    if on_cpu():
        place = z.shape[-1] - n
        return mx.partition(z, place, axis=-1)[:, place : place + 1]
    return by_bisection(z, n)


def ordered_keys(z: mx.array) -> mx.array:
    """Unsigned integers in the order of the floating-point values (-0.0 just below 0.0)."""
    bits = 8 * z.dtype.size
    keys = z.view(mx.uint16 if bits == 16 else mx.uint32)
    sign = mx.array(1 << (bits - 1), keys.dtype)
    return mx.where(keys >= sign, ~keys, keys | sign)


def from_ordered_keys(keys: mx.array, dtype: mx.Dtype) -> mx.array:
    """The floating-point values (`dtype`) whose order-preserving unsigned keys these are; undoes `ordered_keys`."""
    sign = mx.array(1 << (8 * keys.dtype.size - 1), keys.dtype)
    return mx.where(keys >= sign, keys ^ sign, ~keys).view(dtype)


def by_bisection(z: mx.array, n: int) -> mx.array:
    """One counting pass per bit, on any device."""
    keys = ordered_keys(z)
    found = mx.zeros((z.shape[0], 1), keys.dtype)
    for bit in reversed(range(8 * keys.dtype.size)):
        candidate = found | mx.array(1 << bit, keys.dtype)
        enough = (keys >= candidate).sum(axis=-1, keepdims=True) >= n
        found = mx.where(enough, candidate, found)
    return from_ordered_keys(found, z.dtype)
