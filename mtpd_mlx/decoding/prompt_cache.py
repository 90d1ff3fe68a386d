"""The cache of a text in a file, so that a long prompt need not be read again. Tokens, and the KV rows of base and heads."""

import json
from pathlib import Path

import numpy as np

from mtpd_mlx.decoding.decoder import Decoder
from mtpd_mlx.decoding.fixed_cache import check_fixable, to_fixed, to_growing
from mtpd_mlx.decoding.plain import PlainDecoder
from mtpd_mlx.model.load_save import load_arrays, save_arrays
from mtpd_mlx.model.runtime import mx

TOKENS, FINGERPRINT = "tokens", "base_fingerprint"  # uint8 [n]: of the base's weights and adapter


def save_cache(decoder: Decoder | PlainDecoder, file: Path) -> None:
    """What the decoder holds. ValueError for an empty or a quantised cache."""
    host = decoder.settled()
    if not host.tokens:
        raise ValueError(f"{file}: nothing to save: the cache is empty")
    arrays = {TOKENS: mx.array(host.tokens, mx.uint32), FINGERPRINT: fingerprint_of(decoder)}
    for kind, caches in (("base", host.caches), ("heads", host.head_caches)):
        check_fixable(caches)
        for i, cache in enumerate(caches):
            keys, values = to_fixed(cache, host.length, host.length)
            arrays |= {f"{kind}.{i}.keys": mx.contiguous(keys), f"{kind}.{i}.values": mx.contiguous(values)}
    save_arrays(file, arrays)


def load_cache(decoder: Decoder | PlainDecoder, file: Path) -> list[int]:
    """Puts the decoder where it was saved, and returns the text. ValueError where the file is another model's."""
    arrays = load_arrays(file)
    if TOKENS not in arrays:
        raise ValueError(f"{file}: not a cache that mtpd saved (no {TOKENS!r})")
    decoder.rewind_to(0)
    host, tokens = decoder.settled(), np.array(arrays[TOKENS]).tolist()
    if len(tokens) > decoder.capacity:
        raise ValueError(f"{file}: got {len(tokens)} tokens, expected at most {decoder.capacity} (the context)")
    groups = []
    for kind, own in (("base", host.caches), ("heads", host.head_caches)):
        names = [(f"{kind}.{i}.keys", f"{kind}.{i}.values") for i in range(len(own))]
        for name in (name for pair in names for name in pair):
            if name not in arrays:
                raise ValueError(f"{file}: missing key {name!r}: saved with fewer heads, or by another model")
            check_rows(file, name, arrays[name], decoder)
        groups.append([to_growing((arrays[k], arrays[v]), len(tokens)) for k, v in names])
    if not mx.array_equal(arrays.get(FINGERPRINT, mx.zeros(0)), fingerprint_of(decoder)).item():
        raise ValueError(f"{file}: saved with another base, or by an older version; give another file or remove it")
    decoder.resume(tokens, *groups)
    return tokens


def fingerprint_of(decoder: Decoder | PlainDecoder) -> mx.array:
    """Rows of another base of the same shape would go on as another text than the model's own."""
    return mx.array(list(decoder.model.base.fingerprint.encode()), mx.uint8)


def check_rows(file: Path, name: str, rows: mx.array, decoder: Decoder | PlainDecoder) -> None:
    kv, dtype = decoder.model.base.dims.num_kv_heads, decoder.model.base.dtype
    if rows.ndim != 4 or rows.shape[1] != kv or rows.dtype != dtype:
        got = f"{rows.dtype} {json.dumps(rows.shape)}"
        raise ValueError(f"{file}: {name}: got {got}, expected {dtype} [1, {kv}, tokens, head size]")
