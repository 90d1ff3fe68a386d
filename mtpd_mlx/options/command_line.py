"""`main`: parsing, building, errors and exit status for commands whose options are dataclasses.
Called by mtpd_mlx/cli.py and mtpd_onnx/cli.py.

mtpd_mlx/cli.py and mtpd_onnx/cli.py call `main`. A command is a module with

    OPTIONS        dataclasses; `run` gets one built and checked instance of each
    FILE_OPTIONS   dataclasses that a YAML file (-c) sets, too; `run` gets what was given (schema.Given) after the instances
    EXAMPLES       command lines that --help ends with
    check          called with what `run` will get: raises ValueError where options exclude each other
    run            the command itself; it returns the exit status

of which only `run` must be there. Every error is one line (--traceback: and where it came from): ValueError, OSError and
ImportError (a missing package) by their message, RuntimeError and MemoryError (faults of a runtime) by its first line, all else
by its kind and first line.
"""

import argparse
import dataclasses
import difflib
import importlib
import os
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

from mtpd_mlx import __version__
from mtpd_mlx.options import signals, streams
from mtpd_mlx.options.schema import REQUIRED, Given, as_path, build, flag, home, read_yaml, scalar_type

TRACEBACK, TRACEBACK_FLAG = "MTPD_TRACEBACK", "--traceback"  # environment variable (1) and flag: say where errors came from
MORE = f" ({TRACEBACK_FLAG} shows where)"
BROKEN_PIPE = 141  # exit status, as a shell reports SIGPIPE; of Ctrl-C and other signals: signals.status_of


@dataclasses.dataclass(frozen=True)
class Program:
    """groups: heading -> command -> summary; each command is a module of `package`, imported when it is used. messages: open
    while a command runs. fault: the line of an error that is not ours to word."""

    name: str
    description: str
    package: str
    groups: dict[str, dict[str, str]]
    messages: Callable[[], AbstractContextManager[None]]
    fault: Callable[[BaseException], str]


