"""From Python: train heads, extend them, decode with them. The options of the commands, by the same names.

from mtpd_mlx import api

api.train(model="Qwen/Qwen3-0.6B", data="my_data", out="heads", iters=1000)
api.extend("heads", to=8, data="my_data", out="heads8")
text = api.load("heads8").generate("Write a haiku about rain.")
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mtpd_mlx.commands.loading import open_from
from mtpd_mlx.options.base import RunnableOptions
from mtpd_mlx.options.decode import DecodingConfig
from mtpd_mlx.options.sampling import SamplingOptions
from mtpd_mlx.options.schema import build
from mtpd_mlx.options.text import TextOptions
from mtpd_mlx.options.train import TrainOptions
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.chat_template import Messages
from mtpd_mlx.text.prompts import Prompt, encode_prompt
from mtpd_mlx.text.streaming import StreamDecoder
from mtpd_mlx.text.tokenizer import Tokenizer

Show = Callable[[dict[str, Any]], None]
MAX_TOKENS: int = TextOptions.max_tokens


def silent(record: dict[str, Any]) -> None:
    """Shows nothing."""


def train(*, show: Show = silent, **options: Any) -> dict[str, Any]:
    """Trains heads as `mtpd train` does and writes them to `out`. Returns the evaluation of the step that was kept ("tau",
    "car", "head_loss", "main_loss" on validation text).

    options: those of `mtpd train --help`, with underscores (learning_rate=1e-3). show: gets every report. ValueError names an
    option that is unknown, wrong or without effect, or says that no step was better than the start.
    """
    from mtpd_mlx.train import run, setup

    chosen = setup.heads_as_given(TrainOptions.build(_lists(options), {}))
    run.check_places(chosen)
    outcome = run.train(chosen, setup.gather(chosen), show)
    if not outcome.improved:
        raise ValueError(
            "train: no step was better on validation than the start, so nothing was written; try "
            "more iters or another learning_rate"
        )
    return dict(outcome.progress.best_eval)


def extend(checkpoint: str, *, to: int, show: Show = silent, **options: Any) -> list[dict[str, Any]]:
    """Extends heads by looping as `mtpd extend` does. Returns the evaluation of each stage (4 -> 16 has two)."""
    from mtpd_mlx.checkpoints.format import read_config
    from mtpd_mlx.hub.pull import resolve_folder
    from mtpd_mlx.train.extend import extend_checkpoint, extend_options

    folder = resolve_folder(checkpoint)
    chosen = extend_options(_lists(options), {}, read_config(folder).num_heads, to)
    return [dict(outcome.progress.best_eval) for _, outcome in extend_checkpoint(folder, to, chosen, lambda count: show)]


@dataclass
class Model:
    """A base with heads (or alone), ready to decode. stats: of the last text, its `tau` and `tokens_per_second` among them."""

    backend: Any
    tokenizer: Tokenizer
    stats: DecodeStats = field(default_factory=lambda: DecodeStats(0))

    def stream(self, prompt: str | Messages, max_tokens: int = MAX_TOKENS) -> Iterator[str]:
        """Pieces of text as they become certain. prompt: what a user says, or messages ({"role", "content"})."""
        asked = Prompt("prompt", prompt) if isinstance(prompt, str) else Prompt("prompt", messages=prompt)
        tokens, decoder = encode_prompt(asked, self.tokenizer), StreamDecoder(self.tokenizer)
        self.stats = DecodeStats(self.backend.num_draft_tokens)
        self.backend.rewind_to(0)
        for chunk in generate(self.backend, tokens, max_tokens=max_tokens, eos_token_ids=self.tokenizer.eos_token_ids):
            self.stats.add(chunk)
            if text := "".join(decoder.add(token) for token in chunk.tokens):
                yield text
        if rest := decoder.finish():
            yield rest

    def generate(self, prompt: str | Messages, max_tokens: int = MAX_TOKENS) -> str:
        return "".join(self.stream(prompt, max_tokens))


def load(
    checkpoint: str, *, plain: bool = False, num_draft_tokens: int | None = None, lookup: bool = True, **options: Any
) -> Model:
    """Heads and their base, or a base alone. num_draft_tokens: None chooses for every round. options: those of
    `mtpd generate --help` that say where the base is and how to decode and to sample (model, dtype, temp, seed, ...)."""
    place, decoding, sampling = build(
        (RunnableOptions, DecodingConfig, SamplingOptions), _lists({"checkpoint": checkpoint, **options}), {}
    )
    backend, base = open_from(place, decoding, sampling, plain=plain, num_draft_tokens=num_draft_tokens, lookup=lookup)
    return Model(backend, Tokenizer.from_folder(base.path))


def _lists(options: dict[str, Any]) -> dict[str, Any]:
    """As a YAML file would hold them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
