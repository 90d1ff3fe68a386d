"""tools/bench_rollback on tiny layers: every arm of two kinds of plans runs and is timed."""

import json
from pathlib import Path

import pytest
from helpers.tools import tool


@pytest.mark.parametrize("model", ["lfm2.5-1.2b", "qwen3.5-4b"])
def test_every_arm_is_timed(model: str, tmp_path: Path) -> None:
    out, plans = tmp_path / "out.jsonl", ("growing", "fixed")
    few = ["--tiny", "--context", 16, "--calls", 1, "--repeats", 1, "--dtype", "float32", "--draft-vocab", 64]
    done = tool("bench_rollback", model, *few, "--plans", *plans, "--json", out)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = json.loads(out.read_text())
    assert found["ms"].keys() == {f"{arm} {plan}" for arm in ("plain", "round", "verify") for plan in plans}
    assert all(ms > 0 for ms in found["ms"].values()) and done.stdout.startswith(f"{model}: ")
