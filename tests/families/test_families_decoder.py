"""Every family through the MLX decoder: the tokens of plain decoding. In every plan and row by row where attention is unlike
others': windows, soft caps, layers without positions, scales and tables that change along the text, experts."""

from pathlib import Path

from family_models import Reference, prompts
from helpers.decode import oracle, text

from mtpd_mlx.decoding.batch import MLXBatch
from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.open_rows import open_batch
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.batch import Turn
from mtpd_mlx.speculative.one_by_one import OneByOne
from mtpd_mlx.speculative.sampling import Sampling

ONE_BY_ONE = ("gemma2",)
UNLIKE = ("gemma2", "gemma3", "gemma4", "gpt-oss", "ministral3", "mistral-window", "phi3-longrope", "qwen3-moe", "smollm3")


def test_mlx_texts_side_by_side(reference: Reference, checkpoint: Path) -> None:
    """Of different lengths, behind windows too; families that cannot are decoded one at a time."""
    base, heads, _ = load_checkpoint(checkpoint)
    batch = open_batch(base, heads, DecodingConfig(), 3, lambda sampling: open_decoder(base, heads))
    one_by_one = reference.name in ONE_BY_ONE or base.dims.recurrent is not None
    assert isinstance(batch, OneByOne if one_by_one else MLXBatch)
    if one_by_one:
        return
    texts = [(batch.join(Sampling()), prompt) for prompt in (*prompts(reference), [5, 6, 7])]
    said = {row: [batch.prefill(row, prompt)] for row, prompt in texts}
    for _ in range(8):
        for row, result in zip(said, batch.round([Turn(row, said[row][-1], 2) for row in said]), strict=True):
            said[row] += result.emitted
    for row, prompt in texts:
        assert said[row][:9] == oracle(base, prompt, 9)
    batch.check()


def test_mlx_decoder_in_every_plan(reference: Reference, checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    options = [] if base.dims.paired else [DecodingConfig(plan="fixed")]
    if base.dims.recurrent is not None:
        options += [DecodingConfig(plan="growing"), DecodingConfig(exact=True)]
    if reference.name in UNLIKE:
        plans = [Plan(), Plan("fixed"), Plan("fixed", write="scatter", products="rows")]  # a CPU's, and two of a GPU
        options = [DecodingConfig(plan=str(plan)) for plan in plans] + [DecodingConfig(exact=True)]
    for prompt in prompts(reference):
        expected = oracle(base, prompt, 20)
        for option in options:
            assert text(open_decoder(base, heads, option), prompt, 20) == expected, option
