"""Heads inside a model's own checkpoint: written in every layout, read back bit for bit, refused where they do not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder
from tiny import LLAMA, write_base, write_checkpoint, write_quantised

import mtpd_mlx
from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.checkpoints.shipped.detect import shipped_heads
from mtpd_mlx.checkpoints.shipped.read import import_heads
from mtpd_mlx.checkpoints.shipped.write import export_heads
from mtpd_mlx.cli import main
from mtpd_mlx.files.safetensors import Raw, RawTensors, read_header, write_raw
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.model.runtime import mx
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.rounds import StepBackend

GEMMA2 = LLAMA | {"model_type": "gemma2", "query_pre_attn_scalar": 16, "hidden_act": "gelu_pytorch_tanh"}
QWEN3_MOE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
BASES = {"llama": LLAMA, "mimo": LLAMA | {"model_type": "mimo", "tie_word_embeddings": False}, "gemma2": GEMMA2}
BASES |= {"qwen3_moe": QWEN3_MOE, "qwen3_moe_hf": QWEN3_MOE, "qwen3": LLAMA | {"model_type": "qwen3"}}


def tensors(checkpoint: Path) -> dict[str, Raw]:
    source = RawTensors([checkpoint / "heads.safetensors"])
    return {name: source[name] for name in source.table}


def roughen(base: Path) -> None:
    """Random norms, so that a forgotten one shows."""
    source = RawTensors([base / "model.safetensors"])
    rng = np.random.default_rng(0)
    changed = {}
    for name in source.table:
        raw = source[name]
        changed[name] = Raw.of_floats(raw.floats() + rng.normal(0, 0.1, raw.bits.shape).astype("f")) if "norm" in name else raw
    write_raw(base / "model.safetensors", changed)


def experts_one_by_one(base: Path) -> None:
    """As Hugging Face folders hold them."""
    source = RawTensors([base / "model.safetensors"])
    changed = {}
    for name in source.table:
        stem, _, part = name.partition("switch_mlp.")
        rows = (
            {f"{stem}experts.{e}.{part}": Raw("F32", source[name].bits[e]) for e in range(4)} if part else {name: source[name]}
        )
        changed |= rows
    write_raw(base / "model.safetensors", changed)


@pytest.mark.parametrize(
    ("layout", "family", "num_heads"),
    [("nextn", name, 2) for name in BASES] + [("mimo", "mimo", 1), ("mtp", "qwen3", 1), ("mtp", "gemma2", 1)],
)
def test_round_trip_is_bit_exact(layout: str, family: str, num_heads: int, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES[family])
    roughen(base)
    if family == "qwen3_moe_hf":
        experts_one_by_one(base)
    checkpoint = write_checkpoint(tmp_path / "heads", base, num_heads, noise=0.3)
    export_heads(checkpoint, base, tmp_path / "model", layout, copy_ends=layout == "nextn", with_base=True)
    found = import_heads(tmp_path / "model", tmp_path / "again", str(tmp_path / "model"))
    assert found["heads"] == num_heads and found["format"] == layout
    before, after = tensors(checkpoint), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, raw in before.items():
        assert np.array_equal(raw.bits, after[name].bits), name
    whole = load_base(str(tmp_path / "model"))  # the heads in it do not disturb the base
    text = [5, 6, 7, 8, 9]
    assert np.array_equal(MLXModel(whole, None).logits(text), MLXModel(load_base(str(base)), None).logits(text))
    _, heads, config = load_checkpoint(tmp_path / "again")
    assert heads.num_heads == num_heads and not config.post_norms and config.base.id == "../model"


def test_heads_beside_a_quantised_base(tmp_path: Path) -> None:
    """Heads stay in floating point; their block is the base's as it is unpacked, each matrix with its own settings."""
    base = write_quantised(tmp_path / "base", write_base(tmp_path / "plain"), bits=4)
    checkpoint = write_checkpoint(tmp_path / "heads", base, 2, noise=0.3)
    export_heads(checkpoint, base, tmp_path / "model", "nextn", with_base=True)
    import_heads(tmp_path / "model", tmp_path / "again", str(tmp_path / "model"))
    before, after = tensors(checkpoint), tensors(tmp_path / "again")
    assert before.keys() == after.keys() and all(np.array_equal(raw.bits, after[n].bits) for n, raw in before.items())
    assert load_checkpoint(tmp_path / "again")[1].num_heads == 2
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    last = f"model.layers.{config['num_hidden_layers'] - 1}"
    config["quantization"] |= {f"{last}.self_attn.k_proj": {"group_size": 16, "bits": 4}}  # the tensors say otherwise
    file.write_text(json.dumps(config))
    import_heads(tmp_path / "model", tmp_path / "third", str(tmp_path / "model"))
    assert all(np.array_equal(raw.bits, after[name].bits) for name, raw in tensors(tmp_path / "third").items())


