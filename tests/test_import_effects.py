"""Importing a module defines things and does nothing else, but for what has to be done then (docstrings there say why)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "mtpd_mlx").rglob("*.py"), *(ROOT / "export").rglob("*.py")])
ALLOWED = {
    "mtpd_mlx/__init__.py": {"addHandler"},  # logging's way for libraries
    "export/mtpd_onnx/__init__.py": {"addHandler"},
    "mtpd_mlx/model/runtime.py": {"preload_blas", "compiler_warning"},
    "export/mtpd_onnx/__main__.py": {"exit"},
}


def calls_at_import(source: str) -> set[str]:
    """Names of functions that statements outside of functions and classes call for what they do, not for a value."""
    waiting, found = list(ast.parse(source).body), set[str]()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.add(ast.unparse(node.value.func).rpartition(".")[2])
        elif isinstance(node, ast.If | ast.For | ast.With | ast.Try):
            waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_importing_calls_nothing(file: Path) -> None:
    assert calls_at_import(file.read_text()) == ALLOWED.get(str(file.relative_to(ROOT)), set())


def test_a_call_is_found_wherever_it_stands() -> None:
    source = "import os\nif os.name:\n    for x in ():\n        a.b(x)\nc()\ny = d()\nif __name__ == '__main__':\n    e()\n"
    assert calls_at_import(source) == {"b", "c"}
