"""Every family through the MLX decoder: the tokens of plain decoding. In every plan and row by row where attention is unlike
others': windows, soft caps, layers without positions, scales and tables that change along the text, experts."""

from pathlib import Path

from family_models import Reference, prompts
from helpers.decode import oracle, text

from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.decode import DecodingConfig

UNLIKE = ("gemma2", "gemma3", "ministral3", "mistral-window", "phi3-longrope", "qwen3-moe", "smollm3")


def test_mlx_decoder_in_every_plan(reference: Reference, checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    options = [DecodingConfig(plan="fixed")]
    if base.dims.recurrent is not None:
        options = [DecodingConfig(plan="growing"), DecodingConfig(exact=True)]
    if reference.name in UNLIKE:
        plans = [Plan(), Plan("fixed"), Plan("fixed", write="scatter", products="rows")]  # a CPU's, and two of a GPU
        options = [DecodingConfig(plan=str(plan)) for plan in plans] + [DecodingConfig(exact=True)]
    for prompt in prompts(reference):
        expected = oracle(base, prompt, 20)
        for option in options:
            assert text(open_decoder(base, heads, option), prompt, 20) == expected, option
