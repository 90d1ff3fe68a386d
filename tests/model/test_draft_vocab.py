"""Heads that draft inside a part of the vocabulary: loss, choice of tokens, checkpoint, decoding, looping."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tiny import FAMILIES, LLAMA, VOCAB, cycle_batch, write_base, write_checkpoint

from mtpd_mlx.cli import main
from mtpd_mlx.data.packing import target_masks
from mtpd_mlx.losses.definitions import Teacher, cross_entropy, end_to_end_tv, head_loss, total_variation
from mtpd_mlx.losses.objective import Model, objective
from mtpd_mlx.measure.acceptance import match_tables
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.base import Base
from mtpd_mlx.model.generate import generate_greedy
from mtpd_mlx.model.heads import init_heads, shift_left
from mtpd_mlx.model.load_save import load_arrays, load_checkpoint, save_heads
from mtpd_mlx.model.new_base import new_base
from mtpd_mlx.model.runtime import mx, nn
from mtpd_mlx.options.train import LOSSES, LossConfig
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.rounds import StepBackend
from mtpd_mlx.speculative.stats import walk

DRAFTS = sorted(np.random.default_rng(0).choice(VOCAB, 40, replace=False).tolist())
PROMPTS = [[5, 9, 14], list(range(20)), [7]]


def naive(model: Model, cfg: LossConfig, tokens: mx.array, masks: np.ndarray, scale: mx.array) -> mx.array:
    """By definition: student and teacher logits cut to the draft vocabulary, no CE where the target lies outside."""
    main, states = model.states(tokens)
    ids = mx.array(DRAFTS)
    main_logits = model.base.logits(main)
    make = Teacher.detach if cfg.detach_teacher else Teacher.attached
    teacher = make(main_logits[..., ids], cfg.top_n if cfg.loss in ("mtpd", "kl") else len(DRAFTS))
    total, tvs = mx.array(0.0), []
    place = np.full(VOCAB, -1)
    place[DRAFTS] = np.arange(len(DRAFTS))
    for k, state in enumerate(states, start=1):
        logits, shifted = model.base.logits(state)[..., ids], teacher.shift(k)
        targets = mx.array(place)[shift_left(tokens, k + 1)]
        if cfg.loss == "tv":
            tvs.append(total_variation(logits, shifted))
            continue
        inside = targets >= 0
        both = head_loss(cfg, logits, shifted, mx.maximum(targets, 0), 0.3, 0.7)
        without = head_loss(cfg, logits, shifted, mx.maximum(targets, 0), 0.0, 0.7)
        rows = mx.where(inside, both, without)
        total = total + (rows * mx.array(masks[k])).sum() * scale[k]
    if tvs:
        total = (end_to_end_tv(tvs) * mx.array(masks[-1])).sum() * scale[-1]
    if model.joint:
        total = total + (cross_entropy(main_logits, shift_left(tokens, 1)) * mx.array(masks[0])).sum() * scale[0]
    return total


KINDS = ("tied", "untied", "quantised tied", "quantised untied", "joint tied", "joint untied")
FREE = [("mtpd", "joint tied, free"), ("kl", "joint tied, free"), ("mtpd", "joint, free, untied")]  # the teacher not detached


@pytest.mark.parametrize(("loss", "kind"), [*product(LOSSES, KINDS), *FREE])
def test_loss_and_gradients(loss: str, kind: str) -> None:
    from mlx.utils import tree_flatten

    base = new_base(LLAMA | {"tie_word_embeddings": not kind.endswith("untied")}, 0)
    heads = init_heads(base, 2, "postnorm", 1)
    heads.draft_among(mx.array(DRAFTS, mx.int32))
    if "quantised" in kind:
        nn.quantize(base.model, 32, 4)
        base = Base(base.model, base.config | {"quantization": {"group_size": 32, "bits": 4}}, None)
    model = Model(base, heads, "joint" in kind)
    batch = cycle_batch(2, 19)
    masks = target_masks(batch, 2)
    scale = mx.array(1.0 / masks.sum(axis=(1, 2))).astype(mx.float32)
    tokens, cfg = mx.array(batch.tokens), LossConfig(loss=loss, top_n=11, alpha=(0.3,), beta=(0.7,))
    cfg = replace(cfg, detach_teacher="free" not in kind)

    def ours(params: dict) -> mx.array:
        model.bind(params)
        return objective(model, model.fused_loss(cfg), tokens, mx.array(masks), scale)[0]

    def definition(params: dict) -> mx.array:
        model.bind(params)
        return naive(model, cfg, tokens, masks, scale)

    params = model.trainable()
    got, want = (dict(tree_flatten(mx.grad(f)(params))) for f in (ours, definition))
    for name in want:
        np.testing.assert_allclose(np.array(got[name]), np.array(want[name]), atol=1e-5, rtol=2e-4, err_msg=name)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    base = write_base(tmp_path / "base", FAMILIES["llama-untied"], scale=2.0)
    return write_checkpoint(tmp_path / "heads", base, 3, noise=0.02, draft_tokens=DRAFTS)


def decode(model: MLXModel, prompt: list[int], count: int) -> tuple[list[int], list[list[int]]]:
    tokens, drafts = [], []
    original = model.draft

    def watched(next_token: int) -> list[int]:
        drafts.append(original(next_token))
        return drafts[-1]

    model.draft = watched  # type: ignore[method-assign]
    for chunk in generate(StepBackend(model), prompt, max_tokens=count):
        tokens += chunk.tokens
    return tokens, drafts


def test_decoding_is_plain_decoding_and_drafts_stay_inside(checkpoint: Path) -> None:
    base, heads, config = load_checkpoint(checkpoint)
    assert config.draft_vocab == len(DRAFTS)
    for prompt in PROMPTS:
        tokens, drafts = decode(MLXModel(base, heads), prompt, 40)
        assert tokens == decode(MLXModel(base, None), prompt, 40)[0]
        assert drafts and {t for guesses in drafts for t in guesses} <= set(DRAFTS)


def test_teacher_forced_matches_are_the_decoders(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    text = generate_greedy(base, [PROMPTS[1]], 40, frozenset())[0]
    accepted = []
    for chunk in generate(StepBackend(MLXModel(base, heads)), text.prompt, max_tokens=40):
        if chunk.round is not None and chunk.round.proposed == 3:
            accepted.append(chunk.round.accepted)
    expected = walk(match_tables(base, heads, [text])[0])
    assert accepted[: len(expected)] == expected[: len(accepted)] and len(expected) > 5


def test_whole_vocabulary_as_draft_vocabulary_changes_nothing(checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    heads.draft_among(mx.arange(VOCAB, dtype=mx.int32))
    everything = decode(MLXModel(base, heads), PROMPTS[0], 30)
    heads.draft_among(None)
    assert decode(MLXModel(base, heads), PROMPTS[0], 30) == everything


@pytest.mark.parametrize("bits", [None, 8])
def test_checkpoint_round_trip(bits: int | None, checkpoint: Path, tmp_path: Path) -> None:
    base, heads, config = load_checkpoint(checkpoint)
    save_heads(tmp_path / "again", heads, config, bits)
    again = load_checkpoint(tmp_path / "again", str(base.path))[1]
    assert again.draft_tokens is not None and again.draft_tokens.tolist() == DRAFTS
    assert "draft_tokens" not in again.parameters()


def test_bad_maps_are_refused(checkpoint: Path) -> None:
    arrays = load_arrays(checkpoint / "heads.safetensors")
    for change, words in (
        ([*DRAFTS[:-1], VOCAB], "ascending token ids"),
        (DRAFTS[::-1], "ascending token ids"),
        (DRAFTS[:-1], r"got shape \(39,\), expected \(40,\)"),
    ):
        mx.save_safetensors(str(checkpoint / "heads.safetensors"), arrays | {"draft_tokens": mx.array(change, mx.int32)})
        with pytest.raises(ValueError, match=words):
            load_checkpoint(checkpoint)
    values = json.loads((checkpoint / "mtp_config.json").read_text())
    (checkpoint / "mtp_config.json").write_text(json.dumps(values | {"draft_vocab": VOCAB + 1}))
    with pytest.raises(ValueError, match="draft_vocab: got 98"):
        load_checkpoint(checkpoint)


def test_size_of_the_draft_vocabulary() -> None:
    from mtpd_mlx.data import PackedDataset
    from mtpd_mlx.train.setup import choose_draft_tokens

    rows, heads = PackedDataset(cycle_batch(1, 6), 1, 0), init_heads(new_base(LLAMA, 0), 1, "postnorm", 0)
    choose_draft_tokens(heads, VOCAB, rows, VOCAB)
    assert heads.draft_tokens is None  # the whole vocabulary
    choose_draft_tokens(heads, 20, rows, VOCAB)
    chosen = heads.draft_tokens.tolist()  # type: ignore[union-attr]
    assert len(chosen) == 20 and set(rows.rows.tokens[0].tolist()) <= set(chosen) and chosen == sorted(chosen)
    choose_draft_tokens(heads, None, rows, VOCAB)
    with pytest.raises(ValueError, match="got 30, the heads have a draft vocabulary of 20 already"):
        choose_draft_tokens(heads, 30, rows, VOCAB)
    with pytest.raises(ValueError, match=rf"--draft-vocab: got {VOCAB + 1}, expected 1\.\.{VOCAB}"):
        choose_draft_tokens(init_heads(new_base(LLAMA, 0), 1, "postnorm", 0), VOCAB + 1, rows, VOCAB)


def test_trained_on_the_most_frequent_tokens_and_kept_by_looping(tiny_base: Path, text_data: Path, tmp_path: Path) -> None:
    from mtpd_mlx.data import load_dataset
    from mtpd_mlx.options.train import DataConfig
    from mtpd_mlx.text.tokenizer import Tokenizer

    out, looped = tmp_path / "out", tmp_path / "looped"
    args = ["--model", str(tiny_base), "--data", str(text_data), "--max-seq-length", "24", "--batch-size", "2"]
    steps = ["--iters", "2", "--warmup", "0", "--steps-per-eval", "1", "--learning-rate", "1e-2"]
    assert main(["train", *args, *steps, "--out", str(out), "--num-heads", "2", "--draft-vocab", "12"]) == 0
    heads = load_checkpoint(out)[1]
    rows = load_dataset(DataConfig((str(text_data),), max_seq_length=24), Tokenizer.from_folder(tiny_base)).train
    ids, counts = np.unique(rows.rows.tokens[rows.rows.segments > 0], return_counts=True)  # type: ignore[union-attr]
    assert heads.draft_tokens is not None
    assert set(counts[np.isin(ids, heads.draft_tokens)].tolist()) >= set(np.sort(counts)[-12:].tolist())
    assert main(["extend", str(out), "--to", "4", "--train-free", "--out", str(looped)]) == 0
    extended = load_checkpoint(looped)
    assert extended[2].draft_vocab == 12 and extended[1].draft_tokens.tolist() == heads.draft_tokens.tolist()  # type: ignore[union-attr]
    cache, cached = tmp_path / "cache", tmp_path / "cached"
    assert main(["cache", *args, "--out", str(cache)]) == 0
    given = ["--batch-size", "2", "--num-heads", "2", "--draft-vocab", "12"]
    assert main(["train", "--cache", str(cache), *steps, "--out", str(cached), *given]) == 0
    assert load_checkpoint(cached)[1].draft_tokens.tolist() == heads.draft_tokens.tolist()  # type: ignore[union-attr]
    last = []
    for folder in (out, cached):
        records = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
        last.append([r["valid"]["head_loss"] for r in records if "valid" in r][-1])
    np.testing.assert_allclose(last[0], last[1], rtol=1e-4)
