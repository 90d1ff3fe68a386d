"""--train lora: what trains, what is written, that mlx-lm reads it, and that the heads belong to the adapted base."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.runs import flags, one_line
from tiny import LLAMA, cycle_batch, write_quantised

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.cli import main
from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.losses.definitions import cross_entropy, heads_objective
from mtpd_mlx.losses.objective import Model, objective
from mtpd_mlx.model.adapters import LORA_KEYS, add_lora, apply_adapter
from mtpd_mlx.model.base import load_base
from mtpd_mlx.model.heads import init_heads
from mtpd_mlx.model.load_save import load_arrays, load_checkpoint
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.options.train import LoraConfig, LossConfig

RUN = flags(iters=10, max_seq_length=32, warmup=2, learning_rate="1e-2", steps_per_eval=5, val_batches=2)
RUN += ["--train", "lora", "--num-layers", "2"]


def train(base: Path, data: Path, out: Path, *extra: str) -> int:
    return main(["train", "--model", str(base), "--data", str(data), "--out", str(out), *RUN, *extra])


def stir(params: dict, scale: float) -> None:
    """Every B of the LoRA layers drawn anew: 0, as they begin, it hides the gradient of A."""
    for block in params["base"]["model"]["layers"]:
        for part in (p for group in block.values() for p in group.values() if "lora_b" in p):
            part["lora_b"] = mx.random.normal(part["lora_b"].shape, key=mx.random.key(3)) * scale


def loss_of(folder: Path) -> float:
    """The main head's loss on rows of its own, of the checkpoint as it is loaded for decoding."""
    base, _, _ = load_checkpoint(folder)
    tokens = mx.array(cycle_batch(2, 24).tokens)
    logits = base.logits(base.norm(base.trunk(tokens)))
    return cross_entropy(logits[:, :-1], tokens[:, 1:]).mean().item()


def losses_of(folder: Path) -> list[float]:
    """Of main head and heads, at the checkpoint's validation."""
    validation = read_config(folder).record["eval"]["validation"]
    return [validation["main_loss"], *validation["head_loss"]]


