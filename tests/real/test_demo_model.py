"""The shipped model on real text: legible figures, exact decoding, both runtimes, within the size limit."""

from pathlib import Path

import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder

from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.demo.models import ASSETS
from mtpd_mlx.measure.acceptance import match_tables
from mtpd_mlx.measure.evaluate import measure, repetition
from mtpd_mlx.measure.parity import decode_all
from mtpd_mlx.model.generate import generate_greedy
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.speculative.stats import walk
from mtpd_mlx.text.prompts import encode_prompts
from mtpd_mlx.text.tokenizer import Tokenizer

TOKENS = 32


@pytest.fixture(scope="module")
def shipped() -> tuple:
    base, heads, _ = load_checkpoint(ASSETS / "heads", dequantize=True)
    tokenizer = Tokenizer.from_folder(ASSETS / "base")
    prompts = encode_prompts(ASSETS / "text" / "prompts.jsonl", tokenizer, 500, 6)
    return base, heads, tokenizer, prompts


def test_it_fits_the_repository() -> None:
    assert sum(f.stat().st_size for f in ASSETS.rglob("*.safetensors")) <= 16e6


def test_its_heads_write_its_own_text(shipped: tuple) -> None:
    base, heads, tokenizer, prompts = shipped
    plain, ours = (decode_all(open_decoder(base, h), prompts[:1], 12, tokenizer.eos_token_ids)[0] for h in (None, heads))
    assert ours[0].tokens == plain[0].tokens and len(ours[0].tokens) == 12


@pytest.mark.slow
def test_teacher_forcing_decoder_and_runtimes_agree_on_real_text(shipped: tuple, tmp_path: Path) -> None:
    base, heads, tokenizer, prompts = shipped
    eos = tokenizer.eos_token_ids
    plain, _ = decode_all(open_decoder(base, None), prompts, TOKENS, eos, plain=True)
    ours, stats = decode_all(open_decoder(base, heads), prompts, TOKENS, eos)
    assert [d.tokens for d in ours] == [d.tokens for d in plain]
    texts = generate_greedy(base, [p.tokens for p in prompts], TOKENS, eos)
    assert [t.tokens for t in texts] == [d.tokens for d in plain]
    rounds = iter(stats.accepted)
    for text, table in zip(texts, match_tables(base, heads, texts), strict=True):
        counted = walk(table)
        assert [next(rounds) for _ in counted] == counted
        emitted = 1 + sum(c + 1 for c in counted)
        while emitted < len(text.tokens):  # rounds whose last drafts lie past the text
            emitted += next(rounds) + 1
    assert next(rounds, None) is None
    figures = measure(base, heads, texts)
    assert figures["tau"] > 2.0 and repetition(texts) > 0.6
    export_checkpoint(ASSETS / "heads", tmp_path / "onnx", ExportOptions(capacity=512))
    for is_plain in (False, True):
        folder = open_folder(tmp_path / "onnx", provider="cpu", plain=is_plain)
        assert [d.tokens for d in decode_all(folder, prompts, TOKENS, eos, is_plain)[0]] == [d.tokens for d in plain]
