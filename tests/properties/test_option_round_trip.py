"""Option dataclasses survive their way through YAML and flags; what an option does not take is one line that names it."""

import argparse
import dataclasses
import math
import types
import typing
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch import scratch_folder

from mtpd_mlx.options.cache import CacheConfig
from mtpd_mlx.options.command_line import add_arguments
from mtpd_mlx.options.distill import DistillConfig
from mtpd_mlx.options.schema import Range, as_dict, build, flag, read_yaml
from mtpd_mlx.options.train import TrainOptions

GROUPS = {"train": TrainOptions.classes(), "cache": (CacheConfig,), "distill-data": (DistillConfig,)}
FIELDS = [
    (c, f, typing.get_type_hints(c)[f.name]) for classes in GROUPS.values() for c in classes for f in dataclasses.fields(c)
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TEXT |= st.sampled_from(["no", "null", "~", "1e5", "- a", "a: b", "'", "#x", " x", "\u0085", "2026-11-28", "=", "<<", "C:\\x"])


def kind(annotation: Any) -> tuple[type, bool, bool]:
    """(type of a value, is it a list, may it be None)"""
    optional = typing.get_origin(annotation) is types.UnionType
    if optional:
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    is_list = typing.get_origin(annotation) is tuple
    return (typing.get_args(annotation)[0] if is_list else annotation), is_list, optional


def numbers(scalar: type, span: Range) -> st.SearchStrategy[Any]:
    low, high = (None if math.isinf(x) else x for x in (span.low, span.high))
    if scalar is int:
        return st.integers(low, high).filter(span.holds)  # type: ignore[arg-type]
    return st.floats(low, high, allow_nan=False, allow_infinity=False).filter(span.holds)


def valid(field: dataclasses.Field, annotation: Any) -> st.SearchStrategy[Any]:
    scalar, is_list, optional = kind(annotation)
    choices, span = field.metadata["choices"], field.metadata["takes"]
    one: st.SearchStrategy[Any]
    if choices:
        one = st.sampled_from(choices)
    elif scalar is bool:
        one = st.booleans()
    else:
        one = TEXT if scalar is str else numbers(scalar, span)
        if field.metadata["path"]:  # where a place is named, ~ is the home folder
            one = one.filter(lambda text: not text.startswith("~"))
    if is_list:
        least, most = (0, 4) if span.length is None else (span.length, span.length)
        one = st.lists(one, min_size=least, max_size=most).map(tuple)
    return st.none() | one if optional else one


def invalid(field: dataclasses.Field, annotation: Any) -> st.SearchStrategy[Any]:
    """Of a wrong type or out of range."""
    scalar, is_list, optional = kind(annotation)
    choices, span = field.metadata["choices"], field.metadata["takes"]
    wrong: list[st.SearchStrategy[Any]] = [st.dictionaries(st.just("a"), st.integers(), min_size=1), st.just([[1]])]
    if not (optional or is_list):
        wrong.append(st.none())
    if scalar is bool:
        wrong += [st.integers(), TEXT, st.floats()]
    else:
        wrong.append(st.booleans())
    if not is_list:
        wrong.append(st.lists(st.integers(), max_size=2))
    elif span.length is not None:
        wrong.append(st.lists(numbers(scalar, span), max_size=4).filter(lambda v: len(v) != span.length))
    if scalar in (int, float):
        wrong += [TEXT.filter(lambda t: not any(c.isdigit() for c in t) and t.strip().lower() not in ("nan", "inf"))]
        wrong += [st.sampled_from([math.nan, math.inf, -math.inf, "nan", "inf"])]
        wrong += [st.floats(-1e30, 1e30).filter(lambda x: not span.holds(x))]
    if scalar is int:
        wrong += [st.floats().filter(lambda x: not x.is_integer()), st.integers().filter(lambda n: not span.holds(n))]
    if scalar is str:
        wrong.append(st.just(""))
    if choices:
        wrong.append(TEXT.filter(lambda t: t not in choices))
    return st.one_of(wrong)


def through_yaml(values: dict[str, Any]) -> dict[str, Any]:
    with scratch_folder() as folder:
        file = folder / "options.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return read_yaml(file)


def drawn(data: st.DataObject, classes: tuple[type, ...]) -> dict[str, Any]:
    """Valid values of some of the options, those without a default among them."""
    fields = [(f, annotation) for c, f, annotation in FIELDS if c in classes]
    chosen = [pair for pair in fields if pair[0].default in (dataclasses.MISSING, "")]
    rest = st.sampled_from([pair for pair in fields if pair not in chosen])
    chosen += data.draw(st.lists(rest, max_size=6, unique_by=lambda pair: pair[0].name))
    return {f.name: data.draw(valid(f, annotation), label=f.name) for f, annotation in chosen}


def as_in_a_file(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


@pytest.mark.parametrize("classes", GROUPS.values(), ids=GROUPS)
@given(data=st.data())
def test_yaml_and_back(classes: tuple[type, ...], data: st.DataObject) -> None:
    values = as_in_a_file(drawn(data, classes))
    instances = build(classes, values, {})
    whole = as_dict(*instances)
    assert values.items() <= whole.items()
    for given_values in (whole, {name.replace("_", "-"): value for name, value in whole.items()}):
        assert build(classes, through_yaml(given_values), {}) == instances


def arguments(values: dict[str, Any]) -> list[str]:
    """As a shell would hand them over."""
    words: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [flag(name), *map(str, value)]
        else:
            words.append(f"{flag(name)}={value}")
    return words


def looks_like_a_flag(value: Any) -> bool:
    """argparse takes no text that begins with a dash after a space."""
    return isinstance(value, tuple) and any(str(word).startswith("-") for word in value)


@pytest.mark.parametrize("classes", GROUPS.values(), ids=GROUPS)
@given(data=st.data())
def test_flags_say_the_same_as_yaml_and_go_before_it(classes: tuple[type, ...], data: st.DataObject) -> None:
    flags, file = drawn(data, classes), as_in_a_file(drawn(data, classes))
    sayable = {n: v for n, v in flags.items() if v not in (None, ()) and not looks_like_a_flag(v)}
    parser = argparse.ArgumentParser()
    add_arguments(parser, (), classes)
    parsed = vars(parser.parse_args(arguments(sayable)))
    assert parsed.pop("config") is None and set(parsed) == set(sayable)
    assert build(classes, file, parsed) == build(classes, file | as_in_a_file(sayable), {})


@pytest.mark.parametrize(("cls", "field", "annotation"), FIELDS, ids=[f"{c.__name__}.{f.name}" for c, f, _ in FIELDS])
@settings(max_examples=settings().max_examples // 4)
@given(data=st.data())
def test_what_an_option_does_not_take_is_one_line_that_names_it(
    cls: type, field: dataclasses.Field, annotation: Any, data: st.DataObject
) -> None:
    value = data.draw(invalid(field, annotation))
    with pytest.raises(ValueError, match="got") as error:
        build((cls,), {field.name: value}, {})
    line = str(error.value)
    assert len(line.splitlines()) == 1 and len(line) < 300
    assert field.name in line or flag(field.name) in line
