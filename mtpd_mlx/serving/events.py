"""`event`: one server-sent event.
Called by the forms' streamed answers."""

import json
from typing import Any


def event(value: dict[str, Any] | str, name: str | None = None) -> str:
    """One event: JSON, or a text as it is; `name`: its type, in APIs that say it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"
