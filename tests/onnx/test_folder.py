"""An exported folder: refused in one line when its parts do not fit; usable where MLX is absent."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mtpd_onnx.cli import COMMANDS, main
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.manifest import LAYOUTS, read_manifest
from tiny import write_tokenizer

from mtpd_mlx.options.export import ExportOptions


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_checkpoint(tiny_checkpoint, folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "onnx"))


def refused(capsys: pytest.CaptureFixture, folder: Path, *words: str) -> None:
    assert main(["generate", str(folder), "-p", "abc", "-m", "5", "--provider", "cpu"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines


def change(folder: Path, **values: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_truncated_missing_and_replaced_files(folder: Path, capsys: pytest.CaptureFixture) -> None:
    weights = folder / "weights.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    refused(capsys, folder, "weights.bin", "truncated")
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["info", str(folder)]) == 0 and capsys.readouterr()
    assert main(["info", str(folder), "--verify"]) == 1 and "sha256" in capsys.readouterr().err
    weights.unlink()
    refused(capsys, folder, "weights.bin", "missing")


def test_wrong_tokenizer(folder: Path, capsys: pytest.CaptureFixture) -> None:
    write_tokenizer(folder, 120)
    refused(capsys, folder, "tokenizer")
    manifest = json.loads((folder / "manifest.json").read_text())
    from mtpd_onnx.manifest import file_sha256

    for name in ("tokenizer.json", "tokenizer_config.json"):
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
    change(folder, files=manifest["files"])
    refused(capsys, folder, "120 tokens", "97")


def test_damaged_manifest(folder: Path, capsys: pytest.CaptureFixture) -> None:
    good = (folder / "manifest.json").read_text()
    for values, word in (
        ({"format": "x"}, "mtpd-onnx"),
        ({"format_version": 10}, "10"),
        ({"num_heads": 9}, "the graph has 3"),
        ({"precision": "fp64"}, "fp64"),
        ({"layout": "odd"}, "odd"),
        ({"surprise": 1}, "surprise"),
        ({"dims": {}}, "missing"),
        ({"capacity": True}, "capacity: got True, expected a positive integer"),
        ({"capacity": 10**400}, "capacity: got 1000"),
        ({"weights_read": []}, "weights_read: got [], expected bytes for each graph"),
        ({"weights_read": {"round.onnx": "x"}}, "weights_read: got {'round.onnx': 'x'}"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "not listed"),
    ):
        (folder / "manifest.json").write_text(good)
        change(folder, **values)
        refused(capsys, folder, word)
    files = {k: v for k, v in json.loads(good)["files"].items() if k != "weights.bin"}
    (folder / "manifest.json").write_text(good)
    change(folder, files=files)
    refused(capsys, folder, "weights.bin is not listed")
    files = json.loads(good)["files"] | {"../x": {"bytes": 1, "sha256": ""}}
    (folder / "manifest.json").write_text(good)
    change(folder, files=files)
    refused(capsys, folder, "not a plain file name")
    (folder / "manifest.json").write_text("{")
    refused(capsys, folder, "manifest.json")
    (folder / "manifest.json").unlink()
    refused(capsys, folder, "manifest.json")


def test_export_refuses_in_one_line_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, word in (
        ({"num_draft_tokens": 9}, "expected 1..3"),
        ({"capacity": 100000}, "expected 5..256"),
        ({"model": str(tmp_path)}, "config.json"),
        ({"model": "./none"}, "no such folder"),
    ):
        with pytest.raises(ValueError, match=word) as error:
            export_checkpoint(tiny_checkpoint, out, ExportOptions(**options))
        assert "\n" not in str(error.value) and not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        export_checkpoint(tiny_checkpoint, out)
    assert (out / "mine.txt").read_text() == "precious"
    damaged = Path(shutil.copytree(tiny_checkpoint, tmp_path / "damaged"))
    (damaged / "heads.safetensors").write_bytes((damaged / "heads.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated"):
        export_checkpoint(damaged, tmp_path / "never")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "never"))] == []


def test_an_export_that_cannot_take_its_place_loses_nothing(
    folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "notes.txt").write_text("mine")
    right = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":  # the new folder, on its way to its place
            raise KeyboardInterrupt
        return right(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        export_checkpoint(tiny_checkpoint, folder, ExportOptions(overwrite=True))
    assert (folder / "notes.txt").read_text() == "mine" and read_manifest(folder, verify=True).num_heads == 3
    export_checkpoint(tiny_checkpoint, folder, ExportOptions(num_draft_tokens=1, overwrite=True))
    assert not (folder / "notes.txt").exists() and read_manifest(folder).num_heads == 1
    assert [p for p in folder.parent.iterdir() if p.name.endswith(".old")] == []


def test_out_is_a_folder_of_its_own(exported: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("link", "dangling"):
        (tmp_path / name).symlink_to(exported if name == "link" else tmp_path / "nowhere")
        with pytest.raises(ValueError, match=rf"--out .*{name}: got a symbolic link, expected"):
            export_checkpoint(tiny_checkpoint, tmp_path / name, ExportOptions(overwrite=True))
    with pytest.raises(ValueError, match=r"--out \.: got no name, expected"):
        export_checkpoint(tiny_checkpoint, Path())


def test_the_page_names_every_file_command_input_and_output(exported: Path) -> None:
    pages = (Path(__file__).parents[2] / "docs" / name for name in ("onnx.md", "internals/onnx.md"))
    page = "".join(file.read_text(encoding="utf-8") for file in pages)
    words = {name for names in LAYOUTS.values() for name in names} | COMMANDS.keys()
    for graph in ("round.onnx", "plain.onnx", "sampled_round.onnx", "decoder.onnx", "batch.onnx"):
        io = read_manifest(exported).io[graph]
        words |= {n for n in io["inputs"] + io["outputs"] if "." not in n and n.removeprefix("next_") not in io["inputs"]}
        words |= {n for n in io["outputs"] if graph == "round.onnx" and n.startswith("next_")}
    assert [word for word in sorted(words) if f"`{word}`" not in page] == []


def test_fewer_drafts(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    export_checkpoint(tiny_checkpoint, tmp_path / "k1", ExportOptions(num_draft_tokens=1))
    assert read_manifest(tmp_path / "k1").num_heads == 1
    arguments = ["generate", str(tmp_path / "k1"), "-p", "abc", "-m", "9", "--provider", "cpu"]
    assert main([*arguments, "--num-draft-tokens", "2"]) == 1
    assert "expected 0..1" in capsys.readouterr().err
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 9


def test_decoding_needs_neither_mlx_nor_onnx(exported: Path) -> None:
    blocked = ("mlx", "mlx_lm", "transformers", "onnx", "onnx_ir", "onnxscript", "torch")
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}: raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from mtpd_onnx.cli import main\n"
        f"sys.exit(main(['generate', {str(exported)!r}, '-p', 'abc', '-m', '8', '--provider', 'cpu', '--json']))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["tokens"]) == 8
