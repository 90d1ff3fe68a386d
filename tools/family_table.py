#!/usr/bin/env python3
"""Runs the tests of the model families and writes docs/families.md from their results.

    python -m tools.family_table [--check]      # --check: only say whether the file is what the tests give

What a cell says is what its test did: nothing in the file is written by hand. Run it from the repository root.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from mtpd_onnx.dims import objection, objection_on_cuda

from mtpd_mlx.families.config import read_dims
from mtpd_mlx.families.multimodal import text_config
from mtpd_mlx.families.rotary import rope_type
from tools.paths import ROOT

REFERENCES, OUT = ROOT / "tests" / "families" / "references", ROOT / "docs" / "families.md"
MLX, CPU, CUDA, IN, OUTWARDS = "MLX", "ONNX, CPU", "ONNX, CUDA", "own heads in", "heads out"
COLUMNS = {
    MLX: (
        "test_mlx_logits",
        "test_mlx_caches_rewind",
        "test_mlx_blocks_one_by_one",
        "test_heads_train",
        "test_mlx_texts_side_by_side",
        "test_mlx_decoder_in_every_plan",
    ),
    CPU: ("test_onnx_logits", "test_onnx_standard_logits", "test_onnx_rounds_are_plain_decoding"),
    CUDA: (),
    IN: ("test_own_heads_in",),
    OUTWARDS: ("test_heads_out_and_in",),
}
NOT_COVERED = {
    "gemma3_text": "images",
    "gemma4_text": "E2B and E4B (inputs per layer, shared keys), images, Google's assistant models",
    "gemma4_unified_text": "images and sound, Google's assistant models",
    "mistral": "Mistral Small's images",
    "ministral3": "images",
    "gpt_oss": "float16, --kv-bits",
    "glm4_moe": "GLM-4.7-Flash (latent attention)",
    "qwen3_5_text": "images",
    "nemotron_h": "`--plan fixed`",
    "lfm2": "LFM2-VL",
}
HEAD = """# Model families

Find your model's `model_type` (it is in its config.json) in the table. `mtpd inspect MODEL` says the same for one model, and
whether it fits into memory.

| a cell says | meaning |
|---|---|
| yes | the tests below pass |
| refused | the command refuses the family in one line |
| not run | no test of this table runs there |
| - | published models of the family ship no heads |

What the tests check. Each row is a tiny random model whose config.json and tensor names are those that transformers {version}
writes; its logits are the oracle. Of real checkpoints only those in the [log](log.md) were run.

| column | what its tests find |
|---|---|
| MLX | every logit within 1e-4 of transformers', in float32: whole, in pieces, after a rewind, beyond sliding windows, in \
left-padded batches. The losses of two heads fall by 15% in 15 steps. Speculative decoding, of one text and of several, \
gives the tokens of plain greedy decoding. |
| ONNX, CPU | every logit within 1e-4 of transformers', in both layouts (fused and split). Rounds give the tokens of plain \
greedy decoding and accept what the step-by-step oracles accept. |
| ONNX, CUDA | not run: CI has no GPU. By hand, on an H100 and an H200, SmolLM2 and random weights of Qwen3's dimensions \
were run in fp16 ([log](log.md)). |
| own heads in | the head that published models of the family ship, imported, gives the logits of transformers' MTP \
decoding. MiMo, of which transformers has no class: the same tensors come back. Nemotron, which its MTP decoding does not \
know: transformers' blocks, put together as SGLang does. |
| heads out | what `mtpd export-heads` writes in the layout `nextn` (Nemotron: one head in `nemotron`) comes back bit for \
bit. Refused for a checkpoint that is more than a language model. |

| model | `model_type` | {columns} | not covered, and what to know |
|---|---|{rules}|---|
"""
FOOT = """
- MTP heads attend to all positions, whatever the windows of the base, and rotate as its full-attention layers do.
- Everything that is not in the table is refused in one line: other `model_type`s, and activations, biases and rope scalings
  that the family's code in transformers does not have.
- Code that a model brings is never run. A model with `model_file`, or with `auto_map` and no `architectures`, is refused.
  `auto_map` beside `architectures` is ignored, and `model_type` decides.

This page is written by `python -m tools.family_table` from the results of `pytest -m families`. The tests compare with stored
logits. Two test files ask the installed transformers instead: whether it still gives the stored logits, and its own MTP
decoding with the output of `mtpd export-heads`. They are skipped if transformers or torch is missing. To run them:

    pip install torch transformers
    pytest -m families tests/families/test_families_live.py tests/families/test_transformers_mtp.py