@pytest.mark.parametrize(("layout", "count"), [("nextn", 2), ("mimo", 1)])
def test_imported_heads_go_back_where_they_came_from(
    layout: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """import -> export -> import, into the model that ships them and into the same model without them."""
    base = write_base(tmp_path / "base")
    export_heads(
        write_checkpoint(tmp_path / "heads", base, count, noise=0.3), base, tmp_path / "theirs", layout, with_base=True
    )
    with_own_norm(tmp_path / "theirs")
    merged = write_merged(tmp_path / "theirs", tmp_path / "merged")  # as published models are: one file, base and heads
    assert main(["import-heads", str(merged), "--out", str(tmp_path / "imported")]) == 0
    for name in ("theirs", "merged", "base"):
        model, out = tmp_path / name, tmp_path / f"from-{name}"
        capsys.readouterr()
        assert main(["export-heads", "--with-base", str(tmp_path / "imported"), "--model", str(model), "--out", str(out)]) == 0
        assert (f"in place of the {count} that the base ships" in capsys.readouterr().out) == (name != "base")
        import_heads(out, tmp_path / f"again-{name}", str(out))
        before, after = tensors(tmp_path / "imported"), tensors(tmp_path / f"again-{name}")
        assert before.keys() == after.keys()
        assert all(np.array_equal(raw.bits, after[n].bits) for n, raw in before.items())
        table, config = RawTensors.of_model(out, beside=True).table, json.loads((out / "config.json").read_text())
        assert (
            sum(n.startswith(("model.mtp_layers.", "mtp.")) for n in table) == 0 and config["num_nextn_predict_layers"] == count
        )
    short = write_checkpoint(tmp_path / "one", base, 1)  # fewer heads than before: none of theirs stays
    export_heads(short, merged, tmp_path / "fewer", "mtp", with_base=True)
    config = json.loads((tmp_path / "fewer" / "config.json").read_text())
    assert config["mtp_num_hidden_layers"] == 1 and "num_nextn_predict_layers" not in config
    assert shipped_heads(config, RawTensors.of_model(tmp_path / "fewer", beside=True).table)["heads"] == 1  # type: ignore[index]


def write_merged(model: Path, out: Path) -> Path:
    """The same model in one file."""
    source = RawTensors.of_model(model, beside=True)
    shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    write_raw(out / "model.safetensors", {name: source[name] for name in source.table})
    return out


def test_shipped_heads_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    export_heads(write_checkpoint(tmp_path / "heads", base, 1), base, tmp_path / "ships", with_base=True)
    merged = write_merged(tmp_path / "ships", tmp_path / "merged")
    assert "model.layers.2.eh_proj.weight" in read_header(merged / "model.safetensors")[0]
    assert fingerprint_base(merged) == fingerprint_base(base) == fingerprint_base(tmp_path / "ships")
    assert fingerprint_base(write_base(tmp_path / "other", seed=3)) != fingerprint_base(base)
    demo = Path(mtpd_mlx.__file__).parent / "assets" / "demo"  # as it was before there was this rule
    assert fingerprint_base(demo / "base") == read_config(demo / "heads").base.fingerprint


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "qwen3_moe_hf", "phi3"])
def test_stock_mlx_lm_loads_what_we_write(family: str, tmp_path: Path) -> None:
    import mlx_lm.utils

    config = BASES.get(family, LLAMA | {"model_type": family})
    spelt_out = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}  # mlx_lm assumes nothing here
    base = write_base(tmp_path / "base", config | (spelt_out if family == "qwen3_moe_hf" else {}))
    if family == "qwen3_moe_hf":
        experts_one_by_one(base)
    export_heads(write_checkpoint(tmp_path / "heads", base, 2), base, tmp_path / "model", with_base=True)
    models = [mlx_lm.utils.load_model(folder)[0] for folder in (base, tmp_path / "model")]
    tokens = mx.array([[5, 6, 7, 8]])
    assert np.array_equal(*(np.array(model(tokens)) for model in models))


def test_a_draft_vocabulary_that_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1, draft_tokens=[1, 5, 9])
    assert main(["export-heads", "--with-base", str(checkpoint), "--out", str(tmp_path / "model")]) == 0
    assert "draft vocabulary of 3 tokens has no place" in capsys.readouterr().out


