"""Who may import what (docs/architecture.md), read from the source; imports inside functions count."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MLX = {"mlx", "mlx_lm"}
ONNX = {"onnx", "onnx_ir", "onnxscript", "onnxruntime"}

# Packages and modules, lowest first: each imports from earlier layers alone. `onnx.` stands for mtpd_onnx.
LAYERS = """
files speculative onnx.errors onnx.layouts onnx.precision | families | checkpoints onnx.dims | options | inspection text
| hub onnx.manifest serving | model onnx.graphs onnx.runtime | ranks | data decoding onnx.weights onnx.peer
| losses teacher_cache measure onnx.export | train | demo onnx.commands | onnx.cli | commands | api cli
"""
# What runs without MLX: a GPU box with mtpd-onnx has none. Modules of other packages that are light one by one.
LIGHT = ["files", "speculative", "families", "text", "checkpoints", "options", "inspection", "hub", "serving", "data"]
LIGHT_MODULES = [
    "__init__",
    "cli",
    "model/__init__",
    "model/blas",
    "teacher_cache/__init__",
    "teacher_cache/format",
    "teacher_cache/reader",
]
HEAVY_MODULES = ["data/own_text"]


def python_files(*folders: str) -> list[Path]:
    return [f for folder in folders for f in sorted((ROOT / folder).rglob("*.py"))]


def module_of(file: Path) -> str:
    """mtpd_mlx/text/chat.py -> mtpd_mlx.text.chat"""
    parts = file.relative_to(ROOT / "export" if "export" in file.relative_to(ROOT).parts[:1] else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """mtpd_mlx.text.chat -> text; mtpd_onnx.graphs.round -> onnx.graphs. Empty: the bare top-level packages."""
    top_level, *rest = module.split(".")
    return "" if not rest else f"onnx.{rest[0]}" if top_level == "mtpd_onnx" else rest[0]


OURS = {module_of(f): f for f in python_files("mtpd_mlx", "export/mtpd_onnx")}


def imported(file: Path) -> set[str]:
    """Full names of everything imported anywhere in the file."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return names


def imported_at_once(file: Path) -> set[str]:
    """Top-level names of what importing the file imports: outside functions."""
    names, waiting = set(), list(ast.parse(file.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return names


def top(names: set[str]) -> set[str]:
    return {n.split(".")[0] for n in names}


def test_layers() -> None:
    """No package imports from its own layer or a later one: so there is no cycle between packages either."""
    order = {name: number for number, layer in enumerate(LAYERS.split("|")) for name in layer.split()}
    rooms = {room(module) for module in OURS} - {"", "onnx.__main__"}
    assert rooms == set(order)
    wrong = {
        f"{module} -> {name}"
        for module, file in OURS.items()
        for name in imported(file) & OURS.keys()
        if room(module) in order and room(name) in order and room(name) != room(module)
        if order[room(name)] >= order[room(module)]
    }
    assert not wrong


def test_few_modules_lie_flat() -> None:
    assert sorted(f.name for f in (ROOT / "mtpd_mlx").glob("*.py")) == ["__init__.py", "api.py", "cli.py"]


LIGHT_FILES = [
    f
    for f in python_files(*(f"mtpd_mlx/{name}" for name in LIGHT))
    + [ROOT / "mtpd_mlx" / f"{name}.py" for name in LIGHT_MODULES]
    if f not in [ROOT / "mtpd_mlx" / f"{name}.py" for name in HEAVY_MODULES]
]


@pytest.mark.parametrize("file", LIGHT_FILES, ids=module_of)
def test_light_modules_import_no_runtime(file: Path) -> None:
    names = imported(file)
    assert not top(names) & (MLX | ONNX | {"transformers", "torch"})
    assert "mtpd_mlx.model.runtime" not in names


def test_export_never_reaches_mlx() -> None:
    """mtpd_onnx imports nothing that is not light."""
    light = {module_of(f) for f in LIGHT_FILES}
    for file in python_files("export"):
        names = imported(file)
        assert not top(names) & MLX, file
        ours = {n for n in names & OURS.keys() if n.startswith("mtpd_mlx")}
        assert ours <= light, (file, ours - light)


def test_mlx_core_is_imported_in_one_place() -> None:
    for file in python_files("mtpd_mlx"):
        if file.relative_to(ROOT) != Path("mtpd_mlx/model/runtime.py"):
            direct = {n for n in imported(file) if n.startswith(("mlx.core", "mlx.nn", "mlx.optimizers"))}
            assert not direct, (file, direct)


def test_mlx_never_loads_before_the_blas() -> None:
    """A module-level `import mlx_lm` sorts above `mtpd_mlx.model.runtime`: MLX would start with its slow BLAS."""
    for file in python_files("mtpd_mlx", "tests"):
        if file.relative_to(ROOT) != Path("mtpd_mlx/model/runtime.py"):
            assert not imported_at_once(file) & MLX, file


def test_onnx_runs_in_one_place_and_stays_out_of_mtpd_mlx() -> None:
    using = {f.name for f in python_files("mtpd_mlx", "export") if "onnxruntime" in top(imported(f))}
    assert using == {"sessions.py"}
    for file in python_files("mtpd_mlx"):
        assert not top(imported(file)) & ONNX, file


def test_mtpd_onnx_starts_without_any_runtime() -> None:
    blocked = sorted(MLX | ONNX | {"transformers", "torch", "safetensors"})
    program = (
        "import runpy, sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}: raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.path[:0] = ['.', 'export']\n"
        "sys.argv[1:] = ['--help']\n"
        "runpy.run_module('mtpd_onnx', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mtpd-onnx: ")


def test_nobody_imports_tools() -> None:
    for file in python_files("mtpd_mlx", "export", "tests"):
        of_tools = file.parent.name in ("experiments", "benchmark", "real_recipe") or file.name in (
            "test_table.py",
            "test_bench_serve.py",
        )  # the tests of tools
        assert of_tools or "tools" not in top(imported(file)), file


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("mtpd_mlx.cli", ["train", "--model", "x"], ".[mlx]"),
        ("mtpd_mlx.cli", ["export", "x", "--out", "y"], ".[export]"),
        ("mtpd_onnx.cli", ["export", "x", "--out", "y"], ".[export]"),
    ],
)
def test_missing_packages_are_one_line(module: str, arguments: list[str], extra: str) -> None:
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('mlx', 'mlx_lm', 'onnx', 'onnx_ir', 'onnxscript'):\n"
        "            raise ModuleNotFoundError('blocked', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.argv = ['x', *{arguments!r}]\n"
        f"from {module} import main\n"
        "sys.exit(main())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    lines = result.stderr.splitlines()
    assert result.returncode == 1 and len(lines) == 1 and extra in lines[0], result.stderr
