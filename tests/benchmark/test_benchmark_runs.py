"""The benchmark as a user runs it, on tiny models: engines in children of their own, stopped and continued, and refusals."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.tools import tool

from mtpd_mlx.options.export import ExportOptions

ROOT = Path(__file__).parents[2]


def benchmark(*words: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}"}
    if path is not None:
        env["PATH"] = f"{path}{os.pathsep}{env['PATH']}"
    command = [sys.executable, "-m", "tools.benchmark", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    from mtpd_onnx.export.export import export_checkpoint

    export_checkpoint(tiny_checkpoint, tmp_path / "fp32", ExportOptions(capacity=128))
    return tmp_path / "fp32"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("hello there", "what is it")))
    return file


def runs_of(out: Path) -> list[str]:
    return (out / "runs.jsonl").read_text().splitlines()


def check(arms: dict[str, Any], names: set[str]) -> None:
    assert set(arms) == names
    for name, sets in arms.items():
        figures = sets["asked"]
        assert figures["runs"] == 2 and figures["identical"] == 1.0, name
        assert figures["tok_s"] > 0 and figures["ttft_ms"] > 0 and figures["memory_mb"] > 10
        assert figures["tau"] is None if name.endswith(("plain", "stock")) else figures["tokens_per_pass"] >= 1


def test_a_stopped_benchmark_goes_on_and_another_one_is_refused(tmp_path: Path, folder: Path, prompts: Path) -> None:
    out = tmp_path / "out"
    words = [out, "--onnx", folder, "--prompts", prompts, "--max-tokens", 8, "--repeats", 1]
    assert benchmark(*words, "--limit", 2, "--arms", "plain").returncode == 0
    lines = runs_of(out)
    (out / "runs.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    done = benchmark(*words, "--limit", 2, "--json", "--arms", "K=3", "chosen")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((out / "summary.json").read_text())
    assert found["conditions"]["about"]["fp32 plain"]["capacity"] == 128 and found["sessions"] == 2
    check(found["arms"], {"fp32 plain", "fp32 K=3", "fp32 chosen"})
    assert len(lines) == 2 and runs_of(out)[:1] == lines[:1] and len(runs_of(out)) == 6
    texts = [json.loads(line)["tokens"] for line in runs_of(out)]
    assert {len(tokens) for tokens in texts} == {8} and len({tuple(tokens) for tokens in texts}) == 2
    other = tool("benchmark", *words, "--limit", 1)
    assert other.returncode == 1 and "made with limit 2, got 1; name another folder, or remove this one" in other.stderr


@pytest.mark.slow
def test_mlx_and_stock_mlx_lm_write_the_same_texts(tmp_path: Path, folder: Path, tiny_checkpoint: Path, prompts: Path) -> None:
    words = [tmp_path / "out", "--onnx", folder, "--checkpoint", tiny_checkpoint, "--prompts", prompts, "--max-tokens", 8]
    done = benchmark(*words, "--repeats", 1, "--json", "--reference", "fp32 plain")
    assert done.returncode == 0, done.stderr
    ways = {f"fp32 {way}" for way in ("plain", "K=1", "K=2", "K=3", "heads", "chosen")}
    ways |= {f"mlx {way}" for way in ("stock", "plain", "K=1", "K=2", "K=3", "lookup", "heads", "chosen")}
    check(json.loads(done.stdout)["arms"], ways)


def test_refusals_are_one_line(tmp_path: Path, folder: Path, prompts: Path) -> None:
    for words, said in (
        (["--prompts", prompts], "nothing to time"),
        (["--onnx", folder], "no prompts"),
        (["--onnx", folder, "--lengths", 500, "--text", prompts], "--lengths: got 500, expected 1..56"),
        (["--onnx", folder, "--lengths", 5], "--lengths: expected --text with it"),
        (["--onnx", folder, "--arms", "lookahead", "--prompts", prompts], "--arms: got 'lookahead'"),
        (["--report"], "no benchmark in it"),
        (["--onnx", folder, "--genai", tmp_path, "--prompts", prompts], "not a genai folder"),
    ):
        done = tool("benchmark", tmp_path / "out", *words, "--max-tokens", 8)
        assert done.returncode == 1 and said in done.stderr, (words, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


SERVER = f"""#!{sys.executable}
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["temperature"] == 0 and asked["ignore_eos"] and not asked["cache_prompt"]
        tokens = [(asked["prompt"][-1] + 1 + i) % 97 for i in range(asked["n_predict"])]
        answer = {{"tokens": tokens, "timings": {{"prompt_ms": 10.0, "predicted_ms": 70.0}}}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

port = int(sys.argv[sys.argv.index("--port") + 1])
assert sys.argv[sys.argv.index("-m") + 1].endswith("model.gguf") and sys.argv[sys.argv.index("-t") + 1] == "2"
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed and goes first")
def test_a_llama_server_on_the_path_is_an_arm(tmp_path: Path, folder: Path, prompts: Path) -> None:
    """Its own times are taken: 10 ms for the prompt, 70 ms for the seven tokens behind the first one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-server").write_text(SERVER)
    (tmp_path / "bin" / "llama-server").chmod(0o755)
    (tmp_path / "model.gguf").touch()
    words = ["--onnx", folder, "--gguf", tmp_path / "model.gguf", "--num-threads", 2, "--prompts", prompts, "--max-tokens", 8]
    done = benchmark(tmp_path / "out", *words, "--repeats", 1, "--json", "--arms", "llama", path=tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["arms"]["llama.cpp"]["asked"]
    assert figures["tok_s"] == pytest.approx(100.0) and figures["ttft_ms"] == pytest.approx(10.0)
