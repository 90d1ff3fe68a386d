"""The terminal chat: what it keeps of a conversation when something goes wrong."""

import io

from helpers.fakes import ScriptedModel, scripted
from test_frontend import EOS, byte_tokenizer

from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.text.chat import Chat, run_chat

STRICT = (  # as many models have it
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% if 'refuse' in m.content %}{{ raise_exception('not this') }}{% endif %}[{{ m.content }}]{% endfor %}"
)


def strict_chat():
    tokenizer = byte_tokenizer(STRICT)
    model = ScriptedModel(scripted([*tokenizer.encode("Hi"), EOS], 4))
    return StepBackend(model), tokenizer


def said(*texts):
    """Reads the texts, raising those that are exceptions, and then the end of the input."""
    left = iter(texts)

    def read(_):
        text = next(left, EOFError())
        if isinstance(text, BaseException):
            raise text
        return text

    return read


def test_a_text_that_is_refused_leaves_the_conversation_as_it_was():
    backend, tokenizer = strict_chat()
    out = io.StringIO()
    assert run_chat(backend, tokenizer, 8, read=said("refuse", "\udcff", "ab", "ab"), out=out) == 0
    errors = [line for line in out.getvalue().splitlines() if line.startswith("error: ")]
    assert [error.split(":")[1] for error in errors] == [" chat template", " text"]
    assert "Hi" in out.getvalue()


def test_a_text_of_no_tokens_is_refused():
    tokenizer, out = byte_tokenizer("{{ '' }}"), io.StringIO()
    backend = StepBackend(ScriptedModel(scripted([EOS], 1)))
    assert run_chat(backend, tokenizer, 8, read=said("ab"), out=out) == 0
    assert "error: got a text of no tokens, expected at least one" in out.getvalue()


def test_a_line_that_is_not_utf8_does_not_end_the_chat():
    backend, tokenizer = strict_chat()
    out = io.StringIO()
    broken = UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid start byte")
    assert run_chat(backend, tokenizer, 8, read=said(broken, "ab"), out=out) == 0
    assert "error: not UTF-8 text (byte 2)" in out.getvalue() and "Hi" in out.getvalue()


def test_an_interrupt_during_the_rewind_is_survived():
    backend, tokenizer = strict_chat()
    chat = Chat(backend, tokenizer, max_tokens=8, system_prompt=None, colour=False)
    chat.answer("ab", io.StringIO())
    right = backend.rewind_to

    def interrupted(length):
        right(0)
        raise KeyboardInterrupt

    backend.rewind_to = interrupted
    try:
        chat.answer("cd", io.StringIO())
    except KeyboardInterrupt:
        backend.rewind_to = right
    out = io.StringIO()
    chat.answer("ef", out)
    assert backend.length > len(tokenizer.encode("[ab][Hi][cd][][ef]"))


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it():
    tokenizer, out = byte_tokenizer(STRICT), io.StringIO()
    model = ScriptedModel(scripted([*tokenizer.encode("Hi. User: more"), EOS], 4))
    backend = StepBackend(model)
    chat = Chat(backend, tokenizer, max_tokens=40, system_prompt=None, colour=False, stop=["User:", "never"])
    stats = chat.answer("ab", out)
    assert out.getvalue() == "Hi. \n" and chat.finish_reason == "stop" and stats.tokens < 14
    assert chat._messages[-1] == {"role": "assistant", "content": "Hi. "}
    assert backend.length == len(chat._cached)
