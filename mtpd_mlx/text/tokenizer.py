"""`Tokenizer`: a Hugging Face tokenizer folder without transformers (tokenizer.json, special tokens, chat template).
Called by everything that encodes or decodes text."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers.decoders import DecodeStream

from mtpd_mlx.text import tokenizer_files
from mtpd_mlx.text.chat_template import Messages, Templates, Tools, choose, render
from mtpd_mlx.text.token_bytes import decoder_kinds, token_bytes


class Tokenizer:
    """Text <-> token ids. `eos_token_id` ends a training document; any of `eos_token_ids` ends a generation."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_id: int | None,
        eos_token_ids: frozenset[int],
        template: Templates = None,
        special_tokens: dict[str, str] | None = None,
        vocabulary: int | None = None,
    ):
        """`vocabulary`: the model's, where known: a text with a token beyond it is refused."""
        self._backend = backend
        self.eos_token_id, self.eos_token_ids = eos_token_id, eos_token_ids
        self._template, self._special_tokens = template, special_tokens or {}
        self._vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._limit = vocabulary if vocabulary is not None and vocabulary < self._vocab_size else None

    @classmethod
    def from_folder(cls, folder: Path | str, vocabulary: int | None = None) -> "Tokenizer":
        """Reads a folder in Hugging Face layout. ValueError in one line where it cannot be used.

        The tokens that end a generation: eos_token of the tokenizer's own files, and eos_token_id (a number or a list)
        of generation_config.json or, failing that, config.json. `vocabulary`: the model's (None: what a config.json in
        the folder says).
        """
        folder = Path(folder)
        backend, config = tokenizer_files.read_backend(folder), tokenizer_files.read_json(folder / tokenizer_files.CONFIG)
        tokens = tokenizer_files.read_special_tokens(folder, config, backend)
        backend.add_tokens(tokens.added)
        backend.encode_special_tokens = config.get("split_special_tokens") is True
        vocabulary = tokenizer_files.read_vocabulary(folder) if vocabulary is None else vocabulary
        own = max(backend.get_vocab(with_added_tokens=False).values(), default=-1) + 1
        if vocabulary is not None and own > vocabulary:  # added tokens may lie beyond it: most never occur in a text
            raise ValueError(f"{folder}: the tokenizer has {own} tokens, the model's vocabulary only {vocabulary}")
        eos_ids = {i for i in tokenizer_files.read_model_eos_ids(folder) if vocabulary is None or i < vocabulary}
        eos_id = backend.token_to_id(tokens.named["eos_token"]) if "eos_token" in tokens.named else None
        if eos_id is not None and vocabulary is not None and eos_id >= vocabulary:
            got = f"eos_token: got {tokens.named['eos_token']!r}, which is no token of this model"
            raise ValueError(f"{folder}: {got} (its id in this tokenizer is {eos_id}, expected 0..{vocabulary - 1})")
        eos_ids |= {eos_id} if eos_id is not None else set()
        if eos_id is None and eos_ids:
            eos_id = min(eos_ids)
        template = tokenizer_files.read_templates(folder, config)
        return cls(backend, eos_id, frozenset(eos_ids), template, tokens.named, vocabulary)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the smallest vocabulary of a model that can take every token."""
        return self._vocab_size

    @property
    def usable(self) -> int:
        """How many ids a text may have: those of the tokenizer that the model has, too."""
        return self._vocab_size if self._limit is None else self._limit

    @property
    def longest_token(self) -> int:
        """Characters of the longest token as the vocabulary writes it, which no text that it stands for exceeds."""
        return max(map(len, self._backend.get_vocab()))

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def template(self, tools: Tools | None = None) -> str:
        """The chat template of a conversation with these tools. ValueError where there is none."""
        return choose(self._template, tools)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """ValueError where `text` holds what is no character (half of a surrogate pair, which a byte that is not UTF-8 on the
        command line and a lone \\ud800 in JSON become), a character that this tokenizer has no token for, or a token that the
        model has not."""
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """As encode."""
        for text in texts:
            _check_characters(text)
        try:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ValueError(f"text: {_unknown_piece(self._backend, texts)} ({str(error).splitlines()[0]})") from error
        ids = [encoding.ids for encoding in encodings]
        if self._limit is not None:
            self._check_within(ids, self._limit)
        return ids

    def _check_within(self, encoded: list[list[int]], limit: int) -> None:
        beyond = next((i for ids in encoded for i in ids if i >= limit), None)
        if beyond is not None:
            token = self._backend.id_to_token(beyond)
            raise ValueError(f"text: got token {token!r} ({beyond}), expected tokens of the model's vocabulary of {limit}")

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for; a special one: its name. b"" where there is no such token."""
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return piece.encode()
        return token_bytes(piece, self._decoders, self.decode([token]))

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._backend.get_added_tokens_decoder())

    @cached_property
    def _decoders(self) -> frozenset[str]:
        return decoder_kinds(self.to_json())

    def stream(self) -> Callable[[int], str | None]:
        """A function that takes the tokens of one text, one by one, and returns the text that each completes (None: none).
        It raises Exception where a token changes text that was returned before."""
        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._backend, token)

    def special_tokens(self) -> dict[int, str]:
        """The tokens that decode leaves out, by id."""
        return {i: t.content for i, t in self._backend.get_added_tokens_decoder().items() if t.special}

    def to_json(self) -> str:
        """As a tokenizer.json, added tokens included."""
        return self._backend.to_str()

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools | None = None) -> str:
        """The conversation as text, as transformers renders it. ValueError: no template, or it refuses the messages."""
        return render(choose(self._template, tools), messages, add_generation_prompt, self._special_tokens, tools)


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ValueError(f"text: got {got}, which is no character (not UTF-8?), expected Unicode text") from error


def _unknown_piece(backend: tokenizers.Tokenizer, texts: list[str]) -> str:
    """What of the texts has no token: a character, or a word whose every character alone has none either."""
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
        split = backend.pre_tokenizer.pre_tokenize_str(normal) if backend.pre_tokenizer is not None else [(normal, (0, 0))]
        for piece, _ in split:
            if _fails(backend, piece):
                unknown = [c for c in piece if _fails(backend, c)]
                found = unknown[0] if unknown and len(set(unknown)) < len(set(piece)) else piece
                named = f"{found!r} (U+{ord(found):04X})" if len(found) == 1 else repr(found[:40])
                return f"got {named}, which this tokenizer has no token for"
    return "got what this tokenizer has no token for"


def _fails(backend: tokenizers.Tokenizer, piece: str) -> bool:
    try:
        backend.model.tokenize(piece)
    except Exception:  # as above
        return True
    return False
