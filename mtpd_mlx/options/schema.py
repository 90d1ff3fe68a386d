"""`option`, `switch`, `same`, `build`: fields of option dataclasses, and instances from a YAML file and flags.
Called by every module of options/, and by command_line.py, which makes flags of the fields.

A frozen dataclass per
concern is the only place where a default lives: `learning_rate` is `--learning-rate` and `learning_rate:`.
Precedence: default < YAML file < flag. YAML files are flat, as mlx-lm's are.
"""

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any

REQUIRED: Any = dataclasses.MISSING  # in place of a default: the option must be given


@dataclasses.dataclass(frozen=True)
class Range:
    """What numbers an option takes, each of them where it is a list; `length`: how many of them (None: any number)."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # more than `low`, not `low` itself
    below: bool = False
    length: int | None = None
    infinite: bool = False  # infinity is one of them

    def holds(self, value: float) -> bool:
        finite = self.infinite or isinstance(value, int) or math.isfinite(value)
        over = value > self.low if self.above else value >= self.low
        return finite and over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.low > -math.inf and self.high < math.inf and not (self.above or self.below):
            return f"{self.low}..{self.high}"
        parts = [] if self.low == -math.inf else [f"more than {self.low}" if self.above else f"at least {self.low}"]
        parts += [] if self.high == math.inf else [f"less than {self.high}" if self.below else f"at most {self.high}"]
        return " and ".join(parts) or "a finite number"


FINITE = Range()
POSITIVE = Range(1)  # counts
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
SEED = Range(0, 2**32 - 1)


def option(
    default: Any,
    help: str,
    choices: tuple[Any, ...] | None = None,
    takes: Range = FINITE,
    *,
    short: str | None = None,
    metavar: str | None = None,
    unset: str | None = None,
    empty: bool = False,
    repeated: bool = False,
    hidden: bool = False,
    path: bool = False,
) -> Any:
    """A dataclass field with what its flag shows and takes. `help` says the default where it is a value; `unset`: what it
    says for None. `short`: one more name, a letter. `empty`: an empty text is one. `repeated`: the flag is given once for each
    value of a list, not once before all. `hidden`: help leaves it out. `path`: a text that may name a place on the disk (a Path
    always does): ~ is the home folder."""
    metadata = {"help": help, "choices": choices, "takes": takes, "short": short, "metavar": metavar, "unset": unset}
    more = {"empty": empty, "repeated": repeated, "hidden": hidden, "path": path, "switch": False, "positional": False}
    return dataclasses.field(default=default, metadata=metadata | more)


def switch(help: str) -> Any:
    """A flag that turns something on. A --no- form it has only where a file may have turned it on."""
    return _with(option(False, help), switch=True)


def argument(help: str, path: bool = False) -> Any:
    """A positional argument."""
    return _with(option(REQUIRED, help, path=path), positional=True)


def same(cls: type, name: str, **changes: Any) -> Any:
    """The option `name` of another dataclass once more. changes: its default, or keywords of `option`, where they differ."""
    (field,) = (f for f in dataclasses.fields(cls) if f.name == name)
    default = changes.pop("default", field.default)
    return dataclasses.field(default=default, metadata=dict(field.metadata) | changes)


def _with(field: Any, **changes: Any) -> Any:
    return dataclasses.field(default=field.default, metadata=dict(field.metadata) | changes)


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user set in the file of --config and by flags, by option name."""

    file: dict[str, Any]
    flags: dict[str, Any]

    @property
    def resume(self) -> bool:
        return bool((self.file | self.flags).get("resume"))


def scalar_type(annotation: Any) -> tuple[type, bool]:
    """Returns (scalar type, is it a list) of `int`, `float | None`, `tuple[float, ...]` and the like."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a flat YAML mapping. Raises ValueError naming the file when it is not one."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"reading {path} needs PyYAML ({error}): pip install pyyaml") from error
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise ValueError(f"cannot read config {path}: {error.problem or error.context}{line}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read config {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config {path}: expected a mapping of option names to values, got {type(values).__name__}")
    return values


def read_values(classes: tuple[type, ...], file_values: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The values given in a file and by flags, by field name, as their fields hold them; an unknown or ill-typed key of the
    file is a ValueError."""
    fields = {f.name: f for c in classes for f in dataclasses.fields(c)}
    hints = {c: typing.get_type_hints(c) for c in classes}
    known = {f.name: hints[c][f.name] for c in classes for f in dataclasses.fields(c)}
    values: dict[str, Any] = {}
    for key, value in file_values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"unknown config key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        values[name] = _coerce(name, value, known[name])
    values |= {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items() if k in known}
    return {name: _placed(fields[name], known[name], value) for name, value in values.items()}