"""


def run_tests(report: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "families", "tests/families", "-n", "2", f"--junitxml={report}"]
    subprocess.run(command, cwd=ROOT, env=os.environ, check=False)


def read_results(report: Path) -> dict[str, dict[str, str]]:
    """reference -> test -> "passed", "failed" or "skipped"."""
    results: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        test, _, rest = case.get("name", "").partition("[")
        kinds = {child.tag for child in case}
        found = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        results.setdefault(rest.rstrip("]"), {})[test] = found
    return results


def cell(column: str, results: dict[str, str], record: dict) -> str:
    """What a refused family's tests find is that it is refused."""
    found = {results.get(test, "not run") for test in COLUMNS[column]}
    refused = column in (CPU, CUDA) and objection(read_dims(text_config(record["config"]))) is not None
    refused |= column == OUTWARDS and stay_inside(record["config"])
    if column == CUDA:
        refused |= objection_on_cuda(read_dims(text_config(record["config"]))) is not None
        return "refused" if refused else "not run"
    if column == IN and (layout := layout_of(record)) is None:
        return "-"
    yes = "refused" if refused else f"yes, `{layout}`" if column == IN else "yes"
    return yes if found == {"passed"} else "**no**" if "failed" in found else "not run"


def stay_inside(config: dict) -> bool:
    """Whether no layout holds the heads: of a multimodal checkpoint."""
    return "text_config" in config


def layout_of(record: dict) -> str | None:
    """The layout in which published models of a family ship heads; None where they ship none."""
    if record["config"]["model_type"] == "mimo":
        return "mimo"
    if "shipped" not in record:
        return None
    if "mtp.layers.0.eh_proj.weight" in record["shipped"]:
        return "nemotron"
    return "mtp" if any(name.startswith("mtp.") for name in record["shipped"]) else "nextn"


def notes(config: dict) -> str:
    """What a user of the family should know: from the dims, and NOT_COVERED."""
    dims, parts = read_dims(text_config(config)), []
    if (missing := NOT_COVERED.get(dims.model_type)) is not None:
        parts.append(f"not covered: {missing}")
    windows = sum(layer.window is not None for layer in dims.layers)
    if windows:
        parts.append("sliding windows" + ("" if windows == dims.num_layers else f" in {windows} of {dims.num_layers} layers"))
    if rope_type(dims.rope_scaling) in ("longrope", "su"):
        parts.append("contexts up to original_max_position_embeddings")
    if dims.sinks:
        parts.append("attention sinks")
    if dims.recurrent is not None:
        recurrent = dims.recurrent_layers
        parts.append(f"recurrent state in {recurrent} of {dims.num_layers} layers; heads are attention blocks")
    if dims.experts is not None:
        parts.append("heads have experts too")
    if objection(dims) is None and objection_on_cuda(dims) is not None:
        parts.append("ONNX on CPUs alone, one text at a time")
    if (why := objection(dims)) is not None:
        reason = "" if "MLX alone" in why else f" ({why.removeprefix(f'{dims.model_type}: ')})"
        parts.append(f"no ONNX graphs yet{reason}")
    elif dims.experts is not None:
        parts.append("experts stay in floating point in int4 and int8 exports")
    return "; ".join(parts)


def render(results: dict[str, dict[str, str]], records: dict[str, dict]) -> str:
    version = max(str(r["config"].get("transformers_version", "?")) for r in records.values())
    head = HEAD.format(version=version, columns=" | ".join(COLUMNS), rules="|".join("---" for _ in COLUMNS))
    rows = []
    for name, record in sorted(records.items()):
        cells = [cell(column, results.get(name, {}), record) for column in COLUMNS]
        kind = record["config"]["model_type"]
        rows.append(f"| {record['title']} | `{kind}` | {' | '.join(cells)} | {notes(record['config'])} |")
    return head + "\n".join(rows) + "\n" + FOOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    args = parser.parse_args()
    if importlib.util.find_spec("pytest") is None:
        print('family_table: error: pytest is not installed; install it with: pip install -e ".[dev]"', file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        run_tests(report)
        if not report.is_file():
            print("family_table: error: pytest wrote no results", file=sys.stderr)
            return 1
        results = read_results(report)
    text = render(results, {file.stem: json.loads(file.read_text()) for file in REFERENCES.glob("*.json")})
    if args.check:
        same = OUT.is_file() and OUT.read_text() == text
        print(f"{OUT.relative_to(ROOT)}: {'as the tests say' if same else 'differs from what the tests say'}")
        return 0 if same else 1
    OUT.write_text(text)
    print(f"wrote {OUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
