"""`byte_level` (GPT-2's BPE) and `sentence_piece` (Llama's, Gemma's): tokenizer.json of GGUF vocabularies.
Called by gguf/tokenizer.py. Each also says whether a text begins with BOS if the file does not.

The regular expressions are those that the published tokenizers have; GGUF holds a name for each.
"""

from typing import Any

import numpy as np

from mtpd_mlx.checkpoints.gguf.reader import Gguf

PRE, MERGES, SCORES = "tokenizer.ggml.pre", "tokenizer.ggml.merges", "tokenizer.ggml.scores"
NORMAL, USER_DEFINED = 1, 4
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = rf"{WORDS}|\p{{N}}{{1,3}}|{REST}", rf"{WORDS}|\p{{N}}|{REST}"
SPLITS = dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"), LLAMA3)
SPLITS |= dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2) | {"tekken": TEKKEN}
DIGITS = ("smollm", "starcoder", "refact", "codeshell")  # each digit apart, then GPT-2's expression
GPT2 = ("gpt-2", "gpt2")
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")  # a word of the vocabulary is not merged
BEGINS = WHOLE_WORDS  # with BOS, where the file does not say
KNOWN = (*SPLITS, *DIGITS, *GPT2)


def byte_level(source: Gguf, tokens: list[str]) -> tuple[dict[str, Any], bool]:
    """ValueError for a pre-tokenizer that is not known: texts would become other tokens."""
    name = source.need(PRE, str)
    if name not in KNOWN:
        raise ValueError(f"{source.file}: {PRE}: got {name!r}, expected one of {', '.join(KNOWN)}")
    merges = [_pair(source, merge) for merge in source.need(MERGES, list)]
    vocab = {token: i for i, token in enumerate(tokens) if token != f"[PAD{i}]"}  # rows without a token
    model = _model(vocab, merges) | {"ignore_merges": name in WHOLE_WORDS}
    built = {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _pre_tokenizers(name)},
        "decoder": _bytes(True),
        "model": model,
    }
    return built, name in BEGINS


def _pair(source: Gguf, merge: str) -> list[str]:
    pair = merge.split(" ")
    if len(pair) != 2 or not all(pair):
        raise ValueError(f"{source.file}: {MERGES}: got {merge[:60]!r}, expected two pieces with a space between them")
    return pair


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pre_tokenizers(name: str) -> list[dict[str, Any]]:
    if name in SPLITS:
        split = {"type": "Split", "pattern": {"Regex": SPLITS[name]}, "behavior": "Isolated", "invert": False}
        return [split, _bytes(False)]
    digits = [{"type": "Digits", "individual_digits": True}] if name in DIGITS else []
    return [*digits, _bytes(True)]


def _model(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }


def sentence_piece(source: Gguf, tokens: list[str], kinds: list[int], unknown: str | None) -> tuple[dict[str, Any], bool]:
    """Spaces are ▁, a text begins with one where the file says so, and characters without a piece are bytes."""
    scores = source.numbers(SCORES)
    if MERGES in source.metadata:
        merges = [_pair(source, merge) for merge in source.need(MERGES, list)]
    elif scores is None or len(scores) != len(tokens):
        raise ValueError(f"{source.file}: {SCORES}: got {0 if scores is None else len(scores)} values, expected {len(tokens)}")
    else:
        merges = implied_merges(tokens, kinds, scores)
    prefix = source.get("tokenizer.ggml.add_space_prefix", bool, True)
    spaces: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    prepend = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    vocab = {token: i for i, token in enumerate(tokens) if token != f"[PAD{i}]"}
    built = {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _model(vocab, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }
    return built, True


def implied_merges(tokens: list[str], kinds: list[int], scores: np.ndarray) -> list[list[str]]:
    """The merges that SentencePiece's pieces imply: each split of a piece in two pieces, best score first. llama.cpp scores
    what a user defined -1000; SentencePiece has 0."""
    ids = {token: i for i, token in enumerate(tokens) if kinds[i] in (NORMAL, USER_DEFINED)}
    ranked = []
    for token, i in ids.items():
        score = float(scores[i]) if kinds[i] == NORMAL else 0.0
        splits = [(token[:n], token[n:]) for n in range(1, len(token)) if token[:n] in ids and token[n:] in ids]
        ranked += [(score, len(a), len(b), a, b) for a, b in sorted(splits, key=lambda s: (ids[s[0]], ids[s[1]]))]
    return [[a, b] for *_, a, b in sorted(ranked, key=lambda r: r[:3], reverse=True)]
