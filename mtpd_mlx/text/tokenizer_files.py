"""`read_special_tokens`, `copy_tokenizer`: the files of a tokenizer folder, read as transformers reads them, or copied.
Called by text/tokenizer.py, joint training and export.

Tokenizer.from_folder reads through here; joint training and export copy through here. What transformers reads of the same
files is read, in its order: tokens that only files beside tokenizer.json name are added to it.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.files.json_object import read_json_object
from mtpd_mlx.text.chat_template import DEFAULT, Templates

BACKEND, CONFIG, SPECIAL_MAP, ADDED = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
GENERATION, MODEL = "generation_config.json", "config.json"
COPIED = (BACKEND, CONFIG, SPECIAL_MAP, ADDED, TEMPLATE, GENERATION)
READ = (*COPIED, MODEL, MORE_TEMPLATES)  # everything that Tokenizer.from_folder looks at
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE_TOKENS = ("extra_special_tokens", "additional_special_tokens")  # the first one counts, as in transformers


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies what Tokenizer.from_folder reads, config.json aside. Templates of additional_chat_templates/ go into the copy of
    tokenizer_config.json, with the default one: `target` has no subfolders."""
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if any((source / MORE_TEMPLATES).glob("*.jinja")):
        config = read_json(source / CONFIG)
        named = read_templates(source, config)
        assert isinstance(named, dict)
        (target / TEMPLATE).unlink(missing_ok=True)
        template = [{"name": name, "template": text} for name, text in named.items()]
        write_json(target / CONFIG, config | {"chat_template": template})


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; {} if there is no such file."""
    return read_json_object(file) if file.is_file() else {}


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """tokenizer.json of a folder. ValueError if it is missing, unreadable or has no tokens."""
    file = folder / BACKEND
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


@dataclass(frozen=True)
class SpecialTokens:
    """named: by name (eos_token, image_token), which chat templates may use; added: all that the files beside tokenizer.json
    name, in the order in which transformers adds them."""

    named: dict[str, str]
    added: list[tokenizers.AddedToken]


def read_special_tokens(folder: Path, config: dict[str, Any], backend: tokenizers.Tokenizer) -> SpecialTokens:
    """ValueError in one line where a token is not one."""
    held, source = dict(config), folder / CONFIG
    decoder: dict[int, tokenizers.AddedToken]
    if "added_tokens_decoder" in config:  # then transformers reads neither of the older files
        decoder = dict(_decoder(source, config["added_tokens_decoder"]))
    else:
        held |= {name: value for name, value in read_json(folder / SPECIAL_MAP).items() if value is not None}
        decoder = dict(_older_tokens(folder / ADDED, held)) | backend.get_added_tokens_decoder()
    by_content = {token.content: token for token in decoder.values()}
    named = {name: _token(source, name, value) for name, value in _named(held).items()}
    named = {name: by_content.get(token.content, token) for name, token in named.items()}
    special = {token.content for token in named.values()}
    tokens = [_as_special(t) if t.content in special else t for _, t in sorted(decoder.items(), key=lambda item: item[0])]
    seen = {token.content for token in tokens} | {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in [*map(_as_special, named.values()), *_more(source, held)]:
        if token.content and token.content not in seen:
            tokens.append(token)
            seen.add(token.content)
    return SpecialTokens({name: token.content for name, token in named.items()}, tokens)


def _decoder(source: Path, values: Any) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    if not isinstance(values, dict):
        raise ValueError(f"{source}: added_tokens_decoder: got {type(values).__name__}, expected an object")
    for index, value in values.items():
        if not index.isdecimal():
            raise ValueError(f"{source}: added_tokens_decoder: got {index[:40]!r}, expected a token id")
        yield int(index), _token(source, f"added_tokens_decoder: {index}", value, special=False)


def _older_tokens(file: Path, held: dict[str, Any]) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    special = [_content(value) for value in [*_named(held).values(), *_listed(held)]]
    for content, index in read_json(file).items():
        if type(index) is not int or index < 0:
            raise ValueError(f"{file}: {content[:40]!r}: got {index!r}, expected a token id")
        yield index, tokenizers.AddedToken(content, normalized=content not in special, special=content in special)


def _named(held: dict[str, Any]) -> dict[str, Any]:
    """bos_token, eos_token and so on in a fixed order, then a model's own: image_token, an object of extra_special_tokens."""
    own = {k: v for k, v in held.items() if k.endswith("_token") and k not in NAMED_TOKENS and isinstance(v, str | dict)}
    own |= held["extra_special_tokens"] if isinstance(held.get("extra_special_tokens"), dict) else {}
    return {name: held[name] for name in NAMED_TOKENS if held.get(name) is not None} | own


