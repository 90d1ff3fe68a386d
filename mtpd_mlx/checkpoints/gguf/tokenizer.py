"""`tokenizer_files(source, architecture)`: tokenizer.json and the files beside it, from a GGUF file's vocabulary.
Called by gguf/write.py."""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers

from mtpd_mlx.checkpoints.gguf.bpe import byte_level, sentence_piece
from mtpd_mlx.checkpoints.gguf.reader import Gguf

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of token
NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # Hugging Face's name -> GGUF's
ENDS = ("eos", "eot", "eom")  # end of text, of a turn, of a message
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # where the file does not say which token ends a turn


@dataclass(frozen=True)
class Vocabulary:
    """tokens and their kinds, by id; ids: of the tokens that have a part to play, by GGUF's name of it."""

    tokens: list[str]
    kinds: list[int]
    ids: dict[str, int]

    def named(self, role: str) -> str | None:
        """The token with this part."""
        return self.tokens[self.ids[role]] if role in self.ids else None


def tokenizer_files(source: Gguf, context_length: int) -> dict[str, Any]:
    """File name -> its JSON. ValueError in one line names the key where something is unknown, missing or contradictory."""
    vocabulary = read_vocabulary(source)
    kind = source.need(f"{PREFIX}model", str)
    if kind == "gpt2":
        built, adds = byte_level(source, vocabulary.tokens)
    elif kind == "llama":
        built, adds = sentence_piece(source, vocabulary.tokens, vocabulary.kinds, vocabulary.named("unknown"))
    else:
        raise ValueError(
            f"{source.file}: {PREFIX}model: got {kind!r}, expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece)"
        )
    template = source.get("tokenizer.chat_template", str)
    adds_bos = source.get(f"{PREFIX}add_bos_token", bool, adds) and "bos" in vocabulary.ids
    adds_eos = source.get(f"{PREFIX}add_eos_token", bool, False) and "eos" in vocabulary.ids
    built["added_tokens"] = _added(vocabulary, built["model"]["vocab"])
    built["post_processor"] = _post_processor(vocabulary, bool(adds_bos), bool(adds_eos))
    special = {f"{ours}_token": token for ours, theirs in NAMED.items() if (token := vocabulary.named(theirs)) is not None}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": bool(adds_bos),
        "add_eos_token": bool(adds_eos),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        **({"chat_template": template} if template else {}),
    }
    return {
        "tokenizer.json": _checked(source, built),
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
        "generation_config.json": token_ids(vocabulary, template),
    }


def read_vocabulary(source: Gguf) -> Vocabulary:
    """ValueError where lengths differ, a token is there twice or an id has no token."""
    tokens, given = source.need(f"{PREFIX}tokens", list), source.numbers(f"{PREFIX}token_type")
    kinds = [NORMAL] * len(tokens) if given is None else [int(kind) for kind in given]
    if len(kinds) != len(tokens):
        raise ValueError(f"{source.file}: {PREFIX}token_type: got {len(kinds)} values, expected {len(tokens)}, one a token")
    pieces = source.need(f"{PREFIX}model", str) == "llama"
    ids = {}
    for role in (*NAMED.values(), *ENDS):
        key = f"{PREFIX}{role}_token_id"
        if (number := source.get(key, int)) is None:
            continue
        if not 0 <= number < len(tokens):
            raise ValueError(f"{source.file}: {key}: got {number}, expected 0..{len(tokens) - 1}")
        ids[role] = number
    # llama.cpp unescapes the spaces of what a user defined
    spelt = [t.replace(" ", "▁") if pieces and k == USER_DEFINED else t for t, k in zip(tokens, kinds, strict=True)]
    seen: dict[str, int] = {}
    for number, token in enumerate(spelt):
        if seen.setdefault(token, number) != number:
            raise ValueError(f"{source.file}: {PREFIX}tokens: {token[:40]!r} is there twice ({seen[token]} and {number})")
    return Vocabulary(spelt, kinds, ids)


def token_ids(vocabulary: Vocabulary, template: str | None) -> dict[str, Any]:
    """generation_config.json: bos, pad, and each token that ends a text. Where the file names none for a turn of a chat, the
    known one that its template writes."""
    ends = [vocabulary.ids[role] for role in ENDS if role in vocabulary.ids]
    if template and not {"eot", "eom"} & vocabulary.ids.keys():
        ends += [vocabulary.tokens.index(t) for t in TURN_ENDS if t in template and t in vocabulary.tokens]
    ends = list(dict.fromkeys(ends))
    found: dict[str, Any] = {"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {}
    roles = {"bos_token_id": "bos", "pad_token_id": "padding"}
    return {name: vocabulary.ids[role] for name, role in roles.items() if role in vocabulary.ids} | found


def _added(vocabulary: Vocabulary, vocab: dict[str, int]) -> list[dict[str, Any]]:
    """What is never cut into pieces: special tokens, and those that a user defined."""
    named, added = set(vocabulary.ids.values()), []
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        special = kind in (CONTROL, UNKNOWN) or number in named
        if token and token in vocab and (special or kind == USER_DEFINED):
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
            added.append({"id": number, "content": token} | flags)
    return added


def _post_processor(vocabulary: Vocabulary, bos: bool, eos: bool) -> dict[str, Any] | None:
    """Puts the tokens of begin and end around a text."""
    if not (bos or eos):
        return None
    around = [role for role, adds in (("bos", bos), ("eos", eos)) if adds]

    def text(which: str, number: int) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = [{"Sequence": {"id": which, "type_id": number}}]
        if bos:
            pieces.insert(0, {"SpecialToken": {"id": vocabulary.named("bos"), "type_id": number}})
        return [*pieces, *([{"SpecialToken": {"id": vocabulary.named("eos"), "type_id": number}}] if eos else [])]

    tokens = {
        vocabulary.tokens[n]: {"id": vocabulary.tokens[n], "ids": [n], "tokens": [vocabulary.tokens[n]]}
        for n in (vocabulary.ids[role] for role in around)
    }
    return {"type": "TemplateProcessing", "single": text("A", 0), "pair": text("A", 0) + text("B", 1), "special_tokens": tokens}


def _checked(source: Gguf, built: dict[str, Any]) -> dict[str, Any]:
    """As the tokenizers library reads and writes it."""
    try:
        written = tokenizers.Tokenizer.from_str(json.dumps(built)).to_str()
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{source.file}: its tokenizer cannot be built ({str(error).splitlines()[0][:160]})") from error
    found: dict[str, Any] = json.loads(written)
    return found
