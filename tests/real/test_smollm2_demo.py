"""The demo's real model as it is published, where an earlier demo has fetched it: nothing is downloaded here."""

from pathlib import Path

import pytest
from mtpd_onnx.export.export import export_checkpoint
from mtpd_onnx.runtime.open import open_folder

from mtpd_mlx.checkpoints.fingerprint import fingerprint_base
from mtpd_mlx.checkpoints.format import read_config
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.demo.models import SMOLLM2, import_smollm2
from mtpd_mlx.hub.packages import SMOLLM2 as PACKAGE
from mtpd_mlx.hub.packages import cache_folder
from mtpd_mlx.measure.parity import decode_all
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.export import ExportOptions
from mtpd_mlx.text.prompts import encode_prompts
from mtpd_mlx.text.tokenizer import Tokenizer

CACHED = cache_folder() / "packages" / f"{PACKAGE.name}-{PACKAGE.version}" / Path(PACKAGE.member).name
TOKENS = 20


@pytest.mark.slow
@pytest.mark.skipif(not CACHED.is_file(), reason="the package is not in the cache (make demo fetches it)")
def test_the_shipped_heads_draft_for_the_published_integers(tmp_path: Path) -> None:
    folder = import_smollm2(tmp_path / "model")
    assert fingerprint_base(folder) in read_config(SMOLLM2.heads).base.same_weights
    base, heads, _ = load_checkpoint(SMOLLM2.heads, str(folder), dequantize=True)
    tokenizer = Tokenizer.from_folder(folder)
    prompts = [encode_prompts(file, tokenizer, 400, 1)[0] for file in SMOLLM2.prompts.values()]
    eos = tokenizer.eos_token_ids
    plain, _ = decode_all(open_decoder(base, None), prompts, TOKENS, eos, plain=True)
    ours, stats = decode_all(open_decoder(base, heads), prompts, TOKENS, eos)
    assert [d.tokens for d in ours] == [d.tokens for d in plain] and stats.tau > 1.7
    export_checkpoint(SMOLLM2.heads, tmp_path / "onnx", ExportOptions(model=str(folder), capacity=512))
    there, _ = decode_all(open_folder(tmp_path / "onnx", provider="cpu"), prompts, TOKENS, eos)
    assert [d.tokens for d in there] == [d.tokens for d in plain]
