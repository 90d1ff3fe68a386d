"""docs/families.md is what tools/family_table.py writes where all tests of this folder pass; those that it goes by exist, take
every reference and are never passed over."""

import ast
import json
from pathlib import Path

from family_models import NAMES, REFERENCES

from mtpd_mlx.families.multimodal import text_config
from mtpd_mlx.families.table import FAMILIES
from tools.family_table import COLUMNS, OUT, render

RECORDS = {name: json.loads((REFERENCES / f"{name}.json").read_text()) for name in NAMES}
TESTS = {test for tests in COLUMNS.values() for test in tests}


def test_every_family_has_a_reference() -> None:
    assert {text_config(record["config"])["model_type"] for record in RECORDS.values()} == set(FAMILIES)


def test_the_table_is_that_of_tests_that_pass() -> None:
    """So it was not edited by hand, and no family, note or claim is out of date. Where one of them fails, so does this run."""
    passed = {name: dict.fromkeys(TESTS, "passed") for name in NAMES}
    assert OUT.read_text() == render(passed, RECORDS)


def test_what_the_table_goes_by_runs_for_every_reference() -> None:
    files = {file: ast.parse(file.read_text()) for file in Path(__file__).parent.glob("test_families_*.py")}
    functions = {f.name: (f, file) for file, tree in files.items() for f in tree.body if isinstance(f, ast.FunctionDef)}
    assert functions.keys() >= TESTS
    for function, file in (functions[name] for name in TESTS):
        needed = {argument.arg for argument in function.args.args}
        assert needed & {"reference", "checkpoint"} and not function.decorator_list, function.name
        assert not any(word in file.read_text() for word in ("pytest.skip", "skipif", "xfail", "importorskip")), file
