"""Of subfolders of a repository chat templates are fetched, which transformers reads, and nothing else."""

from pathlib import Path

from hub_helpers import contents, mtpd
from stub_hub import Hub, Repository

from mtpd_mlx.text.tokenizer import Tokenizer


def test_named_templates_are_fetched(hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    more = {
        "chat_template.jinja": b"D",
        "additional_chat_templates/tool_use.jinja": b"T",
        "additional_chat_templates/x.json": b"{}",
        "original/params.json": b"{}",
        "onnx[1]/config.json": b"{}",
    }
    hub.repositories["me/base"] = Repository(contents(tiny_base) | more)
    assert mtpd(hub, tmp_path, "pull", "me/base", "--out", "out").returncode == 0
    held = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert {name for name in held if "/" in name and not name.startswith(".cache")} == {
        "additional_chat_templates/tool_use.jinja"
    }
    tokenizer = Tokenizer.from_folder(tmp_path / "out")
    chat = [{"role": "user", "content": "x"}]
    assert tokenizer.apply_chat_template(chat) == "D" and tokenizer.apply_chat_template(chat, tools=[]) == "T"