@pytest.mark.parametrize("bits", [None, 4])
def test_adapters_train_and_the_base_stays(bits: int | None, tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    from mlx_lm.utils import load_adapters

    base_at = tiny_base if bits is None else write_quantised(tmp_path / "q", tiny_base, bits)
    before, out = fingerprint_base(base_at), tmp_path / "out"
    assert train(base_at, text_data, out) == 0
    assert fingerprint_base(base_at) == before and not (out / "base").exists()
    base, heads, config = load_checkpoint(out)
    assert config.base.adapter == "./adapters" and base.adapter == (out / "adapters").resolve() and heads.num_heads == 2
    evaluation, loss = config.record["eval"], config.record["loss"]
    assert evaluation["validation"]["main_loss"] < evaluation["start"]["main_loss"] and loss["detach_teacher"] is False
    settings = json.loads((out / "adapters" / "adapter_config.json").read_text())
    assert settings == {
        "fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 8, "dropout": 0.0, "scale": 20.0},
    }  # fmt: skip
    stock = load_base(str(base_at)).model  # as mlx_lm.generate --adapter-path reads it, not folded in
    load_adapters(stock, str(out / "adapters"))
    tokens = mx.array(cycle_batch(1, 20).tokens)
    np.testing.assert_allclose(np.array(stock(tokens)), np.array(base.model(tokens)), atol=2e-4, rtol=1e-3)


def test_the_heads_decode_with_the_adapted_base_alone(
    tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, prompts = tmp_path / "out", tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one two"}\n{"prompt": "the"}\n')
    assert train(tiny_base, text_data, out) == 0
    assert main(["verify", str(out), "--prompts", str(prompts), "--max-tokens", "12"]) == 0
    assert main(["inspect", str(out)]) == 0 and " with adapter ./adapters (" in capsys.readouterr().out
    shutil.rmtree(out / "adapters")
    assert main(["verify", str(out), "--prompts", str(prompts), "--max-tokens", "12"]) == 1
    assert "its base has the adapter" in capsys.readouterr().err


@pytest.mark.parametrize("checkpointed", [False, True])
def test_interrupted_run_resumes_to_the_same(
    checkpointed: bool, tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ("--learning-rate", "1e-3", *(("--grad-checkpoint",) if checkpointed else ()))
    assert train(tiny_base, text_data, tmp_path / "whole", *extra) == 0
    stop_at(4)
    out = tmp_path / "broken"
    assert train(tiny_base, text_data, out, *extra) == 130
    monkeypatch.undo()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    # Not the weights: arrays that were read may lie otherwise in memory, so that products round otherwise, and AdamW makes
    # whole steps of gradients that are nothing but rounding (keys that all move alike).
    np.testing.assert_allclose(losses_of(out), losses_of(tmp_path / "whole"), rtol=1e-5)


def test_another_base_is_not_resumed_on(
    tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Unlike joint training, whose base is in the resume point, this one stands on the base in its folder."""
    base, out = Path(shutil.copytree(tiny_base, tmp_path / "base")), tmp_path / "out"
    stop_at(1)
    assert train(base, text_data, out) == 130
    monkeypatch.undo()
    weights = load_arrays(base / "model.safetensors")
    mx.save_safetensors(str(base / "model.safetensors"), {n: w * 1.01 for n, w in weights.items()}, metadata={"format": "mlx"})
    assert main(["train", "--resume", "--out", str(out)]) == 1
    assert "base weights" in capsys.readouterr().err


def test_what_replaced_heads_leave(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    """Adapters go with the heads that they belong to, and with no others."""
    out = tmp_path / "out"
    assert train(tiny_base, text_data, out) == 0
    first = loss_of(out)
    assert train(tiny_base, text_data, out) == 1, "not overwritten unasked"
    assert loss_of(out) == first
    assert train(tiny_base, text_data, out, "--overwrite", "--lora-rank", "2", "--loss", "ce") == 0
    assert json.loads((out / "adapters" / "adapter_config.json").read_text())["lora_parameters"]["rank"] == 2
    heads = ["train", "--model", str(tiny_base), "--data", str(text_data), "--out", str(out), *RUN[:-4], "--overwrite"]
    assert main([*heads, "--adapter-path", str(out / "adapters")]) == 0
    assert load_checkpoint(out)[2].base.adapter == "./adapters", "still needed"
    assert main(heads) == 0 and load_checkpoint(out)[2].base.adapter is None
    assert (out / "adapters").exists(), "for these heads it was a user's, whoever made it"
    shutil.rmtree(out)
    assert train(tiny_base, text_data, out) == 0 and main(heads) == 0
    assert not (out / "adapters").exists() and load_checkpoint(out)[2].base.adapter is None


@pytest.mark.parametrize("kind", ["lora", "joint"])
def test_a_save_that_fails_leaves_what_was_there(
    kind: str, tiny_base: Path, text_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters or base, and heads: all are new or none is."""
    from mtpd_mlx.model import load_save as checkpoint

    out = tmp_path / "out"
    extra = [] if kind == "lora" else ["--train", "joint"]
    steps = RUN[:-4] if extra else RUN
    arguments = ["train", "--model", str(tiny_base), "--data", str(text_data), "--out", str(out), *steps]
    assert main([*arguments, *extra]) == 0
    before = loss_of(out)

    def full(file: Path, arrays: Any) -> None:
        if file.name.endswith("heads.safetensors"):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_arrays", full)
        assert main([*arguments, *extra, "--overwrite", "--seed", "4"]) == 1
    assert loss_of(out) == before


def test_heads_that_become_their_own_start_resume(
    tiny_base: Path, text_data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--init-heads OUT --out OUT: after the first save OUT's heads belong to the adapted base."""
    out = tmp_path / "out"
    heads = ["train", "--model", str(tiny_base), "--data", str(text_data), "--out", str(out), *RUN[:-4]]
    assert main(heads) == 0
    stop_at(7)
    assert train(tiny_base, text_data, out, "--init-heads", str(out), "--overwrite") == 130
    monkeypatch.undo()
    assert load_checkpoint(out)[2].base.adapter == "./adapters"
    assert main(["train", "--resume", "--out", str(out)]) == 0


def test_their_base_in_another_layout_needs_its_adapter(
    tiny_base: Path, text_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert train(tiny_base, text_data, out) == 0
    assert main(["export-heads", str(out), "--out", str(tmp_path / "served")]) == 1
    assert "with the adapter ./adapters: make one model of them (mlx_lm.fuse)" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["mtpd", "kl", "ce"])
@pytest.mark.parametrize("kind", ["tied", "untied", "quantised", "drafts"])
def test_gradients_are_those_of_the_definition(loss: str, kind: str) -> None:
    from mlx.utils import tree_flatten

    base = new_base(LLAMA | {"tie_word_embeddings": kind != "untied"}, 0)
    heads = init_heads(base, 2, "postnorm", 1)
    if kind == "quantised":
        nn.quantize(base.model, 32, 4)
        base = replace(base, config=base.config | {"quantization": {"group_size": 32, "bits": 4}})
    add_lora(base.model, LoraConfig(num_layers=1, lora_rank=3, lora_scale=2.0), 0)
    model = Model(base, heads, joint=True, lora=True)
    batch = cycle_batch(2, 19)
    masks = target_masks(batch, 2)
    inputs = mx.array(batch.tokens), mx.array(masks), mx.array(1.0 / masks.sum(axis=(1, 2))).astype(mx.float32)
    vocab = base.vocab_size
    if kind == "drafts":  # every token, so that the definition is the same
        heads.draft_among(mx.arange(vocab, dtype=mx.int32))
    cfg = LossConfig(loss=loss, top_n=11, detach_teacher=loss == "ce")

    def ours(params: dict) -> mx.array:
        model.bind(params)
        return objective(model, model.fused_loss(cfg), *inputs)[0]

    def naive(params: dict) -> mx.array:
        model.bind(params)
        tokens, masks, scale = inputs
        main_state, states = model.states(tokens)
        main_logits, floats = base.logits(main_state), masks.astype(mx.float32)
        total, _, _ = heads_objective(cfg, [base.logits(s) for s in states], main_logits, tokens, floats, scale)
        targets = mx.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1)
        return total + (cross_entropy(main_logits, targets) * floats[0]).sum() * scale[0]

    params = model.trainable()
    stir(params, 0.1)
    got, want = (dict(tree_flatten(mx.grad(f)(params))) for f in (ours, naive))
    of_base = [name for name in want if name.startswith("base.")]
    assert of_base and all(name.rsplit(".", 1)[-1] in LORA_KEYS for name in of_base)
    for name in want:
        assert np.abs(np.array(want[name])).max() > 0, name
        np.testing.assert_allclose(np.array(got[name]), np.array(want[name]), atol=1e-5, rtol=2e-4, err_msg=name)


def test_folded_in_it_is_the_same_model(tmp_path: Path) -> None:
    from mtpd_mlx.model.adapters import adapter_settings, write_adapter

    cfg = LoraConfig(num_layers=-1, lora_rank=4)
    trained, plain = new_base(LLAMA, 0), new_base(LLAMA, 0)
    add_lora(trained.model, cfg, 0)
    model = Model(trained, init_heads(trained, 1, "postnorm", 0), joint=True, lora=True)
    tokens = mx.array(cycle_batch(1, 20).tokens)
    np.testing.assert_array_equal(np.array(trained.model(tokens)), np.array(plain.model(tokens)))  # they change nothing yet
    params = model.trainable()
    stir(params, 0.05)
    model.bind(params)
    write_adapter(tmp_path, trained.model, adapter_settings(cfg))
    apply_adapter(plain.model, tmp_path)
    assert np.abs(np.array(plain.model(tokens) - new_base(LLAMA, 0).model(tokens))).max() > 1e-3
    np.testing.assert_allclose(np.array(trained.model(tokens)), np.array(plain.model(tokens)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num-layers", "99"], "--num-layers: got 99, expected 1..2 (the base's layers) or -1"),
        (["--num-layers", "0"], "--num-layers: got 0"),
        (["--adapter-path", "somewhere"], "--train lora: not with --adapter-path"),
        (["--lora-rank", "0"], "--lora-rank: got 0, expected at least 1"),
        (["--cache", "folder"], "which --train lora would change"),
        (["--train", "heads"], "--num-layers: expected --train lora"),
        (["--model-config", "config.json"], "--model-config"),
    ],
)
def test_bad_options_are_one_line(
    flags: list[str], said: str, tiny_base: Path, text_data: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(tiny_base, text_data, tmp_path / "out", *flags) == 1
    one_line(capsys, said)
    assert not (tmp_path / "out" / "mtp_config.json").exists()
