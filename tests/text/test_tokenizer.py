"""The tokenizer folder against transformers, on a tiny byte-level BPE trained here."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mtpd_mlx.text.tokenizer import Tokenizer

TEXT = ["Hello there, how are you today?", "I am fine, thank you. And you?", "Numbers 12 and 345 – naïve 中文 🙂"]
TEMPLATE = """{%- if messages[0]['role'] == 'system' %}
    {{- bos_token + '[SYS] ' + messages[0]['content'] + '\\n' }}
{%- else %}
    {{- bos_token }}
{%- endif %}
{% for message in messages %}
    {% if message['role'] not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('unknown role ' + message['role']) }}
    {% endif %}
    {% if message['role'] == 'system' %}{% continue %}{% endif %}
{{ message['role'] }}: {% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ eos_token }}
{% endfor %}
{%- if tools is not none %}TOOLS {{ tools | tojson }}{% endif %}
{{ {'b': '<é>', 'a': 1} | tojson }} {{ [1, 2] | tojson(indent=2) }} {{ strftime_now('%Y') | length }}
{% if add_generation_prompt %}assistant:{% endif %}"""
CHATS = [
    [{"role": "user", "content": " Hi <b>you</b> & me "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}],
]


def write(folder, **files):
    """Extra files of a tokenizer folder, by stem; text or JSON."""
    for name, value in files.items():
        if isinstance(value, str):
            (folder / f"{name}.jinja").write_text(value, encoding="utf-8")
        else:
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.enable_truncation(4)  # files saved by trainers carry such settings: they must not cut prompts
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, tokenizer_config=config | {"chat_template": TEMPLATE, "clean_up_tokenization_spaces": False})
    return tmp_path


@pytest.fixture
def reference(folder):
    return pytest.importorskip("transformers").PreTrainedTokenizerFast.from_pretrained(folder)


def test_encode_and_decode_as_transformers(folder, reference):
    tokenizer = Tokenizer.from_folder(folder)
    for text in [*TEXT, "", " ", "inline </s> token", "\n\n  x"]:
        for special in (True, False):
            ids = reference.encode(text, add_special_tokens=special)
            assert tokenizer.encode(text, add_special_tokens=special) == ids
            assert tokenizer.encode_batch([text], add_special_tokens=special) == [ids]
            for skip in (True, False):
                assert tokenizer.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)
    assert tokenizer.encode("hi")[0] == 0 and len(tokenizer.encode(TEXT[0])) > 4
    assert tokenizer.vocab_size == len(reference)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("generation", [False, True])
def test_chat_template_as_transformers(folder, reference, chat, generation):
    expected = reference.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.has_chat_template
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=generation) == expected
    assert expected.endswith("assistant:") == generation


def test_tools_as_transformers(folder, reference):
    tools = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]
    for given in (tools, []):
        expected = reference.apply_chat_template(CHATS[0], tokenize=False, tools=given)
        assert "TOOLS" in expected and Tokenizer.from_folder(folder).apply_chat_template(CHATS[0], tools=given) == expected


def test_chat_template_file_comes_first(folder):
    write(folder, chat_template="{{ messages[0].content }}!")
    assert Tokenizer.from_folder(folder).apply_chat_template(CHATS[0]) == " Hi <b>you</b> & me !"


def test_named_chat_templates(folder):
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    write(folder, tokenizer_config={"chat_template": named})
    assert Tokenizer.from_folder(folder).apply_chat_template(CHATS[0]) == "D"


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (None, [{"role": "tool", "content": ""}], "unknown role tool"),
        ("{% if %}", CHATS[0], "chat template: "),
        ("{{ messages[3]['role'] }}", CHATS[0], "chat template: "),
        ("{{ messages.append(1) }}", CHATS[0], "chat template: "),  # the sandbox is immutable
        ("{{ ''.__class__.__mro__ }}", CHATS[0], "chat template: "),
    ],
)
def test_chat_template_errors_are_one_line(folder, template, chat, message):
    if template is not None:
        write(folder, chat_template=template)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_folder(folder).apply_chat_template(chat)
    assert "\n" not in str(error.value)


def test_no_chat_template(folder):
    write(folder, tokenizer_config={})
    tokenizer = Tokenizer.from_folder(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.apply_chat_template(CHATS[0])


def test_eos_ids_of_all_files(folder):
    assert Tokenizer.from_folder(folder).eos_token_ids == {1}
    write(folder, config={"eos_token_id": 2})
    assert Tokenizer.from_folder(folder).eos_token_ids == {1, 2}
    write(folder, generation_config={"eos_token_id": [2, 7]})  # overrules config.json
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_ids == frozenset({1, 2, 7}) and tokenizer.eos_token_id == 1


def test_special_tokens_of_older_files(folder):
    write(folder, tokenizer_config={"eos_token": None}, special_tokens_map={"eos_token": {"content": "<|im_end|>"}})
    assert Tokenizer.from_folder(folder).eos_token_id == 2


def test_no_eos_at_all(folder):
    write(folder, tokenizer_config={})
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_ids == frozenset() and tokenizer.eos_token_id is None


def test_token_ids(folder):
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.token_id("</s>") == 1
    assert tokenizer.token_id("no such token") is None


def test_unreadable_folders_give_one_line(folder, tmp_path_factory):
    def message():
        with pytest.raises(ValueError) as error:
            Tokenizer.from_folder(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    file, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    write(folder, config={"eos_token_id": ["x"]})
    assert "eos_token_id: got ['x']" in message()
    write(folder, config={})
    config.write_text('{"eos_token": ')
    assert "tokenizer_config.json: not valid JSON" in message()
    config.write_bytes(b"\xff\xfe{}")
    assert "tokenizer_config.json: not valid JSON" in message()
    config.write_text("[]")
    assert "got list, expected an object" in message()
    config.unlink()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "tokenizer.json: not a readable tokenizer" in message()
    file.write_text("{}")
    assert "tokenizer.json: not a readable tokenizer" in message()
    tokenizers.Tokenizer(models.BPE()).save(str(file))
    assert "empty vocabulary" in message()
    file.unlink()
    assert "no tokenizer.json in it" in message()


def test_what_is_no_character_is_refused_in_one_line(folder):
    tokenizer = Tokenizer.from_folder(folder)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["fine", text])):
        with pytest.raises(
            ValueError, match=r"^text: got U\+DCFF at character 3, which is no character \(not UTF-8\?\), expected"
        ):
            encode("Hi \udcff there")


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"])
def test_templates_that_fail_at_sums_are_broken_too(folder, template):
    write(folder, chat_template=template)
    with pytest.raises(ValueError, match=r"^chat template: [^\n]+$"):
        Tokenizer.from_folder(folder).apply_chat_template(CHATS[0])
