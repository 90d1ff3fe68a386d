"""`token_bytes`: the bytes that one token stands for, of byte-level tokenizers, those with byte fallback, and all others.
Called by text/tokenizer.py, for the server's log-probabilities."""

import json
import re
from functools import cache
from typing import Any

BYTE = re.compile("<0x([0-9A-F]{2})>")
SPACE = "▁"  # sentencepiece's


def decoder_kinds(tokenizer_json: str) -> frozenset[str]:
    """The types of decoder in a tokenizer.json."""
    decoder: dict[str, Any] = json.loads(tokenizer_json).get("decoder") or {}
    return frozenset({str(decoder.get("type")), *(str(each.get("type")) for each in decoder.get("decoders", ()))})


def token_bytes(piece: str, kinds: frozenset[str], decoded: str) -> bytes:
    """piece: the token as the vocabulary writes it; kinds: decoder_kinds; decoded: the token's text alone."""
    if "ByteLevel" in kinds:
        table = byte_signs()
        return bytes(table[c] for c in piece) if all(c in table for c in piece) else piece.encode()
    if "ByteFallback" in kinds and (byte := BYTE.fullmatch(piece)):
        return bytes([int(byte[1], 16)])
    if kinds & {"ByteFallback", "Metaspace"} or ("Replace" in kinds and SPACE in piece):
        return piece.replace(SPACE, " ").encode()
    return decoded.encode()


@cache
def byte_signs() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's: printable ones for themselves, the others from
    U+0100 on)."""
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in own]
    return {chr(b): b for b in own} | {chr(0x100 + i): b for i, b in enumerate(other)}
