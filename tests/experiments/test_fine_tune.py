"""tools/experiments/fine_tune: its verdict, and the whole story at its smallest on a tiny base, begun and taken up."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import write_base, write_checkpoint

from tools.experiments import fine_tune, refit_table

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def row(key: str, steps: int, seconds: float, tau: float) -> dict[str, Any]:
    return {
        "key": f"{key}-{steps}",
        "label": key,
        "steps": steps,
        "seconds": seconds,
        "tau": tau,
        "car": [0.5],
        "distinct4": 0.9,
    }


ANEW = [row("anew", 800, 40.0, 3.0), row("anew", 400, 20.0, 2.9), row("anew", 100, 5.0, 2.0)]


@pytest.mark.parametrize(
    ("refits", "said"),
    [
        ([row("refit", 100, 4.0, 3.3), row("refit", 25, 1.0, 2.6)], "110% of it after 100 steps, 4.0 s: 10% of the time"),
        ([row("refit", 100, 4.0, 3.3), row("refit", 50, 2.0, 2.85)], "95% of it after 50 steps, 2.0 s: 5% of the time"),
        ([row("refit", 100, 10.0, 2.9)], "25% of the time of the best, 50% of that of the first (20% wanted: missed)"),
        ([row("refit", 100, 4.0, 2.4)], "No refit reaches 95% of it: at best 80%"),
    ],
)
def test_the_verdict_is_of_the_first_refit_that_is_good_enough(refits: list[dict[str, Any]], said: str) -> None:
    told = refit_table.verdict([*refits, *ANEW])
    assert said in told
    assert "tau 3.000 after 800 steps, 40.0 s; 95% of it first after 400 steps" in told


def test_half_a_story_has_no_verdict() -> None:
    assert refit_table.verdict(ANEW) == ""


@pytest.mark.slow
def test_the_whole_story(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", scale=2.0)
    said = json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (base / "tokenizer_config.json").write_text(json.dumps(said))
    heads = write_checkpoint(tmp_path / "heads", base, num_heads=2, noise=0.01)
    (tmp_path / "data").mkdir()
    for name, count in (("train", 40), ("valid", 4)):
        rows = [{"prompt": f"ask {i}", "completion": f"answer {i} " * 6} for i in range(count)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = {"model": base, "heads": heads, "data": tmp_path / "data", "out": tmp_path / "out", "size": "tiny", "num-layers": 2}
    command = [sys.executable, "-m", "tools.experiments.fine_tune", *fine_tune.flags(given)]
    subprocess.run([*command, "--parts", "refit"], check=True, capture_output=True)
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "refit-3: done" in run.stdout
    content = json.loads((tmp_path / "out" / "story.json").read_text())
    kinds = [r["key"].rpartition("-")[0] or r["key"] for r in content["rows"]]
    assert kinds == ["start", "old", "refit", "refit", "anew", "anew", "adapter", "joint", "muon", "own"]
    assert "Best of anew: tau" in run.stdout
