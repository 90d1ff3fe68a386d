"""All options of all commands of both programs: one name, one meaning; one default, unless a reason is given here."""

import argparse
import dataclasses
import importlib
import re
import shlex
import typing
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from mtpd_mlx.cli import main
from mtpd_mlx.options.command_line import add_arguments, file_options_of, options_of
from mtpd_mlx.options.hub import PullOptions
from mtpd_mlx.options.schema import REQUIRED, argument, build, flag, option, same, scalar_type, switch

MEANINGS = {  # options that say or take different things
    "batch_size": "rows of a step, prompts of a pass over a base, texts decoded at once",
    "compute_dtype": "what trains has no float16",
    "dry_run": "measuring without storing, a card without an upload",
    "draft_vocab": "what heads are trained on, what those that know all tokens are cut to",
    "json": "one object in all, or one for each text",
    "model": "the base, or one in place of that which a checkpoint names",
    "num_draft_tokens": "the heads that are exported, or that draft in a round",
    "overwrite": "push writes into a repository, all else into --out",
    "prompts": "one file, several, or training data",
    "seed": "of training, of sampling, of both sampling and a split",
    "top_n": "what is kept of the teacher, what is learned from it",
    "valid_share": "of rows, of prompts",
}
DEFAULTS = {
    "batch_size": "see above",
    "dequantize": "training says what is faster and leaves it to the user; decoding does it",
    "limit": "timing repeats every prompt, tuning every number of drafts; verifying wants all",
    "repeats": "tuning repeats every number of drafts",
    "max_seq_length": "memory is planned for longer rows than small models are trained on",
    "max_tokens": "texts to read and to learn from, texts that are only measured",
    "out": "every command has a folder of its own; none for what is large",
    "prompts": "required, or one of several sources",
    "provider": "parity compares with MLX on the CPU",
    "seed": "repeatable where texts are judged or learned from",
    "temp": "verify judges a distribution: greedy decoding has none",
    "top_n": "see above",
}


def commands() -> dict[str, Any]:
    """Every command's module, by what one types."""
    found = {}
    for program, package in (("mtpd", "mtpd_mlx"), ("mtpd-onnx", "mtpd_onnx")):
        for name in importlib.import_module(f"{package}.cli").COMMANDS:
            found[f"{program} {name}"] = importlib.import_module(f"{package}.commands.{name.replace('-', '_')}")
    return found


