"""A Hugging Face tokenizer folder without transformers: tokenizer.json, special tokens and chat template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.text.chat_template import Messages, Tools, render

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Text <-> token ids. `eos_token_id` ends a training document; any of `eos_token_ids` ends a generation."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_id: int | None,
        eos_token_ids: frozenset[int],
        template: str | None = None,
        special_tokens: dict[str, str] | None = None,
    ):
        self._backend = backend
        self.eos_token_id, self.eos_token_ids = eos_token_id, eos_token_ids
        self._template, self._special_tokens = template, special_tokens or {}
        self._vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Tokenizer":
        """Reads a folder in Hugging Face layout. ValueError in one line where it cannot be used.

        The tokens that end a generation: eos_token of the tokenizer's own files, and eos_token_id (a number or a list)
        of generation_config.json or, failing that, config.json.
        """
        folder = Path(folder)
        backend = _read_backend(folder)
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(_read_json(folder / "special_tokens_map.json")) | _special_tokens(config)
        eos_id = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
        eos_ids = _model_eos_ids(folder) | ({eos_id} if eos_id is not None else set())
        if eos_id is None and eos_ids:
            eos_id = min(eos_ids)
        return cls(backend, eos_id, frozenset(eos_ids), _chat_template(folder, config), special)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the smallest vocabulary of a model that can take every token."""
        return self._vocab_size

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """ValueError where `text` holds what is no character: half of a surrogate pair, which a byte that is not UTF-8 (on the
        command line, say) and a lone \\ud800 in JSON become."""
        _check_characters(text)
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """As encode."""
        for text in texts:
            _check_characters(text)
        return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self) -> Callable[[int], str | None]:
        """A function that takes the tokens of one text, one by one, and returns the text that each completes (None: none).
        It raises Exception where a token changes text that was returned before."""
        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._backend, token)

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools | None = None) -> str:
        """The conversation as text, as transformers renders it. ValueError: no template, or it refuses the messages."""
        if self._template is None:
            raise ValueError("the tokenizer has no chat template")
        return render(self._template, messages, add_generation_prompt, self._special_tokens, tools)


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ValueError(f"text: got {got}, which is no character (not UTF-8?), expected Unicode text") from error


def _read_backend(folder: Path) -> tokenizers.Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{folder}: no tokenizer.json in it")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(f"{file}: not a readable tokenizer ({str(error).splitlines()[0]})") from error
    if backend.get_vocab_size(with_added_tokens=True) == 0:
        raise ValueError(f"{file}: got an empty vocabulary, expected at least one token")
    backend.no_padding()
    backend.no_truncation()
    return backend


def _read_json(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


def _model_eos_ids(folder: Path) -> set[int]:
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{folder / name}: eos_token_id: got {value!r}, expected a token id or a list of them")
        return set(ids)
    return set()


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and so on, which older files hold as objects with a "content"."""
    tokens = {}
    for name in NAMED_TOKENS:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
