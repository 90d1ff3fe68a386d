"""What is no GGUF file of ours is refused in one line that names the key or the tensor, and nothing is written."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.gguf_models import Source, edit, write_source

from mtpd_mlx.checkpoints.gguf.reader import read_gguf
from mtpd_mlx.checkpoints.gguf.write import import_gguf
from mtpd_mlx.cli import main
from mtpd_mlx.files.lock import locked

F16 = gguf.GGMLQuantizationType.F16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return write_source("llama", tmp_path_factory.mktemp("source"), lambda name: "Q8_0" if "q_proj" in name else "Q4_0")


def refused(file: Path, out: Path) -> str:
    """The message. ValueError is the only error there is, of one line, and nothing is left."""
    with pytest.raises(ValueError) as error:
        import_gguf(file, out)
    message = str(error.value)
    assert "\n" not in message and not out.exists() and not list(out.parent.glob(f".{out.name}*"))
    return message


KEYS: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "mamba"}, "general.architecture: got 'mamba', expected one of llama, qwen2, qwen3, gemma3"),
    ({"llama.expert_count": 8}, "llama.expert_count: got 8, which is not supported in llama"),
    ({"llama.attention.scale": 0.5}, "llama.attention.scale: got 0.5, which is not supported in llama"),
    ({"llama.attention.causal": False}, "llama.attention.causal: got false, expected a model that writes text"),
    ({"llama.block_count": None}, "missing key 'llama.block_count'"),
    ({"llama.block_count": "two"}, "llama.block_count: got 'two', expected a whole number"),
    ({"llama.block_count": 3}, "missing tensor 'blk.2.attn_k.weight' (expected shape (32, 64))"),
    ({"llama.block_count": 1}, "unknown tensor 'blk.1.attn_k.weight'"),
    ({"llama.block_count": 4_000_000_000}, "llama.block_count: got 4000000000, expected 1..10000"),
    ({"llama.embedding_length": 128}, "'token_embd.weight': got shape (97, 64), expected (97, 128)"),
    ({"llama.attention.head_count": 0}, "num_attention_heads: got 0, expected a positive integer"),
    ({"llama.attention.head_count_kv": 3}, "got 4 heads, 3 key heads"),
    ({"llama.attention.value_length": 8}, "llama.attention.value_length: got 8, expected 16"),
    ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count: got 8, expected 16"),
    ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type: got 'longrope'"),
    ({"llama.rope.scaling.type": "yarn"}, "missing key 'llama.rope.scaling.factor'"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon: got nan, expected a finite number"),
    ({"tokenizer.ggml.tokens": ["a"] * 98}, "tokenizer.ggml.tokens: got 98 tokens, expected at most 97"),
    ({"split.count": 3}, "split.count: one of 3 parts"),
]


@pytest.mark.parametrize(("change", "message"), KEYS, ids=lambda part: next(iter(part)) if isinstance(part, dict) else "")
def test_keys(change: dict[str, Any], message: str, source: Source, tmp_path: Path) -> None:
    def apply(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key, value in change.items():
            metadata.pop(key) if value is None else metadata.update({key: value})

    assert message in refused(edit(source.file, tmp_path / "edited.gguf", apply), tmp_path / "out")


TENSORS: list[tuple[str, Any, str]] = [
    ("blk.0.attn_rot.weight", np.zeros((4, 4), np.float16), "unknown tensor 'blk.0.attn_rot.weight'"),
    ("blk.0.ffn_up.weight", np.zeros((64, 64), np.float16), "'blk.0.ffn_up.weight': got shape (64, 64), expected (128, 64)"),
    ("blk.1.attn_norm.weight", None, "missing tensor 'blk.1.attn_norm.weight' (expected shape (64,))"),
    ("token_embd.weight", None, "missing tensor 'token_embd.weight'"),
    ("blk.0.ffn_up.weight", np.full((128, 64), np.inf, np.float16), "'blk.0.ffn_up.weight': a value is not finite"),
    ("blk.0.attn_q.bias", np.zeros(64, np.float16), "missing tensor 'blk.0.attn_k.bias'"),
    ("rope_freqs.weight", np.linspace(1, 3, 8).astype(np.float16), "'rope_freqs.weight': not the factors of llama3's scaling"),
    ("rope_freqs.weight", np.ones(4, np.float16), "'rope_freqs.weight': got shape (4,), expected (8,)"),
]


@pytest.mark.parametrize(("name", "values", "message"), TENSORS)
def test_tensors(name: str, values: Any, message: str, source: Source, tmp_path: Path) -> None:
    def apply(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors.pop(name) if values is None else tensors.update({name: (values, F16)})

    assert message in refused(edit(source.file, tmp_path / "edited.gguf", apply), tmp_path / "out")


def test_values_beyond_float16(source: Source, tmp_path: Path) -> None:
    def apply(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["output_norm.weight"] = (np.full(64, 1e5, np.float32), gguf.GGMLQuantizationType.F32)

    message = refused(edit(source.file, tmp_path / "edited.gguf", apply), tmp_path / "out")
    assert "'output_norm.weight': 100000 is too large for float16" in message


def test_scales_that_are_not_finite(source: Source, tmp_path: Path) -> None:
    tensor = read_gguf(source.file).tensors["blk.1.ffn_gate.weight"]
    content = bytearray(source.file.read_bytes())
    at = content.index(tensor.data.tobytes())
    content[at : at + 2] = np.float16(np.inf).tobytes()
    (tmp_path / "x.gguf").write_bytes(content)
    assert "'blk.1.ffn_gate.weight': a scale is not finite" in refused(tmp_path / "x.gguf", tmp_path / "out")


def test_not_a_gguf_file(source: Source, tmp_path: Path) -> None:
    content = source.file.read_bytes()
    cases = {
        b"": "not a GGUF file (0 bytes)",
        b"x" * 100: "not a GGUF file",
        content[:4] + struct.pack(">I", 3) + content[8:]: "a big-endian GGUF file",
        content[:4] + struct.pack("<I", 1) + content[8:]: "GGUF version 1, expected 2 or 3",
    }
    for number, (data, message) in enumerate(cases.items()):
        (tmp_path / f"{number}.gguf").write_bytes(data)
        assert message in refused(tmp_path / f"{number}.gguf", tmp_path / "out")
    assert "no such file" in refused(tmp_path / "none.gguf", tmp_path / "out")


def test_truncated_anywhere(source: Source, tmp_path: Path) -> None:
    content, file = source.file.read_bytes(), tmp_path / "cut.gguf"
    rng = np.random.default_rng(0)
    for size in [*range(0, 64), *rng.integers(64, len(content), 150), len(content) - 33]:
        file.write_bytes(content[:size])
        assert "truncated" in (message := refused(file, tmp_path / "out")) or "not a GGUF file" in message, size


def test_damage_is_one_line_or_taken(source: Source, tmp_path: Path) -> None:
    """Bytes of the header overwritten, among them counts and lengths: no other error, no endless reading."""
    content, file = source.file.read_bytes(), tmp_path / "damaged.gguf"
    header = content.index(b"token_embd.weight") + 2000
    rng, messages = np.random.default_rng(1), set()
    for number in range(250):
        damaged = bytearray(content)
        for at in rng.integers(4, header, int(rng.integers(1, 5))):
            damaged[at] = rng.integers(0, 256) if number % 2 else 255
        file.write_bytes(damaged)
        try:
            import_gguf(file, tmp_path / "out", overwrite=True)
        except ValueError as error:
            assert "\n" not in str(error)
            messages.add(str(error))
    assert len(messages) > 50


def test_target_folders(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    import_gguf(source.file, out)
    with pytest.raises(ValueError, match="exists already; use --overwrite"):
        import_gguf(source.file, out)
    (out / "old.txt").write_text("x")
    import_gguf(source.file, out, overwrite=True)
    assert not (out / "old.txt").exists() and (out / "model.safetensors").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="holds files that are no model's"):
        import_gguf(source.file, tmp_path / "other", overwrite=True)
    inside = out / "x.gguf"
    inside.write_bytes(source.file.read_bytes())
    with pytest.raises(ValueError, match="holds files that are no model's"):
        import_gguf(inside, out, overwrite=True)
    assert inside.exists()


def test_locked_target(source: Source, tmp_path: Path) -> None:
    program = f"from mtpd_mlx.cli import main; main(['import-gguf', {str(source.file)!r}, '--out', {str(tmp_path / 'out')!r}])"
    with locked(tmp_path / "out", beside=True):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "another run" in done.stderr and not (tmp_path / "out").exists()


def test_the_command_says_what_it_kept(source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-gguf", str(source.file), "--out", str(tmp_path / "out")]) == 0
    assert "exact: 13 Q4_0, 2 Q8_0; in float16: 5 F32" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "4/8 bits, groups of 32" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["generate", "FILE", "--plain", "--prompt", "x"], ["inspect", "FILE"]])
def test_a_gguf_file_as_a_model_says_the_command(
    command: list[str], source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(source.file) if word == "FILE" else word for word in command]) == 1
    assert f"is a GGUF file; make a model folder of it: mtpd import-gguf {source.file} --out DIR" in capsys.readouterr().err


def test_other_types_need_the_package(tmp_path: Path) -> None:
    """Exact ones, and floating point, do not."""
    for name, kind in (("exact", "Q4_1"), ("other", "Q5_1")):
        (tmp_path / name).mkdir()
        write_source("llama", tmp_path / name, lambda _, kind=kind: kind)
    program = (
        "import sys\n"
        "sys.modules['gguf'] = None\n"
        "from mtpd_mlx.cli import main\n"
        f"folder = {str(tmp_path)!r}\n"
        "print([main(['import-gguf', f'{folder}/{n}/model.gguf', '--out', f'{folder}/out-{n}']) for n in ('exact', 'other')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[0, 1]", done.stderr
    assert len(done.stderr.splitlines()) == 1 and 'pip install -e ".[gguf]"' in done.stderr
