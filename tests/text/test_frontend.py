"""The command line's shared part: options, prompt files, streamed output, statistics, ends of all kinds."""

import argparse
import io
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from itertools import cycle
from pathlib import Path

import pytest
import tokenizers
from helpers.fakes import ScriptedModel, scripted
from tokenizers import decoders, models, pre_tokenizers

from mtpd_mlx.options.command_line import add_arguments
from mtpd_mlx.options.schema import build
from mtpd_mlx.options.text import GenerateOptions
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.text.generate import run_generate
from mtpd_mlx.text.prompts import Prompt, encode_prompt, read_prompts
from mtpd_mlx.text.tokenizer import Tokenizer

EOS = 256
PROMPT = "abc"


def byte_tokenizer(template=None) -> Tokenizer:
    """One token per byte, and <|end|> = 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<|end|>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return Tokenizer(backend, EOS, frozenset({EOS}), template)


TOKENIZER = byte_tokenizer()


def backend_for(text, prompt=PROMPT, end=True, right=None, **options):
    ids = TOKENIZER.encode(text) + [EOS] * end
    return StepBackend(ScriptedModel(scripted(ids, len(TOKENIZER.encode(prompt))), script=cycle([right]), **options))


def run(backend, out=None, tokenizer=TOKENIZER, **options):
    out = io.StringIO() if out is None else out
    options = GenerateOptions(**({"prompt": PROMPT} | options))
    return run_generate(backend, tokenizer, options, out), out.getvalue()


# Options


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_arguments(parser, (GenerateOptions,))
    return build((GenerateOptions,), {}, vars(parser.parse_args(argv)))[0]


def test_defaults_live_in_the_dataclass_alone():
    assert parse("-p", "x") == GenerateOptions(prompt="x")


def test_every_option_has_a_flag():
    options = parse(
        *["--prompts", "f", "--system-prompt", "s", "-m", "7", "--num-draft-tokens", "3", "--stop", "a", "--stop", "b"],
        *["--extra-eos-token", "c", "d", "--ignore-chat-template", "--plain", "--json", "--quiet"],
    )
    changed = {f.name for f in fields(options) if getattr(options, f.name) != f.default}
    assert changed == {f.name for f in fields(options)} - {"prompt"}
    assert options.stop == ("a", "b") and options.extra_eos_token == ("c", "d")
    assert parse("-p", "x", "--stop", "a").stop == parse("-p", "x", "--stop", "a").stop == ("a",)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-p", "x", "--prompts", "f"],
        ["-p", "x", "-m", "0"],
        ["-p", "x", "--num-draft-tokens", "-1"],
        ["-p", "x", "--stop", ""],
    ],
)
def test_contradicting_options(argv):
    with pytest.raises(ValueError, match="--"):
        parse(*argv)


# Prompt files


def test_read_prompts_of_all_kinds(tmp_path):
    rows = [
        {"id": "a/1", "prompt": "one\u2028line", "reference": "r"},
        {"prompt": "two"},
        {"id": 3, "messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "known"}]},
        {"messages": [{"role": "user", "content": "q"}], "tools": [{"name": "f"}]},
    ]
    file = tmp_path / "p.jsonl"
    file.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n", encoding="utf-8")
    assert read_prompts(file) == [
        Prompt("a/1", "one\u2028line", reference="r"),
        Prompt("3", "two"),
        Prompt("3", messages=[{"role": "user", "content": "q"}]),
        Prompt("7", messages=[{"role": "user", "content": "q"}], reference="known"),
        Prompt("9", messages=[{"role": "user", "content": "q"}], tools=[{"name": "f"}]),
    ]
    text = tmp_path / "p.txt"
    text.write_bytes("\ufefffirst\r\n\r\nsecond é".encode())
    assert read_prompts(text) == [Prompt("1", "first"), Prompt("3", "second é")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", "no prompts"),
        ("p.txt", b" \n\n", "no prompts"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', "p.jsonl:2: not valid JSON"),
        ("p.jsonl", b'{"text": "a"}', 'p.jsonl:1: expected an object with "prompt"'),
        ("p.jsonl", b'{"prompt": ""}', "p.jsonl:1: expected"),
        ("p.jsonl", b'{"prompt": 3, "messages": []}', "p.jsonl:1: expected"),
        ("p.jsonl", b"[1]", "p.jsonl:1: got list"),
        ("p.jsonl", b'{"messages": []}', 'p.jsonl:1: "messages"'),
        ("p.jsonl", b'{"messages": [{"content": "x"}]}', 'p.jsonl:1: "messages"'),
        ("p.jsonl", b'{"messages": [{"role": "assistant", "content": "x"}]}', 'p.jsonl:1: "messages"'),
        ("p.jsonl", b'{"prompt": "a", "tools": {}}', 'p.jsonl:1: "tools": expected a list of objects'),
        ("p.jsonl", b'{"prompt": "a", "reference": 1}', 'p.jsonl:1: "reference"'),
        ("p.jsonl", b'{"prompt": "a", "reference": ["b", 1]}', 'p.jsonl:1: "reference"'),
        ("p.jsonl", b'{"messages": [{"role": "user"}]}', 'p.jsonl:1: "messages": got no "content" in one of role \'user\''),
        ("p.jsonl", b'{"prompt": "a", "id": "b\\ud800"}', r"p.jsonl:1: got \\ud800 alone, half of a character"),
        ("p.jsonl", b"[" * 99999, "p.jsonl:1: not valid JSON"),
        ("p.txt", b"a\n\xff\n", r"not UTF-8 text \(byte 2\)"),
        ("p.csv", b"a", "expected .jsonl or .txt"),
    ],
)
def test_broken_prompt_files_give_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_prompts(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_prompt_file_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"nope\.jsonl: no such file"):
        read_prompts(tmp_path / "nope.jsonl")
    with pytest.raises(ValueError, match="no such file"):
        read_prompts(tmp_path)  # a folder


def test_which_prompts_go_through_the_chat_template():
    template = (
        "{% for t in tools or [] %}[{{ t.name }}]{% endfor %}"
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    tokenizer, plain = byte_tokenizer(template), byte_tokenizer()
    conversation = Prompt("1", messages=[{"role": "user", "content": "x"}])

    def text(given, tokenizer=tokenizer, **options):
        return tokenizer.decode(encode_prompt(given, tokenizer, **options), False)

    raw = Prompt("1", "x")
    assert text(raw) == "u:x;a:"
    assert text(raw, chat=False) == "x"
    assert text(raw, system_prompt="S") == "s:S;u:x;a:"
    assert text(raw, plain) == "x"
    assert text(conversation) == text(conversation, chat=False) == "u:x;a:"
    assert text(replace(conversation, tools=[{"name": "f"}])) == "[f]u:x;a:"
    assert text(conversation, system_prompt="S") == "s:S;u:x;a:"
    with pytest.raises(ValueError, match="prompt 1: the tokenizer has no chat template"):
        text(conversation, plain)
    with pytest.raises(ValueError, match="--system-prompt"):
        text(raw, plain, system_prompt="S")


# Generation


def test_text_then_statistics():
    status, output = run(backend_for("Hello 🙂, wörld", right=2))
    text, statistics = output.split("\n", 1)
    assert status == 0 and text == "Hello 🙂, wörld"  # EOS has no text
    for word in ("Prompt: 3 tokens", "tokens/s", "distinct-4", "tau 3.000", "CAR", "AR", "drafting"):
        assert word in statistics
    car = next(line for line in statistics.splitlines() if line.startswith("CAR"))
    assert car.split()[1:] == ["1.000", "1.000", "0.000", "0.000"]


def test_quiet_and_plain():
    assert run(backend_for("Hello"), quiet=True) == (0, "Hello\n")
    plain = backend_for("Hello")
    status, output = run(plain, plain=True)
    assert status == 0 and output.startswith("Hello\n") and "tau" not in output
    assert "draft" not in dict(plain.model.calls)
    zero = backend_for("Hello")
    run(zero, num_draft_tokens=0)
    assert "draft" not in dict(zero.model.calls)


def test_text_is_streamed_as_it_comes():
    backend, seen = backend_for("abcdefgh", right=0), []

    class Out(io.StringIO):
        def write(self, text):
            seen.append((text, backend.model.length))
            return super().write(text)

    run(backend, Out(), quiet=True)
    places = {text: length for text, length in seen}
    assert places["a"] < places["c"] < places["h"]


def test_json_record():
    status, output = run(backend_for("Hi é", right=1), json=True)
    record = json.loads(output)
    assert status == 0 and output.count("\n") == 1
    assert record["text"] == "Hi é" and record["finish_reason"] == "stop"
    assert record["tokens"] == [*TOKENIZER.encode("Hi é"), EOS]
    assert record["stats"]["tokens"] == 6 and record["stats"]["car"] == [1.0, 0.0, 0.0, 0.0]
    assert record["stats"]["tau"] == 2.0 and record["distinct4"] == 1.0


def test_max_tokens_ends_the_text():
    record = json.loads(run(backend_for("Hello world"), json=True, max_tokens=7)[1])
    assert record["text"] == "Hello w" and record["finish_reason"] == "length" and len(record["tokens"]) == 7
    cut = json.loads(run(backend_for("aé"), json=True, max_tokens=2)[1])
    assert cut["text"] == "a\ufffd"  # half a character at the very end, as decoding at once shows it


@pytest.mark.parametrize("right", [0, 2, None])
@pytest.mark.parametrize("plain", [False, True])
def test_stop_string_across_tokens(right, plain):
    backend = backend_for("Sure. User: and more text", right=right)
    status, output = run(backend, json=True, stop=("User:", "zz"), plain=plain)
    record = json.loads(output)
    assert status == 0 and record["text"] == "Sure. " and record["finish_reason"] == "stop"
    assert record["tokens"] == TOKENIZER.encode("Sure. User:")  # nothing beyond, though a run reached further
    assert backend.model.tokens == TOKENIZER.encode("abcSure. User")


def test_beginning_of_a_stop_string_is_not_lost():
    assert run(backend_for("Dear Use"), stop=("User:",), quiet=True)[1] == "Dear Use\n"


def test_extra_eos_token():
    record = json.loads(run(backend_for("one.two"), json=True, extra_eos_token=(".",))[1])
    assert record["text"] == "one" and record["finish_reason"] == "stop"
    with pytest.raises(ValueError, match="--extra-eos-token: 'nope' is not a token"):
        run(backend_for("x"), extra_eos_token=("nope",))


def test_several_prompts_start_from_an_empty_cache(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "x", "prompt": "abc", "reference": "R"}\n{"id": "y", "prompt": "def"}\n')
    status, output = run(backend_for("Hello"), prompt=None, prompts=str(file), json=True)
    records = [json.loads(line) for line in output.splitlines()]
    assert status == 0 and [r["id"] for r in records] == ["x", "y"]
    assert [r["text"] for r in records] == ["Hello", "Hello"] and records[0]["reference"] == "R"
    assert all(r["stats"]["prompt_tokens"] == 3 for r in records)
    _, output = run(backend_for("Hello"), prompt=None, prompts=str(file))
    assert output.startswith("[x]\nHello\n[y]\nHello\n=") and "Prompt: 6 tokens" in output


def test_faults_of_any_prompt_are_told_before_the_first_text(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "abc"}\n{"id": "long", "prompt": "' + "x" * 40 + '"}\n')
    out = io.StringIO()
    with pytest.raises(ValueError, match=r"prompt long: got 40 tokens, expected 1\.\.31"):
        run(backend_for("Hello", capacity=32), out, prompt=None, prompts=str(file))
    assert out.getvalue() == ""
    with pytest.raises(ValueError, match="prompt 1: got 0 tokens"):
        run(backend_for("Hello"), prompt="")
    with pytest.raises(ValueError, match="--num-draft-tokens: got 2, expected 4"):
        run(backend_for("Hello"), num_draft_tokens=2)
    with pytest.raises(ValueError, match=r"^prompt 1: text: got U\+DCFF at character 1"):
        run(backend_for("Hello"), prompt="a\udcff")
    with pytest.raises(ValueError, match="got a context of 1 positions, expected at least 2"):
        run(backend_for("Hello", capacity=1))


def test_prompt_from_standard_input_and_escapes(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
    assert run(backend_for("Hi"), prompt="-", quiet=True)[1] == "Hi\n"
    assert run(backend_for("Hi", prompt="a\nb\tc"), prompt="a\\nb\\tc", quiet=True)[1] == "Hi\n"


def test_standard_input_that_is_not_utf8(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"))
    with pytest.raises(ValueError, match=r"^standard input: not UTF-8 text \(byte 2\)$"):
        run(backend_for("Hi"), prompt="-")


def test_no_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as after `>&-`
    assert run_generate(backend_for("Hi"), TOKENIZER, GenerateOptions(prompt=PROMPT)) == 0


def test_plain_decoding_is_said_in_json():
    for options in ({"plain": True}, {"num_draft_tokens": 0}, {}):
        assert json.loads(run(backend_for("Hi"), json=True, **options)[1])["plain"] is bool(options)


def test_a_full_context_is_said():
    said = "finish reason context: the cache is full"
    assert said in run(backend_for("Hello" * 9, capacity=16))[1]
    assert said not in run(backend_for("Hello"))[1] + run(backend_for("Hello"), max_tokens=2)[1]


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupt_shows_what_there_is(as_json):
    backend = backend_for("Hello there", right=1)
    rounds = iter(range(3))

    class Interrupted:
        num_draft_tokens, capacity = backend.num_draft_tokens, backend.capacity
        prefill, step, rewind_to = backend.prefill, backend.step, backend.rewind_to
        length = property(lambda self: backend.length)

        def round(self, token):
            if next(rounds, None) is None:
                raise KeyboardInterrupt
            return backend.round(token)

    status, output = run(Interrupted(), json=as_json)
    assert status == 130
    if as_json:
        record = json.loads(output)
        assert record["text"] == "Hello t" and record["finish_reason"] == "interrupted"
        assert record["stats"]["rounds"] == 3
    else:
        assert output.startswith("Hello t\n=") and "Rounds: 3" in output


def test_broken_pipe_is_quiet():
    """A real pipe whose reader leaves: no traceback, not even from the interpreter's last flush."""
    script = "\n".join(
        [
            "import sys; sys.path.insert(0, sys.argv[1])",
            "from test_frontend import *",
            "code = run_generate(backend_for('y' * 5000, capacity=8192, end=False), TOKENIZER,",
            "    GenerateOptions(prompt=PROMPT, max_tokens=5000))",
            "sys.exit(code)",
        ]
    )
    here, paths = Path(__file__).parent, map(str, Path(__file__).parents[1:3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": ""}  # as users run it
    with subprocess.Popen(
        [sys.executable, "-c", script, str(here)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.read(1) == b"y"
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 141
    assert errors == b""


def test_of_a_reference_for_every_turn_the_first_is_the_prompt_s(tmp_path: Path) -> None:
    file = tmp_path / "mt_bench.jsonl"
    rows = [{"id": "1", "prompt": "a", "turns": ["a", "b"], "reference": known} for known in (["x", "y"], [], None)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [prompt.reference for prompt in read_prompts(file)] == ["x", None, None]