def flags(cls: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Field and annotation of a dataclass's options, by name."""
    hints = typing.get_type_hints(cls)
    return {f.name: (f, hints[f.name]) for f in dataclasses.fields(cls) if not f.metadata["positional"]}


COMMANDS = commands()
CLASSES = {cls for command in COMMANDS.values() for cls in (*options_of(command), *file_options_of(command))}


def several(of: typing.Callable[[dataclasses.Field, Any], Any]) -> set[str]:
    """Names of the options for which `of` gives more than one thing."""
    seen = defaultdict(set)
    for cls in CLASSES:
        for name, (field, annotation) in flags(cls).items():
            seen[name].add(of(field, annotation))
    return {name for name, values in seen.items() if len(values) > 1}


def meaning(field: dataclasses.Field, annotation: Any) -> Any:
    scalar, is_list = scalar_type(annotation)
    return (
        field.metadata["help"],
        str if scalar is Path else scalar,
        is_list,
        field.metadata["choices"],
        field.metadata["short"],
    )


def test_a_name_means_one_thing() -> None:
    assert several(meaning) == MEANINGS.keys()


def test_a_default_is_one_value() -> None:
    assert several(lambda field, _: str(field.default)) == DEFAULTS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_help_are_command_lines(name: str) -> None:
    examples = COMMANDS[name].EXAMPLES if hasattr(COMMANDS[name], "EXAMPLES") else ()
    assert name == "mtpd info" or examples
    for line in examples:
        program, command, *arguments = shlex.split(re.sub(r"^mlx.launch -n \d+ ", "", line))
        module = COMMANDS[f"{program} {command}"]
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_arguments(parser, options_of(module), file_options_of(module))
        given = vars(parser.parse_args(arguments))
        build(options_of(module), {}, given)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_two_dataclasses_of_a_command_have_a_name(name: str) -> None:
    names = [f.name for cls in (*options_of(COMMANDS[name]), *file_options_of(COMMANDS[name])) for f in dataclasses.fields(cls)]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("cls", sorted(CLASSES, key=lambda cls: cls.__name__), ids=lambda cls: cls.__name__)
def test_options_are_frozen_and_take_their_defaults(cls: type) -> None:
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    given = {f.name: 1 if f.type is int else "x" for f in dataclasses.fields(cls) if f.default is REQUIRED}
    given |= {"prompt": "x"} if "prompt" in flags(cls) else {}  # one of --prompt and --prompts is needed
    given |= {"name": "owner/name"} if cls is PullOptions else {}
    (instance,) = build((cls,), {}, given)
    assert all(getattr(instance, f.name) == given.get(f.name, f.default) for f in dataclasses.fields(cls))


def test_an_option_once_more_differs_where_it_says_so() -> None:
    @dataclasses.dataclass(frozen=True)
    class First:
        name: str = argument("who")
        count: int = option(3, "how many", short="n")
        loud: bool = switch("say it")

    @dataclasses.dataclass(frozen=True)
    class Second:
        count: int = same(First, "count", default=5, short=None)

    (first,), (second,) = dataclasses.fields(First)[1:2], dataclasses.fields(Second)
    assert (first.default, second.default) == (3, 5) and second.metadata["help"] == "how many"
    assert {k for k in first.metadata if first.metadata[k] != second.metadata[k]} == {"short"}
    assert build((First,), {}, {"name": "x", "count": 4})[0] == First("x", 4)
    with pytest.raises(ValueError, match="missing option --name"):
        build((First,), {}, {})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("inspect x --num-heads 0", "--num-heads: got 0, expected at least 1"),
        ("bench x --prompts p --svg nowhere/b.svg", "--svg nowhere/b.svg: expected a file in a folder that is there"),
        ("bench x --prompts p -m 1", "--max-tokens: got 1, expected at least 2"),
        ("eval x --prompts p -m 0", "--max-tokens: got 0, expected at least 1"),
        ("eval x --prompts p --valid nowhere", "--valid nowhere: no such file"),
        ("verify x --prompts p --temp 0", "--temp 0 leaves nothing to draw"),
        ("generate x -p a --prompts b", "got --prompt and --prompts, expected one of them"),
        ("generate x -p a --stop=", "--stop: got an empty text"),
        ("chat x --prompt-cache-file nowhere/c", "--prompt-cache-file: no folder nowhere"),
        ("chat x --kv-bits 8 --prompt-cache-file c", "a quantised cache cannot be saved; leave --kv-bits out"),
        ("export x --out y --precision fp16 --activations fp32", "--activations fp32: needs --precision int4 or int8"),
        ("export x --out y --layout split --precision int4", "--layout split: got --precision int4, expected fp32 or fp16"),
        ("export x --out y --layout split --draft-head-bits 4", "--draft-head-bits: the split layout has standard operators"),
        ("pull x", "x: not a hub id of the form owner/name"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    arguments: str, words: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = arguments.split(" ")[0]

    def loaded(*_: Any) -> int:
        raise AssertionError("the command began")

    monkeypatch.setattr(COMMANDS[f"mtpd {name}"], "run", loaded)
    assert main(arguments.split(" ")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mtpd {name}: error: ") and words in line


def test_a_flag_takes_back_what_a_file_says_and_has_no_other_opposite(capsys: pytest.CaptureFixture) -> None:
    shown = {}
    for command in ("train", "export"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown[command] = capsys.readouterr().out
    assert "--no-overwrite" in shown["train"] and flag("overwrite") in shown["export"] and "--no-" not in shown["export"]
