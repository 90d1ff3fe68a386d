"""One frozen dataclass per concern is the only place where a default lives.

Flags and YAML keys are generated from the dataclass fields: `learning_rate` is `--learning-rate` and `learning_rate:`.
Precedence: default < YAML file < flag. YAML files are flat, as mlx-lm's are.
"""

import argparse
import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with the help text and choices that its flag shows."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def _field_types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _scalar_type(annotation: Any) -> tuple[type, bool]:
    """Returns (scalar type, is it a list) of `int`, `float | None`, `tuple[float, ...]` and the like."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def add_arguments(parser: argparse.ArgumentParser, *classes: type) -> None:
    """Adds one flag per field of each dataclass. Absent flags stay absent, so that YAML values are not overridden."""
    for cls in classes:
        group = parser.add_argument_group(cls.__name__.removesuffix("Config").lower())
        hints = _field_types(cls)
        for field in dataclasses.fields(cls):
            flag = "--" + field.name.replace("_", "-")
            scalar, is_list = _scalar_type(hints[field.name])
            given = field.default is not dataclasses.MISSING and field.default not in (None, "", ())
            default = f" (default: {_show(field.default)})" if given else ""
            text = field.metadata.get("help", "").replace("%", "%%") + default.replace("%", "%%")
            common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
            if scalar is bool:
                group.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
            else:
                group.add_argument(
                    flag,
                    type=scalar,
                    choices=field.metadata.get("choices"),
                    nargs="+" if is_list else None,
                    metavar=None if field.metadata.get("choices") else scalar.__name__.upper(),
                    **common,
                )


def _show(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a flat YAML mapping. Raises ValueError naming the file when it is not one."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read config {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config {path}: expected a mapping of option names to values, got {type(values).__name__}")
    return values


def build(classes: tuple[type, ...], file_values: dict[str, Any], flags: dict[str, Any]) -> list[Any]:
    """Builds one instance per dataclass from YAML values and flags; an unknown or ill-typed YAML key is a ValueError."""
    known = {f.name: _field_types(c)[f.name] for c in classes for f in dataclasses.fields(c)}
    values: dict[str, Any] = {}
    for key, value in file_values.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"unknown config key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        values[name] = _coerce(name, value, known[name])
    values |= {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items() if k in known}
    built = []
    for cls in classes:
        own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in own]
        if missing:
            raise ValueError(f"missing option --{missing[0].replace('_', '-')}")
        instance = cls(**own)
        for f in dataclasses.fields(cls):
            choices, value = f.metadata.get("choices"), getattr(instance, f.name)
            if choices and value is not None and value not in choices:
                raise ValueError(f"{f.name}: got {value!r}, expected one of {', '.join(choices)}")
        built.append(instance)
    return built


def _coerce(name: str, value: Any, annotation: Any) -> Any:
    """YAML value -> field type. YAML reads `1e-4` as text and `3` as int where a float is meant."""
    scalar, is_list = _scalar_type(annotation)
    if value is None:
        return None
    try:
        if is_list:
            return tuple(scalar(v) for v in (value if isinstance(value, list) else [value]))
        if scalar is bool and not isinstance(value, bool):
            raise ValueError
        if scalar is int and isinstance(value, float) and value != int(value):
            raise ValueError
        return scalar(value)
    except (TypeError, ValueError):
        raise ValueError(f"config key {name}: got {value!r}, expected {scalar.__name__}") from None


def as_dict(*instances: Any) -> dict[str, Any]:
    """One flat dictionary of all options, as a YAML file or a log would hold them."""
    merged: dict[str, Any] = {}
    for instance in instances:
        merged |= {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(instance).items()}
    return merged
