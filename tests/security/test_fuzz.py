"""A few damaged files for every loader (tools/fuzz_loaders.py does many), and what must never be followed or run."""

import json
import struct
from pathlib import Path

import pytest
from fuzzing import attack, attempt, ruined, targets
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import read_manifest
from tiny import write_checkpoint

from mtpd_mlx.families.config import read_config_json, read_dims
from mtpd_mlx.files.safetensors import read_header

FEW, MANY = range(12), range(12, 60)  # seeds
NAMES = ["config", "config, model loaded", "weights, model loaded", "heads loaded", "config, inspected", "safetensors"]
NAMES += [
    "index",
    "index, model loaded",
    "safetensors, inspected",
    "fingerprint",
    "tokenizer",
    "tokenizer_config",
    "heads config",
]
NAMES += ["heads config, inspected", "heads weights", "manifest", "manifest, inspected"]


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("fuzz")
    checkpoint = write_checkpoint(root / "heads", tiny_base, num_heads=1, draft_tokens=[1, 5, 9])
    export_checkpoint(checkpoint, root / "onnx")
    return tiny_base, checkpoint, root / "onnx"


@pytest.mark.parametrize("name", NAMES)
def test_ruined_files_are_refused_in_one_line(name: str, folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, file, load = targets(*folders)[name]
    for kind, bad in ruined((folder / file).read_bytes()).items():
        assert attempt(folder, file, load, bad, tmp_path / "copy", kind) == "refused", kind


@pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_one_line(name: str, seeds: range, folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Read, or refused; attack() fails for everything else."""
    every = targets(*folders)
    assert list(every) == NAMES
    folder, file, load = every[name]
    copy = tmp_path / "copy"  # beside the base, as the checkpoint is
    for seed in seeds:
        attack(folder, file, load, seed, copy)


def test_links_and_paths_in_manifests_are_refused(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    import shutil

    out = Path(shutil.copytree(folders[2], tmp_path / "onnx"))
    secret = tmp_path / "secret"
    secret.write_bytes((out / "config.json").read_bytes())
    (out / "config.json").unlink()
    (out / "config.json").symlink_to(secret)
    with pytest.raises(ValueError, match="symbolic link"):
        read_manifest(out)
    values = json.loads((folders[2] / "manifest.json").read_text())
    for name in ("../secret", "/etc/passwd", "a/../../b", "..", "a\\..\\b\\c", "con\0fig"):
        (out / "manifest.json").write_text(json.dumps(values | {"files": values["files"] | {name: {"bytes": 1, "sha256": ""}}}))
        with pytest.raises(ValueError, match=r"plain file name|symbolic") as error:
            read_manifest(out)
        assert "\n" not in str(error.value)


def test_headers_have_limits_and_must_add_up(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"

    def refused(header: bytes, data: bytes, word: str) -> None:
        file.write_bytes(struct.pack("<Q", len(header)) + header + data)
        with pytest.raises(ValueError, match=word):
            read_header(file)

    def entry(**values: object) -> bytes:
        return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | values}).encode()

    refused(entry(shape=[3]), b"x" * 8, "8 bytes")
    refused(entry(shape=[-2]), b"x" * 8, "shape")
    refused(entry(shape=[1 << 62, 1 << 62]), b"x" * 8, "bytes")
    refused(entry(data_offsets=[4, 12]), b"x" * 12, "where")
    refused(entry(data_offsets=[0, 8, 9]), b"x" * 8, "unreadable")
    refused(entry(dtype=7), b"x" * 8, "dtype")
    refused(b"[]", b"", "unreadable")
    file.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(ValueError, match="cut short"):
        read_header(file)


def test_code_of_a_model_is_never_run(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    from mtpd_mlx.model.base import load_base

    folder = Path(shutil.copytree(tiny_base, tmp_path / "evil"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = read_config_json(folder)
    for change in ({"model_file": "evil.py"}, {"auto_map": {"AutoModel": "evil.Model"}, "architectures": None}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match="never run"):
            load_base(str(folder))
        with pytest.raises(ValueError, match="never run"):
            read_dims(config | change)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    from mtpd_mlx.model.base import load_base

    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_base / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="pickled"):
        load_base(str(folder))
