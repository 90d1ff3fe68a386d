"""Every family through the MLX decoder, in every plan and row by row: the tokens of plain decoding."""

from pathlib import Path

from family_models import Reference, prompts

from mtpd_mlx.decoding.open import open_decoder
from mtpd_mlx.decoding.tuning.plan import Plan
from mtpd_mlx.measure.step_model import MLXModel
from mtpd_mlx.model.load_save import load_checkpoint
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.rounds import StepBackend


def test_mlx_decoder_in_every_plan(reference: Reference, checkpoint: Path) -> None:
    base, heads, _ = load_checkpoint(checkpoint)
    plans = [Plan(), Plan("fixed"), Plan("fixed", write="scatter", products="rows")]  # a CPU's, and two of a GPU
    options = [DecodingConfig(plan=str(plan)) for plan in plans] + [DecodingConfig(exact=True)]
    for prompt in prompts(reference):
        expected = decode(StepBackend(MLXModel(base, None)), prompt)
        for option in options:
            assert decode(open_decoder(base, heads, option), prompt) == expected, option


def decode(backend: Backend, prompt: list[int]) -> list[int]:
    return [t for chunk in generate(backend, prompt, max_tokens=20) for t in chunk.tokens]