def main(program: Program, argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (sys.argv) names. Returns the exit status; argparse's own errors and --help exit.

    The one boundary of a program: nothing but SystemExit leaves it, whatever a library raises."""
    streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    named = next((a for a in arguments if not a.startswith("-")), "")
    command = f"{program.name} {named}".rstrip()
    try:
        try:
            with signals.stoppable():
                return _main(program, named, arguments)
        finally:
            streams.flush()
    except SystemExit:
        raise
    except KeyboardInterrupt as stop:
        by = "" if signals.number_of(stop) == signal.SIGINT else f" ({signal.Signals(signals.number_of(stop)).name})"
        streams.say(f"{program.name}: interrupted{by}")
        return signals.status_of(stop)
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        streams.drop_output()
        return BROKEN_PIPE
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return fail(command, said_of(error, program), TRACEBACK_FLAG in arguments)


def _main(program: Program, name: str, arguments: list[str]) -> int:
    parser = Overview(prog=program.name, description=overview(program))
    parser.add_argument("--version", action="version", version=f"{program.name} {__version__}")
    parser.add_argument(TRACEBACK_FLAG, action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=argparse.ArgumentParser)
    parsers = {
        name: commands.add_parser(name, description=summary[0].upper() + summary[1:] + ".", formatter_class=KeepsExamples)
        for group in program.groups.values()
        for name, summary in group.items()
    }
    if not arguments:
        parser.print_help()
        return 0
    if name not in parsers:
        if arguments[0] == name:
            parser.error(unknown(name, list(parsers)))
        parser.parse_args(arguments)  # exits: --help, --version, or an error
    command = importlib.import_module(f"{program.package}.{name.replace('-', '_')}")
    add_arguments(parsers[name], options_of(command), file_options_of(command))
    parsers[name].add_argument(TRACEBACK_FLAG, action="store_true", help=argparse.SUPPRESS)
    parsers[name].epilog = examples(command)
    parsed, rest = parser.parse_known_args(arguments)
    if rest:
        flags_there = [word for action in parsers[name]._actions for word in action.option_strings]
        parser.error(unrecognised(rest, flags_there, f"{program.name} {name}"))
    flags = vars(parsed)
    with program.messages():
        return run(command, flags)


def unknown(name: str, commands: list[str]) -> str:
    near = [c for c in commands if c.startswith(name)] or difflib.get_close_matches(name, commands, 1)
    return f"there is no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; without a command they are listed")


def unrecognised(rest: list[str], flags: list[str], command: str) -> str:
    """The error for arguments that a command does not have: the nearest flag, or where all are listed."""
    word = next((word.split("=")[0] for word in rest if word.startswith("-")), "")
    near = difflib.get_close_matches(word, flags, 1)
    hint = f"did you mean {near[0]}?" if near else f"{command} --help lists the options"
    return f"unrecognized arguments: {' '.join(rest)}; {hint}"


class Overview(argparse.ArgumentParser):
    """The parser of a program, whose help is its description alone."""

    def format_help(self) -> str:
        return f"{self.description}\n"


class KeepsExamples(argparse.HelpFormatter):
    """Wraps all but the examples at the end of a command's help."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


EXAMPLES = "examples:\n"


def examples(command: ModuleType) -> str | None:
    lines: tuple[str, ...] = getattr(command, "EXAMPLES", ())
    return EXAMPLES + "\n".join(f"  {line}" for line in lines) if lines else None


def overview(program: Program) -> str:
    """The commands in their groups, for who gives no command, or --help."""
    width = max(len(name) for group in program.groups.values() for name in group)
    parts = [f"{program.name}: {program.description}"]
    for heading, group in program.groups.items():
        parts.append("\n".join([f"{heading}:", *(f"  {name:{width}}  {summary}" for name, summary in group.items())]))
    flags = f"--version prints the version; {TRACEBACK_FLAG} says where an error came from."
    return "\n\n".join([*parts, f"{program.name} COMMAND --help: what a command takes. {flags}"])


def said_of(error: BaseException, program: Program) -> str:
    """What happened, in one line. Of what no code of ours raises to be read, its kind, and how to see the rest."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, ValueError | OSError | ImportError):
        return lines[0] + (MORE if len(lines) > 1 else "")
    if isinstance(error, RuntimeError | MemoryError):
        return program.fault(error) + MORE
    kind = type(error).__name__
    return (f"{kind}: {program.fault(error)}" if str(error).strip() else kind) + MORE


def fail(command: str, message: str, explain: bool) -> int:
    """One line for the user; for developers, where it came from."""
    if explain or os.environ.get(TRACEBACK, "0") not in ("", "0"):
        streams.say(traceback.format_exc().rstrip())
    streams.say(f"{command}: error: {message}")
    return 1


def options_of(command: ModuleType) -> tuple[type, ...]:
    return getattr(command, "OPTIONS", ())


def file_options_of(command: ModuleType) -> tuple[type, ...]:
    return getattr(command, "FILE_OPTIONS", ())


def run(command: ModuleType, flags: dict[str, Any]) -> int:
    """`command` with the options that `flags` give, checked one by one and together before it begins."""
    inputs = build(options_of(command), {}, flags)
    if in_file := {field.name for cls in file_options_of(command) for field in dataclasses.fields(cls)}:
        read = {} if (named := flags.get("config")) is None else read_yaml(config_file(named))
        inputs.append(Given(read, {k: v for k, v in flags.items() if k in in_file}))
    if hasattr(command, "check"):
        command.check(*inputs)
    status: int = command.run(*inputs)
    return status


def config_file(named: str) -> Path:
    if not named:
        raise ValueError("--config: got an empty text")
    return Path(home("--config", named))


def add_arguments(parser: argparse.ArgumentParser, classes: Sequence[type], file_classes: Sequence[type] = ()) -> None:
    """Adds one flag per field of each dataclass. Flags that are not given stay absent, so that values of a file (of
    `file_classes`) are not overridden."""
    for cls in classes:
        add_flags(parser, cls, group_name(cls) if len(classes) > 1 else "")
    if file_classes:
        parser.add_argument("-c", "--config", help="YAML file with any of the options below; flags override it")
    for cls in file_classes:
        add_flags(parser, cls, group_name(cls), in_file=True)


def add_flags(parser: argparse.ArgumentParser, cls: type, heading: str, in_file: bool = False) -> None:
    """The flags of one dataclass, in help under `heading` where there is one."""
    group, hints = parser.add_argument_group(heading) if heading else parser, typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        names, keywords = argument(field, hints[field.name], in_file)
        (parser if field.metadata["positional"] else group).add_argument(*names, **keywords)


def group_name(cls: type) -> str:
    """The heading of a dataclass's flags in help: its GROUP, or its name (DataConfig: data). Empty: none."""
    return getattr(cls, "GROUP", cls.__name__.removesuffix("Config").removesuffix("Options").lower())


def argument(field: dataclasses.Field[Any], annotation: Any, in_file: bool) -> tuple[list[str], dict[str, Any]]:
    """What add_argument gets of a field: names and keywords."""
    about, (scalar, is_list) = field.metadata, scalar_type(annotation)
    keywords: dict[str, Any] = {"help": argparse.SUPPRESS if about["hidden"] else help_of(field), "default": argparse.SUPPRESS}
    if scalar is bool:
        plain = about["switch"] and not in_file
        keywords["action"] = "store_true" if plain else argparse.BooleanOptionalAction
    else:
        shown = None if about["choices"] else about["metavar"] or scalar.__name__.upper()
        keywords |= {"type": as_path if scalar is Path else scalar, "choices": about["choices"], "metavar": shown}
        if is_list:
            keywords |= {"action": "append"} if about["repeated"] else {"nargs": "+"}
    if about["positional"]:
        return [field.name], keywords | {"metavar": about["metavar"]}
    names = [f"-{about['short']}"] if about["short"] else []
    return [*names, flag(field.name)], keywords | {"dest": field.name, "required": field.default is REQUIRED}


def help_of(field: dataclasses.Field[Any]) -> str:
    """The help text of a field, its default included."""
    default = field.default
    if default is None:
        shown = field.metadata["unset"]
    elif default in (REQUIRED, ()) or field.metadata["switch"]:
        shown = None
    else:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    text: str = field.metadata["help"] + ("" if shown is None else f" (default: {shown})")
    return text.replace("%", "%%")
