"""The portable side imports and runs where the heavy libraries are absent."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib, pkgutil, sys

BLOCKED = {"mlx", "mlx_lm", "transformers", "onnx", "onnx_ir", "onnxruntime", "torch", "safetensors", "yaml"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"blocked: {name}")

sys.meta_path.insert(0, Block())
import mtpd_mlx
import mtpd_mlx.speculative as package

names = [m.name for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
assert not BLOCKED & {m.split(".")[0] for m in sys.modules}
ours = sorted(m for m in sys.modules if m.startswith("mtpd_mlx") and "speculative" not in m)
print(len(names), ours, "jinja2" in sys.modules)
try:
    importlib.import_module("mlx")
except ImportError as error:
    print(error)
"""


def test_import_without_the_heavy_libraries():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert int(first.split()[0]) >= 8  # every module of the package was imported
    assert first.endswith("['mtpd_mlx'] False")  # nothing else of the project; Jinja only where a template is rendered
    assert second == "blocked: mlx"  # the block works


def test_modules_name_no_other_library():
    """Imports inside functions too."""
    import ast

    allowed = {"mtpd_mlx", "numpy", "tokenizers", "jinja2"} | set(sys.stdlib_module_names)
    files = sorted((ROOT / "mtpd_mlx" / "speculative").glob("*.py"))
    assert len(files) >= 8
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed, f"{file.name} imports {name}"
                assert not name.startswith("mtpd_mlx.") or name.startswith("mtpd_mlx.speculative"), f"{file.name}: {name}"
