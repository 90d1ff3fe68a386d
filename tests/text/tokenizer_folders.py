"""Tokenizer folders whose files name tokens in every way that is known, and texts that hold these tokens."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = ["Hello there, how are you today?", "I am fine, thank you. And you?", "Numbers 12 and 345 - naïve 中文 🙂"] * 2
BUNDLED = Path(__file__).parents[2] / "mtpd_mlx" / "assets" / "demo" / "base" / "tokenizer.json"
NEW = ["<|new|>", "<|im_end|>", "<image>", "[PAD]", "word", "<tool>", "</s>", "<s>", "<unk>"]


def byte_level(file: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    backend.save(str(file))


def with_post_processor(file: Path) -> None:
    byte_level(file)
    backend = tokenizers.Tokenizer.from_file(str(file))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    backend.save(str(file))


def metaspace(file: Path) -> None:
    """As Llama 2's: pieces of words with bytes to fall back on."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": b + 3 for b in range(256)}
    vocab |= {piece: 259 + i for i, piece in enumerate(["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "he", "el", "▁h"])}
    merges = [("▁", "a"), ("h", "e"), ("e", "l"), ("▁", "h")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(file))


def word_piece(file: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    backend.save(str(file))


def unigram(file: Path) -> None:
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"), ("▁hello", -1.5), ("you", -1.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.save(str(file))


def bundled(file: Path) -> None:
    shutil.copyfile(BUNDLED, file)


def token(content: str, **flags: bool) -> dict[str, Any]:
    defaults = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content} | defaults | flags


def plain(content: str, **flags: bool) -> dict[str, Any]:
    """As special_tokens_map.json holds one."""
    return {k: v for k, v in token(content, **flags).items() if k != "special"}


# name: (tokenizer.json, tokenizer_config.json, other files)
CONFIGURATIONS: dict[str, tuple[Callable[[Path], None], dict[str, Any], dict[str, Any]]] = {
    "decoder": (
        byte_level,
        {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {"320": token("<|im_end|>"), "321": token("<tool>", special=False, normalized=True)},
        },
        {"special_tokens_map.json": {"eos_token": "</s>", "pad_token": "[PAD]"}},  # which transformers leaves unread
    ),
    "decoder-gaps": (
        byte_level,
        {
            "eos_token": "</s>",
            "added_tokens_decoder": {"400": token("<image>", lstrip=True), "390": token("<|new|>", rstrip=True)},
        },
        {},
    ),
    "named-only": (byte_level, {"eos_token": "<|im_end|>", "pad_token": "[PAD]", "image_token": "<image>"}, {}),
    "additional": (with_post_processor, {"eos_token": "</s>", "additional_special_tokens": ["<|new|>", "word"]}, {}),
    "extra-list": (
        metaspace,
        {"eos_token": "</s>", "extra_special_tokens": ["<tool>", "<|im_end|>"], "additional_special_tokens": ["[PAD]"]},
        {},
    ),
    "extra-object": (metaspace, {"bos_token": "<s>", "extra_special_tokens": {"image_token": "<image>", "t": "<tool>"}}, {}),
    "map": (
        with_post_processor,
        {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"},
        {"special_tokens_map.json": {"eos_token": plain("<|im_end|>", rstrip=True), "unk_token": "<unk>"}},
    ),
    "added-file": (
        word_piece,
        {"eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False},
        {"added_tokens.json": {"<|new|>": 121, "word": 120}, "special_tokens_map.json": {"pad_token": "<|new|>"}},
    ),
    "split": (byte_level, {"eos_token": "</s>", "split_special_tokens": True, "additional_special_tokens": ["<|new|>"]}, {}),
    "bos-and-eos": (
        with_post_processor,
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True},
        {},
    ),
    "objects": (
        unigram,
        {
            "eos_token": token("</s>", lstrip=True) | {"__type": "AddedToken"},
            "unk_token": "<unk>",
            "extra_special_tokens": [token("word", single_word=True) | {"__type": "AddedToken"}],
        },
        {},
    ),
    "bundled": (
        bundled,
        {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "added_tokens_decoder": {"7": token("<tool>", normalized=True)}},
        {},
    ),
}


def write_folder(folder: Path, name: str) -> Path:
    make, config, files = CONFIGURATIONS[name]
    folder.mkdir(parents=True)
    make(folder / "tokenizer.json")
    for file, values in ({"tokenizer_config.json": config} | files).items():
        (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder


def texts(count: int, seed: int = 0) -> list[str]:
    """Words, blanks, characters of many scripts and the tokens of the configurations, in any order."""
    rng = random.Random(seed)
    words = [*NEW, *" \n\t", "hello", "you", "a", " the", "é", "中", "🙂", "Words", "12", "<", "|>", "sword", "\u00a0", "ß"]
    return ["".join(rng.choice(words) for _ in range(rng.randint(0, 12))) for _ in range(count)]


CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
WITH_TOKENS = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% if m.reasoning_content %}"
    "[{{ m.thinking }}|{{ m.reasoning_content }}]{% endif %}{% if m.tool_calls is defined %}{{ m.tool_calls | tojson }}"
    "{% endif %}{% endfor %}{{ image_token }}"
)
TOOLS = "{{ tools | tojson(indent=1) }}{% for m in messages %}<{{ dict(a=m.content)['a'] }}>{% endfor %}{{ pad_token }}"
SPACES = """
{% for m in messages %}
    {%- if loop.first and m.role == 'system' %}{% set ns = namespace(s=m.content) %}{{ ns.s }}{% continue %}{% endif %}
    {% generation %}{{ m.content }}{% endgeneration %}
{%- endfor %}
"""
# what transformers reads a template from: tokenizer_config.json, or files
TEMPLATES: list[tuple[Any, dict[str, str]]] = [
    (CHATML, {}),
    (WITH_TOKENS, {}),
    ([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": TOOLS}], {}),
    ({"default": SPACES, "rag": CHATML}, {}),
    (CHATML, {"chat_template.jinja": SPACES}),
    (CHATML, {"chat_template.jinja": WITH_TOKENS, "additional_chat_templates/tool_use.jinja": TOOLS}),
]


def write_pair(folder: Path, name: str) -> Path:
    """A configuration with a template."""
    write_folder(folder, name)
    template, files = TEMPLATES[list(CONFIGURATIONS).index(name) % len(TEMPLATES)]
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}), encoding="utf-8")
    for file, text in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    return folder


def conversations(count: int) -> list[tuple[list[dict[str, Any]], Any]]:
    """(messages, tools or None)."""
    rng, made, said = random.Random(1), [], texts(4 * count, 2)
    for n in range(count):
        messages: list[dict[str, Any]] = [{"role": "system", "content": said.pop()}] if rng.random() < 0.3 else []
        messages.append({"role": "user", "content": said.pop()})
        if rng.random() < 0.5:
            messages.append({"role": "assistant", "content": said.pop()})
            key = rng.choice(["thinking", "reasoning", "reasoning_content", "name", "tool_calls"])
            messages[-1][key] = None if rng.random() < 0.3 else [{"f": n}] if key == "tool_calls" else said.pop()
        made.append((messages, rng.choice([None, None, [], [{"name": "f", "parameters": {"x": "<é>"}}]])))
    return made
