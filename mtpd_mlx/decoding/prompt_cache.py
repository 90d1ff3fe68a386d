"""`save_cache`, `load_cache`: a text's tokens and KV rows (or recurrent state) of base and heads in a file.
Called by `mtpd chat`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.fixed_cache import check_fixable, to_fixed, to_growing
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.decoding.text_state import read_token
from mtpd_mlx.families.dims import Geometry
from mtpd_mlx.model.load_save import load_arrays, save_arrays
from mtpd_mlx.model.recurrent.cache import RecurrentCache
from mtpd_mlx.model.recurrent.pairs import Stateless
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.model.window_cache import WindowCache

PARTS = ("state", "inputs")
TOKENS, FINGERPRINT = "tokens", "base_fingerprint"  # uint8 [n]: of the base's weights and adapter


def save_cache(decoder: Decoder | PlainDecoder, file: Path) -> None:
    """What the decoder holds. ValueError for an empty or a quantised cache."""
    host = decoder.settled()
    if not host.tokens:
        raise ValueError(f"{file}: nothing to save: the cache is empty")
    host.reach_back()
    arrays = {TOKENS: mx.array(host.tokens, mx.uint32), FINGERPRINT: fingerprint_of(decoder)}
    for kind, caches in (("base", host.caches), ("heads", host.head_caches)):
        check_fixable([cache for cache in caches if not isinstance(cache, RecurrentCache | Stateless)])
        for i, cache in enumerate(caches):
            if isinstance(cache, Stateless):
                continue
            if isinstance(cache, RecurrentCache):
                arrays |= _journal(f"{kind}.{i}", cache)
                continue
            if isinstance(cache, WindowCache):
                keys, values = cache.rows[0], cache.rows[1]
                arrays |= {f"{kind}.{i}.start": mx.array([cache.start])} if cache.start else {}
            else:
                keys, values = to_fixed(cache, host.length, host.length)
            arrays |= {f"{kind}.{i}.keys": mx.contiguous(keys), f"{kind}.{i}.values": mx.contiguous(values)}
    save_arrays(file, arrays)


def _journal(stem: str, cache: RecurrentCache) -> dict[str, mx.array]:
    """Recurrent state before the last positions, and what the layer was given at these: so the text can be taken back a little
    once it is loaded."""
    offset, *parts = cache.journal()
    named = {f"{stem}.offset": mx.array([offset])}
    for part, held in zip(PARTS, parts, strict=True):
        named |= {f"{stem}.{part}.{j}": mx.contiguous(x) for j, x in enumerate(held)}
    return named


def load_cache(decoder: Decoder | PlainDecoder, file: Path) -> list[int]:
    """Puts the decoder where it was saved, and returns the text. ValueError where the file is another model's."""
    arrays = load_arrays(file)
    if TOKENS not in arrays:
        raise ValueError(f"{file}: not a cache that mtpd saved (no {TOKENS!r})")
    decoder.rewind_to(0)
    host, tokens = decoder.settled(), np.array(arrays[TOKENS]).tolist()
    if len(tokens) > decoder.capacity:
        raise ValueError(f"{file}: got {len(tokens)} tokens, expected at most {decoder.capacity} (the context)")
    groups: list[list[Any]] = [list(host.caches), list(host.head_caches)]
    for kind, own in zip(("base", "heads"), groups, strict=True):
        for i, cache in enumerate(own):
            if isinstance(cache, Stateless):
                continue
            recurrent = isinstance(cache, RecurrentCache)
            names = [f"{kind}.{i}.{part}" for part in (("offset",) if recurrent else ("keys", "values"))]
            for name in names:
                if name not in arrays:
                    raise ValueError(f"{file}: missing key {name!r}: saved with fewer heads, or by another model")
            if not recurrent:
                dims = decoder.model.base.dims
                geometry = dims.geometry(dims.layers[i] if kind == "base" else dims.head_layer)
                for name in names:
                    check_rows(file, name, arrays[name], geometry, decoder.model.base.dtype)
                own[i] = _of_rows(file, f"{kind}.{i}", arrays, cache, len(tokens))
    if not mx.array_equal(arrays.get(FINGERPRINT, mx.zeros(0)), fingerprint_of(decoder)).item():
        raise ValueError(f"{file}: saved with another base, or by an older version; give another file or remove it")
    for i, cache in enumerate(groups[0]):
        if isinstance(cache, RecurrentCache):
            _restore(f"base.{i}", cache, arrays)
    decoder.resume(tokens, *groups)
    return tokens


def _of_rows(file: Path, stem: str, arrays: dict[str, mx.array], cache: Any, length: int) -> Any:
    """A cache such as `cache` of `length` positions. ValueError where the file holds other ones than it wants."""
    rows, start = (arrays[f"{stem}.keys"], arrays[f"{stem}.values"]), arrays.get(f"{stem}.start")
    first = 0 if start is None else read_token(start)
    if not isinstance(cache, WindowCache):
        if first:
            raise ValueError(f"{file}: holds the window of sliding layers alone; needs --sliding-caches window")
        return to_growing(rows, length)
    held = {x.shape[2] for x in rows}
    if held != {length - first} or (first and length - first < cache.window - 1):
        raise ValueError(f"{file}: {stem}: got {max(held)} rows from position {first} on, expected {length} positions")
    if not first:
        return to_growing(rows, length, cache.window)
    cache.restore(length, rows)
    return cache


def _restore(stem: str, cache: RecurrentCache, arrays: dict[str, mx.array]) -> None:
    state, inputs = (tuple(arrays[n] for n in sorted(arrays) if n.startswith(f"{stem}.{part}.")) for part in PARTS)
    cache.restore(read_token(arrays[f"{stem}.offset"]), state, inputs)


def fingerprint_of(decoder: Decoder | PlainDecoder) -> mx.array:
    """Rows of another base of the same shape would go on as another text than the model's own."""
    return mx.array(list(decoder.model.base.fingerprint.encode()), mx.uint8)


def check_rows(file: Path, name: str, rows: mx.array, geometry: Geometry, dtype: mx.Dtype) -> None:
    """ValueError unless `rows` is of `dtype` with shape [1, key heads, tokens, head size] of this geometry."""
    kv, size = geometry.num_kv_heads, geometry.head_dim
    if rows.ndim != 4 or rows.shape[1] != kv or rows.shape[3] != size or rows.dtype != dtype:
        got = f"{rows.dtype} {json.dumps(rows.shape)}"
        raise ValueError(f"{file}: {name}: got {got}, expected {dtype} [1, {kv}, tokens, {size}]")
