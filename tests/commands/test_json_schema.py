"""generate --json-schema, both programs: texts that fit, the same with drafts and without; faults in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import mtpd_onnx.cli
import pytest
from mtpd_onnx.export.export import export_checkpoint
from tiny import write_base, write_checkpoint

import mtpd_mlx.cli
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.text.grammar import JSON_OPTIONS

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """heads, onnx, split and a schema."""
    place = tmp_path_factory.mktemp("bound")
    checkpoint = write_checkpoint(place / "heads", write_base(place / "base", scale=6.0), 3)
    for layout in ("fused", "split"):
        export_checkpoint(checkpoint, place / layout, ExportOptions(layout=layout))
    (place / "schema.json").write_text(json.dumps(SCHEMA))
    return place


PROGRAMS = [(mtpd_mlx.cli.main, "heads"), (mtpd_onnx.cli.main, "fused")]


@pytest.mark.parametrize(("main", "name"), PROGRAMS, ids=["mlx", "onnx"])
def test_texts_fit(folder: Path, main: Main, name: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JSON_OPTIONS, "whitespace_pattern", r"[ \n]{1,2}")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": str(i), "prompt": f"{i} abc"}) + "\n" for i in range(3)))
    shared = [str(folder / name), "--prompts", str(prompts), "--json", "--json-schema", str(folder / "schema.json")]
    texts = []
    fixed = ["--num-draft-tokens", "2" if name == "heads" else "0"]
    for extra in ([], ["--plain"], fixed, ["--temp", "1", "--seed", "3"]):
        assert main(["generate", *shared, *extra]) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for each in said:
            assert each["finish_reason"] == "stop"
            jsonschema.validate(json.loads(each["text"]), SCHEMA)
        texts.append([each["text"] for each in said])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(("main", "name"), PROGRAMS, ids=["mlx", "onnx"])
def test_faults(folder: Path, main: Main, name: str, capsys: Any, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    for content, message in (("{", "not valid JSON"), ('{"unevaluatedItems": false}', "Unimplemented keys")):
        wrong.write_text(content)
        assert main(["generate", str(folder / name), "--prompt", "a", "--json-schema", str(wrong)]) == 1
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1]
    schema = str(folder / "schema.json")
    cases = [[str(folder / "heads"), "--plan", "fixed"]]
    if name == "fused":
        cases = [[str(folder / "fused"), "--batch-size", "2"], [str(folder / "fused"), "--num-draft-tokens", "2"]]
        cases.append([str(folder / "split")])
    for arguments in cases:
        assert main(["generate", *arguments, "--prompt", "a", "--json-schema", schema]) != 0
        assert "bound text" in (said := capsys.readouterr().err) or "--json-schema" in said or "bound by a grammar" in said