def _listed(held: dict[str, Any]) -> list[Any]:
    values: Any = next((held[name] for name in MORE_TOKENS if held.get(name)), [])
    return values if isinstance(values, list) else []


def _more(source: Path, held: dict[str, Any]) -> list[tokenizers.AddedToken]:
    for name in MORE_TOKENS:
        if not isinstance(held.get(name, []), list | dict | None):
            raise ValueError(f"{source}: {name}: got {type(held[name]).__name__}, expected a list of tokens")
    return [_token(source, "extra_special_tokens", value) for value in _listed(held)]


def _content(value: Any) -> Any:
    """Older files hold tokens as objects with a "content"."""
    return value.get("content") if isinstance(value, dict) else value


def _token(source: Path, name: str, value: Any, special: bool = True) -> tokenizers.AddedToken:
    content = _content(value)
    if not isinstance(content, str) or (not content and name == "eos_token"):  # any other may be left empty
        raise ValueError(f"{source}: {name}: got {str(value)[:60]!r}, expected a token (text that is not empty)")
    kept = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {k: value[k] for k in kept if k in value} if isinstance(value, dict) else {}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise ValueError(f"{source}: {name}: got {str(value)[:60]!r}, expected true or false in it")
    return tokenizers.AddedToken(content, **({"special": special} | flags))


def _as_special(token: tokenizers.AddedToken) -> tokenizers.AddedToken:
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return tokenizers.AddedToken(token.content, **flags, special=True)


def read_model_eos_ids(folder: Path) -> set[int]:
    """eos_token_id (a number or a list) of generation_config.json or, failing that, config.json and its text model."""
    config = read_json(folder / MODEL)
    for name, values in ((GENERATION, read_json(folder / GENERATION)), (MODEL, config), (MODEL, _text_part(config))):
        value = values.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(f"{folder / name}: eos_token_id: got {value!r}, expected a token id or a list of them")
        return set(ids)
    return set()


def read_vocabulary(folder: Path) -> int | None:
    """The model's vocabulary, where a config.json that says it lies beside the tokenizer."""
    config = read_json(folder / MODEL)
    sizes = (part.get("vocab_size") for part in (config, _text_part(config)))
    return next((size for size in sizes if type(size) is int and size > 0), None)


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    part = config.get("text_config")
    return part if isinstance(part, dict) else {}


def read_templates(folder: Path, config: dict[str, Any]) -> Templates:
    """One template, several by name, or None. Files come before what tokenizer_config.json holds."""
    files = {DEFAULT: folder / TEMPLATE} if (folder / TEMPLATE).is_file() else {}
    files |= {file.stem: file for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja")) if file.is_file()}
    if files:
        named = {name: _read_text(file) for name, file in files.items()}
        return named[DEFAULT] if set(named) == {DEFAULT} else named
    template = config.get("chat_template")
    if isinstance(template, list):
        if not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in template):
            raise ValueError(f'{folder / CONFIG}: chat_template: expected a list of objects with "name" and "template"')
        template = {t["name"]: t.get("template") for t in template}
    texts = template.values() if isinstance(template, dict) else () if template is None else (template,)
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{folder / CONFIG}: chat_template: got {type(text).__name__}, expected a template (text)")
    return template


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from error
