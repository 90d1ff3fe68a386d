"""An exported folder decodes as it was exported: files put into it later, which would be read, are refused by name."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs import error_line
from mtpd_onnx.cli import main
from mtpd_onnx.export.export import export_checkpoint
from tiny import VOCAB

from mtpd_mlx.options.export import ExportOptions


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_checkpoint(tiny_checkpoint, folder)
    return folder


ADDED = ("chat_template.jinja", "generation_config.json", "special_tokens_map.json", "added_tokens.json")


@pytest.mark.parametrize("name", [*ADDED, "additional_chat_templates/tool_use.jinja"])
def test_files_added_later_are_refused(name: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(exported, folder)
    (folder / "notes.txt").write_text("never read")
    assert main(["info", str(folder), "--verify"]) == 0
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    capsys.readouterr()
    for command in (["info", str(folder)], ["generate", str(folder), "-p", "ab", "-m", "2"]):
        assert main(command) == 1
        line = error_line(capsys)
        assert name.split("/")[0] in line and "was put into the folder after the export" in line


def test_a_token_more_than_the_model_has(
    tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Such a base is exported and decoded, as mlx_lm takes it; the token itself is refused in a text."""
    base, folder = tmp_path / "base", tmp_path / "onnx"
    shutil.copytree(tiny_base, base)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": VOCAB, "content": "[PAD]"})
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    export_checkpoint(tiny_checkpoint, folder, ExportOptions(model=str(base)))
    assert main(["generate", str(folder), "-p", "ab", "-m", "3", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["generate", str(folder), "-p", "a[PAD]b", "-m", "3"]) == 1
    assert f"got token '[PAD]' ({VOCAB})" in error_line(capsys)
