"""`build`: the peer, made by onnxruntime-genai's own model builder from a Hugging Face folder.
Called by genai_peer/__main__.py."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = {"onnxruntime_genai": "onnxruntime-genai", "torch": "torch", "transformers": "transformers", "onnx_ir": "onnx-ir"}
PACKAGES |= {"onnxruntime": "onnxruntime", "tqdm": "tqdm"}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def build(model: Path, out: Path, precision: str, provider: str, options: list[str]) -> None:
    """Writes the genai folder `out`. ImportError or ValueError in one line; the builder's log is shown where it fails."""
    check_packages()
    if not (model / "config.json").is_file():
        raise ValueError(f"{model}: no config.json in it")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: exists already")
    with tempfile.TemporaryDirectory() as folder:
        stage(model, Path(folder) / "model")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", f"{folder}/model", "-o", str(out)]
        command += ["-p", precision, "-e", provider, "-c", f"{folder}/cache"]
        if options:
            command += ["--extra_options", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (out / "genai_config.json").is_file():
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ValueError(f"{model}: onnxruntime-genai's builder failed: {lines[-1]}")


def check_packages() -> None:
    missing = [pip for module, pip in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"not installed: {', '.join(missing)}; install with: pip install {' '.join(missing)}")


def stage(model: Path, folder: Path) -> None:
    """The model's files by links, and a config that names its architecture, which the builder needs and mlx-lm leaves out."""
    config = json.loads((model / "config.json").read_text())
    if not config.get("architectures"):
        family = config.get("model_type")
        if family not in ARCHITECTURES:
            raise ValueError(f"model_type {family!r} is not supported; supported: {', '.join(ARCHITECTURES)}")
        config["architectures"] = [ARCHITECTURES[family]]
    if "quantization" in config:
        raise ValueError(f"{model}: MLX-quantised weights; the builder needs them unpacked (mlx_lm.convert --dequantize)")
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").write_text(json.dumps(config, indent=2))