def test_projection_order_and_norms_in_the_file(tmp_path: Path) -> None:
    """[embedding; hidden] in nextn, [hidden; embedding] in mimo; Gemma's convention for every norm, without the 1."""
    base = write_base(tmp_path / "base", GEMMA2)
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1, noise=0.1)
    ours = tensors(checkpoint)["heads.0.eh_proj.weight"].floats()
    for layout, name in (("nextn", "model.layers.2.eh_proj.weight"), ("mimo", "model.mtp_layers.0.input_proj.weight")):
        export_heads(checkpoint, base, tmp_path / layout, layout, with_base=True)
        stored = RawTensors([tmp_path / layout / "mtp-heads.safetensors"])
        expected = ours if layout == "mimo" else np.concatenate([ours[:, 64:], ours[:, :64]], axis=1)
        assert np.array_equal(stored[name].floats(), expected)
    hnorm = stored["model.mtp_layers.0.hidden_layernorm.weight"].floats()
    np.testing.assert_allclose(hnorm, tensors(checkpoint)["heads.0.hnorm.weight"].floats() - 1, atol=1e-6)
    final = RawTensors([base / "model.safetensors"])["model.norm.weight"].floats()
    np.testing.assert_allclose(stored["model.mtp_layers.0.final_layernorm.weight"].floats(), final, atol=1e-6)


def with_own_norm(folder: Path) -> None:
    """The heads' final norms become other ones than the base's."""
    file = folder / "mtp-heads.safetensors"
    source, own = RawTensors([file]), ("shared_head.norm.weight", "final_layernorm.weight")
    changed = {n: Raw.of_floats(source[n].floats() * 1.5) if n.endswith(own) else source[n] for n in source.table}
    write_raw(file, changed)


def test_a_norm_of_their_own_is_kept_and_decodes_alike_on_both_runtimes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 2, noise=0.05)
    export_heads(checkpoint, base, tmp_path / "model", with_base=True)
    with_own_norm(tmp_path / "model")
    import_heads(tmp_path / "model", tmp_path / "own", str(tmp_path / "model"))
    assert read_config(tmp_path / "own").post_norms
    base_model, heads, _ = load_checkpoint(tmp_path / "own")
    assert main(["extend", str(tmp_path / "own"), "--to", "4", "--train-free", "--out", str(tmp_path / "longer")]) == 0
    assert load_checkpoint(tmp_path / "longer")[1].num_heads == 4
    for layout in ("fused", "split"):
        export_checkpoint(tmp_path / "own", tmp_path / layout, ExportOptions(layout=layout))
    backends = [StepBackend(MLXModel(base_model, heads))]
    backends += [open_folder(tmp_path / layout, provider="cpu", num_threads=1) for layout in ("fused", "split")]
    seen = []
    for backend in backends:
        chunks = list(generate(backend, [5, 6, 7, 8, 9], max_tokens=30))
        seen.append([(c.tokens, c.round and c.round.accepted) for c in chunks])
    assert seen[0] == seen[1] == seen[2]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = write_base(tmp_path / "base")
    checkpoint = write_checkpoint(tmp_path / "heads", base, 1)
    export_heads(checkpoint, base, tmp_path / "good", with_base=True)

    def refused(word: str, *arguments: str) -> None:
        assert main(list(arguments)) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and word in lines[0], lines

    def broken(name: str, change: Any) -> str:
        folder = Path(shutil.copytree(tmp_path / "good", tmp_path / name))
        change(folder)
        return str(folder)

    def config(folder: Path, **values: Any) -> None:
        text = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(text | values))

    def drop(folder: Path) -> None:
        source = RawTensors([folder / "mtp-heads.safetensors"])
        kept = {n: source[n] for n in source.table if not n.endswith("up_proj.weight")}
        write_raw(folder / "mtp-heads.safetensors", kept)

    out = ["--out", str(tmp_path / "never")]
    refused("ships no MTP heads", "import-heads", str(base), *out)
    flagged = broken("flag", lambda f: ((f / "mtp-heads.safetensors").unlink(), config(f, num_nextn_predict_layers=3)))
    refused("announces 3, but there are no tensors", "import-heads", flagged, *out)
    refused("missing key", "import-heads", broken("drop", drop), *out)
    other = broken("other", lambda f: config(f, model_type="deepseek_v3"))
    refused("deepseek_v3", "import-heads", other, *out)
    refused("holds a checkpoint", "import-heads", str(tmp_path / "good"), "--out", str(checkpoint))
    wrong = write_base(tmp_path / "wrong", seed=3)
    refused("another base", "export-heads", str(checkpoint), "--model", str(wrong), *out)
    prenorm = write_checkpoint(tmp_path / "prenorm", base, 1, "prenorm")
    refused("prenorm", "export-heads", str(prenorm), *out)
    two = write_checkpoint(tmp_path / "two", base, 2)
    refused("names for no more", "export-heads", str(two), "--format", "mtp", *out)
    assert not (tmp_path / "never").exists()


def test_the_index_names_every_tensor(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    assert (
        main(
            [
                "export-heads",
                "--with-base",
                str(write_checkpoint(tmp_path / "h", base, 2)),
                "--out",
                str(tmp_path / "m"),
                "--link",
            ]
        )
        == 0
    )
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    for name in {*index.values()}:
        assert {t for t, f in index.items() if f == name} == set(read_header(tmp_path / "m" / name)[0])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["num_nextn_predict_layers"] == 2
    assert not (tmp_path / "m" / "model.safetensors").exists()
