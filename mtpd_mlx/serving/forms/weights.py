"""`read_weights`: OpenAI's logit_bias, presence_penalty and frequency_penalty.
Called by forms/openai.py."""

from dataclasses import dataclass
from typing import Any

from mtpd_mlx.serving.errors import invalid
from mtpd_mlx.serving.fields import Fields
from mtpd_mlx.serving.forms.common import Served
from mtpd_mlx.speculative.constrained import Constraint
from mtpd_mlx.speculative.weighed import Weighed

PENALTY, BIAS = 2.0, 100.0  # the largest of either sign, as OpenAI's API has them


@dataclass(frozen=True)
class Weights:
    """A request's logit_bias by token id, presence_penalty and frequency_penalty, in logits."""

    bias: dict[int, float]
    presence: float
    frequency: float

    def over(self, constraint: Constraint | None, served: Served, always: bool = False) -> Constraint | None:
        """`constraint`, and these weights where there are any. always: never None, so that the host sees the text's logits."""
        if not (self.bias or self.presence or self.frequency or (always and constraint is None)):
            return constraint
        ends = served.tokenizer.eos_token_ids
        return Weighed(served.logits, ends, self.bias, self.presence, self.frequency, constraint)


NO_WEIGHTS = Weights({}, 0.0, 0.0)


def read_weights(fields: Fields, served: Served) -> Weights:
    """The three fields of a request. ApiError 400 for a value out of range or an unknown token id."""
    presence = fields.number("presence_penalty", 0.0, -PENALTY, PENALTY)
    frequency = fields.number("frequency_penalty", 0.0, -PENALTY, PENALTY)
    value = fields.raw("logit_bias")
    if value is None:
        return Weights({}, presence, frequency)
    if not isinstance(value, dict):
        raise invalid("logit_bias", value, f"an object of token ids and numbers -{BIAS:g}..{BIAS:g}")
    return Weights(dict(_bias(name, bias, served.logits) for name, bias in value.items()), presence, frequency)


def _bias(name: str, value: Any, size: int) -> tuple[int, float]:
    if not (name.isascii() and name.isdigit()) or int(name[:20]) >= size:
        raise invalid("logit_bias", name, f"token ids 0..{size - 1}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not -BIAS <= value <= BIAS:
        raise invalid(f"logit_bias.{name}", value, f"a number -{BIAS:g}..{BIAS:g}")
    return int(name), float(value)