def build(classes: tuple[type, ...], file_values: dict[str, Any], flags: dict[str, Any]) -> list[Any]:
    """Builds one instance per dataclass from YAML values and flags. ValueError, in one line, for a value that an option does
    not take."""
    values = read_values(classes, file_values, flags)
    built = []
    for cls in classes:
        own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        missing = [f.name for f in dataclasses.fields(cls) if f.default is REQUIRED and f.name not in own]
        if missing:
            raise ValueError(f"missing option {flag(missing[0])}")
        for f in dataclasses.fields(cls):
            _check(f, own.get(f.name, f.default))
        built.append(cls(**own))
    return built


def flag(name: str) -> str:
    """learning_rate -> --learning-rate"""
    return "--" + name.replace("_", "-")


def _placed(field: dataclasses.Field[Any], annotation: Any, value: Any) -> Any:
    """`value` with ~ expanded where it names a place; each of them where it is a list."""
    scalar, _ = scalar_type(annotation)
    if value in (None, "") or not (scalar is Path or field.metadata["path"]):
        return value
    name = field.name if field.metadata["positional"] else flag(field.name)
    if isinstance(value, tuple):
        return tuple(each if each == "" else home(name, each) for each in value)
    return home(name, value)


def home(name: str, place: Any) -> Any:
    """The path or text with ~ or ~USER in its beginning expanded. ValueError where there is no such user."""
    if not str(place).startswith("~"):
        return place
    try:
        expanded = Path(place).expanduser()
    except RuntimeError:
        user = Path(place).parts[0]
        raise ValueError(
            f"{name} {place}: got {user}, which is no user here; a name that begins so is written ./{place}"
        ) from None
    return expanded if isinstance(place, Path) else str(expanded)


def as_path(text: str) -> Any:
    """A Path, or the empty text, which is none."""
    return Path(text) if text else text


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    choices, span = field.metadata["choices"], field.metadata["takes"]
    if choices and value is not None and value not in choices:
        raise ValueError(f"{flag(field.name)}: got {value!r}, expected one of {', '.join(map(str, choices))}")
    every = value if isinstance(value, tuple) else (value,)
    if "" in every and not field.metadata["empty"]:  # of a shell variable that is not set, for one
        raise ValueError(f"{flag(field.name)}: got an empty text")
    if span.length is not None and len(every) != span.length:
        raise ValueError(f"{flag(field.name)}: got {len(every)} values, expected {span.length}")
    for number in every:
        if isinstance(number, int | float) and not isinstance(number, bool) and not span.holds(number):
            raise ValueError(f"{flag(field.name)}: got {number}, expected {span}")


def _coerce(name: str, value: Any, annotation: Any) -> Any:
    """YAML value -> field type. YAML reads `1e-4` as text and `3` as int where a float is meant."""
    scalar, is_list = scalar_type(annotation)
    if value is None and type(None) in typing.get_args(annotation):
        return None
    try:
        if is_list:
            return tuple(_scalar(scalar, v) for v in (value if isinstance(value, list) else [value]))
        return _scalar(scalar, value)
    except (TypeError, ValueError, OverflowError):
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
        raise ValueError(f"{flag(name)}: got {shown}, expected {scalar.__name__}") from None


def _scalar(scalar: type, value: Any) -> Any:
    if isinstance(value, bool) != (scalar is bool) or value is None or isinstance(value, list | dict):
        raise ValueError
    if scalar is int and isinstance(value, float) and value != int(value):
        raise ValueError
    return as_path(value) if scalar is Path else scalar(value)


def as_dict(*instances: Any) -> dict[str, Any]:
    """One flat dictionary of all options, as a YAML file or a log would hold them."""
    merged: dict[str, Any] = {}
    for instance in instances:
        merged |= {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(instance).items()}
    return merged
