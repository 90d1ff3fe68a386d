"""`Fields`: the fields of a JSON request, each read once with type and range; unread ones are refused by name.
Called by serving/app.py and the forms."""

import json
import math
from collections.abc import Mapping
from typing import Any

from mtpd_mlx.serving.errors import ApiError, invalid, unsupported


def parse_body(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: not valid JSON ({str(error).splitlines()[0]})", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"body: got {type(body).__name__}, expected a JSON object", code="invalid_json")
    return body


class Fields:
    """`null` is as good as absent everywhere. Each reader raises ApiError 400, which names the field."""

    def __init__(self, body: Mapping[str, Any]):
        self._body = {name: value for name, value in body.items() if value is not None}
        self._read: set[str] = set()

    def raw(self, name: str) -> Any:
        self._read.add(name)
        return self._body.get(name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.raw(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high:
            raise invalid(name, value, f"a number {low:g}..{high:g}")
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int = 2**63 - 1) -> int | None:
        value = self.raw(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise invalid(name, value, f"an integer of at least {low}" if high == 2**63 - 1 else f"an integer {low}..{high}")
        return value

    def switch(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(name, value, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            raise invalid(name, value, "text")
        return value

    def neutral(self, values: Mapping[str, tuple[Any, ...]]) -> None:
        """Fields of OpenAI's API that this server has nothing for, and their values that ask for nothing."""
        for name, allowed in values.items():
            value = self.raw(name)
            if value is not None and not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
                raise unsupported(name)

    def done(self) -> None:
        """ApiError where a field was not read by anybody."""
        if unknown := sorted(self._body.keys() - self._read):
            raise ApiError(400, f"unknown parameter: {unknown[0]}", param=unknown[0], code="unknown_parameter")
