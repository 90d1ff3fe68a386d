"""The command line of a program whose commands say their options by dataclasses: parsing, building, errors, exit status.

mtpd_mlx/cli.py and mtpd_onnx/cli.py call `main`. A command is a module with

    OPTIONS        dataclasses; `run` gets one built and checked instance of each
    FILE_OPTIONS   dataclasses that a YAML file (-c) sets, too; `run` gets what was given (schema.Given) after the instances
    check          called with what `run` will get: raises ValueError where options exclude each other
    run            the command itself; it returns the exit status

of which only `run` must be there. Errors of these kinds are one line: ValueError, OSError, ImportError (a missing package),
RuntimeError and MemoryError (faults of a runtime).
"""

import argparse
import dataclasses
import importlib
import os
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

from mtpd_mlx import __version__
from mtpd_mlx.options.schema import REQUIRED, Given, build, flag, read_yaml, scalar_type

TRACEBACK = "MTPD_TRACEBACK"  # environment variable: 1 prints tracebacks of errors that are told in one line
INTERRUPTED, BROKEN_PIPE = 130, 141  # exit status, as a shell reports SIGINT and SIGPIPE


@dataclasses.dataclass(frozen=True)
class Program:
    """commands: summary by name; each is a module of `package`, imported when it is used. messages: open while a command runs.
    fault: the line of a RuntimeError or MemoryError."""

    name: str
    description: str
    package: str
    commands: dict[str, str]
    messages: Callable[[], AbstractContextManager[None]]
    fault: Callable[[Exception], str]


def main(program: Program, argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` (sys.argv) names. Returns the exit status; argparse's own errors and --help exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=program.name, description=program.description)
    parser.add_argument("--version", action="version", version=f"{program.name} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {
        name: commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        for name, summary in program.commands.items()
    }
    name = arguments[0] if arguments else ""
    try:
        if name not in parsers:
            parser.parse_args(arguments)  # exits: there is no command, or an unknown one, or --help
        command = importlib.import_module(f"{program.package}.{name.replace('-', '_')}")
        add_arguments(parsers[name], options_of(command), file_options_of(command))
        flags = vars(parser.parse_args(arguments))
        with program.messages():
            return run(command, flags)
    except KeyboardInterrupt:
        print(f"{program.name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, OSError, ImportError) as error:
        return fail(f"{program.name} {name}", str(error))
    except (RuntimeError, MemoryError) as error:  # a runtime's own faults (memory, devices, kernels) among them
        return fail(f"{program.name} {name}", program.fault(error))


def fail(command: str, message: str) -> int:
    """One line for the user; for developers, where it came from."""
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        traceback.print_exc()
    print(f"{command}: error: {message}", file=sys.stderr)
    return 1


def options_of(command: ModuleType) -> tuple[type, ...]:
    return getattr(command, "OPTIONS", ())


def file_options_of(command: ModuleType) -> tuple[type, ...]:
    return getattr(command, "FILE_OPTIONS", ())


def run(command: ModuleType, flags: dict[str, Any]) -> int:
    """`command` with the options that `flags` give, checked one by one and together before it begins."""
    inputs = build(options_of(command), {}, flags)
    if in_file := {field.name for cls in file_options_of(command) for field in dataclasses.fields(cls)}:
        file = flags.get("config")
        inputs.append(Given(read_yaml(Path(file)) if file else {}, {k: v for k, v in flags.items() if k in in_file}))
    if hasattr(command, "check"):
        command.check(*inputs)
    status: int = command.run(*inputs)
    return status


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
        keywords |= {"type": scalar, "choices": about["choices"], "metavar": shown}
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
