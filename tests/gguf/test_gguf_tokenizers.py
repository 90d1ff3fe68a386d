"""Imported tokenizers: the ids of the tokenizer that the vocabulary came from, on hundreds of texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.gguf_models import edit, finish, read_json, write_source
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mtpd_mlx.checkpoints.gguf.bpe import KNOWN, LLAMA3, QWEN2, TEKKEN
from mtpd_mlx.checkpoints.gguf.reader import Gguf, read_gguf
from mtpd_mlx.checkpoints.gguf.tokenizer import tokenizer_files
from mtpd_mlx.text.tokenizer import Tokenizer as Ours

TEXT = Path(__file__).parents[2] / "mtpd_mlx" / "assets" / "demo" / "text"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ODD = ["", " ", "  two  spaces ", "a\n\n\tb\r\n c", "1234567890 12 3", "don't DON'T we'LL", "é e\u0301 İ ﬁ ½²"]
ODD += ["你好 世界 안녕 🙂👩\u200d👧", "<|im_start|>user\nHi<|im_end|>\n", "x<|endoftext|> y", "▁▁ a▁b"]
ODD += ["<tool_call>{}</tool_call>", "…—“quoted”", "\u00a0\u3000x"]


def texts() -> list[str]:
    rows = [json.loads(line)["text"] for line in (TEXT / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for row in rows for line in row.splitlines()]
    return [*ODD, *rows, *lines[:400]]


def training() -> list[str]:
    rows = (TEXT / "train.jsonl").read_text(encoding="utf-8").splitlines()[:150]
    return [json.loads(row)["text"] for row in rows] + ODD * 3


def split(pattern: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


PUBLISHED: dict[str, list[Any]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "qwen2": split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama-bpe": split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


def train_bpe(pre: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(PUBLISHED[pre])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training(), trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    return tokenizer


def write_vocabulary(file: Path, write: Callable[[gguf.GGUFWriter], None], model: str) -> Gguf:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model(model)
    write(writer)
    finish(writer)
    return read_gguf(file)


def as_ours(source: Gguf, folder: Path) -> Ours:
    folder.mkdir()
    for name, values in tokenizer_files(source, 2048).items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    return Ours.from_folder(folder)


def bpe_writer(tokenizer: Tokenizer, pre: str) -> Callable[[gguf.GGUFWriter], None]:
    vocab = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])

    def write(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([token for token, _ in tokens] + [f"[PAD{len(tokens)}]"])
        writer.add_token_types([3 if t in SPECIAL else 4 if "tool" in t else 1 for t, _ in tokens] + [5])
        writer.add_token_merges([" ".join(pair) for pair in vocab["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")

    return write


@pytest.mark.parametrize("pre", PUBLISHED)
def test_byte_level_ids(pre: str, tmp_path: Path) -> None:
    theirs = train_bpe(pre)
    ours = as_ours(write_vocabulary(tmp_path / "x.gguf", bpe_writer(theirs, pre), "gpt2"), tmp_path / "out")
    every = texts()
    assert len(every) > 300
    for text in every:
        expected = theirs.encode(text).ids
        assert ours.encode(text) == expected, text
        assert ours.decode(expected, skip_special_tokens=False) == theirs.decode(expected, skip_special_tokens=False)
    assert ours.eos_token_ids == {2} and ours.vocab_size == theirs.get_vocab_size()
    assert ours.apply_chat_template([{"role": "user", "content": "hi"}]) == "<|im_start|>hi<|im_end|>"


def test_expressions_are_those_that_transformers_has() -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    known = mapping.GGUF_PRE_TOKENIZER_SPLITS
    assert (known["llama-bpe"], known["qwen2"], known["tekken"]) == (LLAMA3, QWEN2, TEKKEN)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Any]:
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    corpus = folder / "text.txt"
    corpus.write_text("\n".join(line for text in training() for line in text.splitlines()), encoding="utf-8")

    def train(prefix: bool) -> Any:
        name = folder / f"prefix-{prefix}"
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(name),
            model_type="bpe",
            vocab_size=900,
            byte_fallback=True,
            add_dummy_prefix=prefix,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            allow_whitespace_only_pieces=True,
            split_digits=True,
            minloglevel=2,
        )
        return sentencepiece.SentencePieceProcessor(model_file=f"{name}.model")

    return train


def piece_writer(theirs: Any, prefix: bool) -> Callable[[gguf.GGUFWriter], None]:
    def kind(i: int) -> int:
        return 2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1

    def write(writer: gguf.GGUFWriter) -> None:
        count = theirs.get_piece_size()
        writer.add_token_list([theirs.id_to_piece(i) for i in range(count)])
        writer.add_token_scores([theirs.get_score(i) for i in range(count)])
        writer.add_token_types([kind(i) for i in range(count)])
        writer.add_unk_token_id(theirs.unk_id())
        writer.add_bos_token_id(theirs.bos_id())
        writer.add_eos_token_id(theirs.eos_id())
        writer.add_add_space_prefix(prefix)

    return write


@pytest.mark.parametrize("prefix", [True, False], ids=["llama", "gemma"])
def test_sentence_piece_ids(prefix: bool, pieces: Callable[[bool], Any], tmp_path: Path) -> None:
    """SentencePiece itself as oracle; a text begins with BOS, as nothing says otherwise."""
    theirs = pieces(prefix)
    ours = as_ours(write_vocabulary(tmp_path / "x.gguf", piece_writer(theirs, prefix), "llama"), tmp_path / "out")
    for text in texts():
        expected = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == expected, text
        assert ours.encode(text) == [theirs.bos_id(), *expected]
        assert ours.decode(expected) == theirs.decode(expected) or not text.strip("▁ ")
    assert ours.eos_token_ids == {theirs.eos_id()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model: got 'bert', expected 'gpt2'"),
        ({"tokenizer.ggml.pre": "poro-chat"}, f"tokenizer.ggml.pre: got 'poro-chat', expected one of {KNOWN[0]}"),
        ({"tokenizer.ggml.pre": None}, "missing key 'tokenizer.ggml.pre'"),
        ({"tokenizer.ggml.merges": None}, "missing key 'tokenizer.ggml.merges'"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "tokenizer.ggml.merges: got 'a b c', expected two pieces"),
        ({"tokenizer.ggml.merges": ["a xyz"]}, "its tokenizer cannot be built"),
        ({"tokenizer.ggml.eos_token_id": 97}, "tokenizer.ggml.eos_token_id: got 97, expected 0..96"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.token_type: got 2 values, expected 97"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "tokenizer.ggml.token_type: got 97 values, expected 2"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "'a' is there twice (0 and 1)"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores: got 0 values, expected 97"),
    ],
)
def test_refusals_name_the_key(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write_source("llama", tmp_path, lambda name: "F16")

    def apply(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key, value in change.items():
            metadata.pop(key) if value is None else metadata.update({key: value})
        if change == {"tokenizer.ggml.model": "llama"}:
            del metadata["tokenizer.ggml.merges"]

    with pytest.raises(ValueError) as refused:
        tokenizer_files(read_gguf(edit(source.file, tmp_path / "edited.gguf", apply)), 256)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_every_end_token(tmp_path: Path) -> None:
    """Those that the file names; where it names none for a turn, the known one that its chat template writes."""
    theirs = train_bpe("smollm")
    write = bpe_writer(theirs, "smollm")
    source = write_vocabulary(tmp_path / "a.gguf", write, "gpt2")

    def ends(change: dict[str, Any]) -> Any:
        metadata = {k: v for k, v in (source.metadata | change).items() if v is not None}
        return tokenizer_files(Gguf(source.file, metadata, {}), 64)["generation_config.json"].get("eos_token_id")

    assert ends({}) == 2
    assert ends({"tokenizer.ggml.eos_token_id": 0}) == [0, 2]
    assert ends({"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": None}) == 0
    assert ends({"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 1}) == [0, 1]
    assert ends({"tokenizer.ggml.eom_token_id": 5, "tokenizer.ggml.eot_token_id": 1}) == [2, 1, 5]
    assert ends({"tokenizer.ggml.eos_token_id": None, "tokenizer.chat_template": None}) is None


def test_begin_and_end_flags(tmp_path: Path) -> None:
    theirs = train_bpe("smollm")

    def write(writer: gguf.GGUFWriter) -> None:
        bpe_writer(theirs, "smollm")(writer)
        writer.add_add_eos_token(True)

    source = write_vocabulary(tmp_path / "a.gguf", write, "gpt2")
    plain = theirs.encode("Hello there").ids
    assert as_ours(source, tmp_path / "eos").encode("Hello there") == [*plain, 2]
    both = Gguf(source.file, source.metadata | {"tokenizer.ggml.add_bos_token": True}, {})
    assert as_ours(both, tmp_path / "both").encode("Hello there") == [1, *plain, 2]
    assert read_json(tmp_path / "both" / "tokenizer_config.json")["add_bos_token"] is True
    assert np.array_equal(as_ours(both, tmp_path / "again").encode("Hello there", add_special_tokens=False), plain)
