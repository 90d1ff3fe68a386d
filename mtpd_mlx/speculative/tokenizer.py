"""A Hugging Face tokenizer folder without transformers: tokenizer.json, special tokens and chat template."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers


class Tokenizer:
    """Text <-> token ids. `eos_token_id` is the id that ends a training document, `eos_token_ids` all that end a generation."""

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

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads a folder in Hugging Face layout. ValueError in one line where it cannot be used."""
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"{folder}: no tokenizer.json in it")
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ValueError(f"{file}: not a readable tokenizer ({str(error).splitlines()[0]})") from error
        backend.no_padding()
        backend.no_truncation()
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(_read_json(folder / "special_tokens_map.json") | config)
        eos_id = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
        eos_ids = {eos_id} if eos_id is not None else set()
        for name in ("generation_config.json", "config.json"):
            value = _read_json(folder / name).get("eos_token_id")
            if value is not None:
                eos_ids |= set(value) if isinstance(value, list) else {value}
                break
        if eos_id is None and eos_ids:
            eos_id = min(eos_ids)
        return cls(backend, eos_id, frozenset(eos_ids), _chat_template(folder, config), special)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the smallest vocabulary of a model that can take every token."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """Renders `messages` as transformers does (sandboxed Jinja). ValueError where there is no template or it refuses."""
        import jinja2

        if self._template is None:
            raise ValueError("the tokenizer has no chat template")
        try:
            template = _environment().from_string(self._template)
            return template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except (jinja2.TemplateError, KeyError, TypeError) as error:
            raise ValueError(f"chat template: {str(error).splitlines()[0]}") from error


def _environment() -> Any:
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: got {type(values).__name__}, expected an object")
    return values


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and so on, which older files hold as objects with a "content"."""
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
