"""Checks before heads draft in vLLM, each fault in one line. Imports no vLLM, so that a bad one can be reported.
Called by mtpd_vllm/__init__.py, config.py and heads.py."""

import re
from pathlib import Path
from typing import Any

OLDEST = (0, 32)  # the first that runs several distinct heads
TESTED = (0, 33)  # the newest that was run
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
BASE = "mtpd_base"


def version_problem(version: str) -> str | None:
    """A line for a vLLM that is too old, None for any other. What is no release number (a build from source) counts as new."""
    number = _number(version)
    if number is None or number >= OLDEST:
        return None
    return f"mtpd_vllm: got vLLM {version}, expected {'.'.join(map(str, OLDEST))} or later: heads are not available"


def is_untested(version: str) -> bool:
    """Whether this vLLM is newer than any that was run."""
    number = _number(version)
    return number is not None and number > TESTED


def _number(version: str) -> tuple[int, int] | None:
    """0.33.0rc1 -> (0, 33). None for what vLLM calls a build without a release number: 0.0.0, 0.1.dev1, dev."""
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    return number if number > (0, 1) else None


def check_fit(heads: Any, target: Any, drafts: int) -> None:
    """heads, target: config.json of the heads and of the model that is served; drafts: num_speculative_tokens.

    ValueError where the sizes of the two differ, and for more drafts than heads: vLLM would run the first head again, which
    spoils its cache.
    """
    for name in SIZES:
        got, expected = getattr(target, name, None), getattr(heads, name, None)
        if got != expected:
            base = (getattr(heads, BASE, None) or {}).get("id")
            raise ValueError(f"mtpd_vllm: got a model with {name} {got}, expected {expected}: these heads belong to {base}")
    if drafts > heads.num_nextn_predict_layers:
        count = heads.num_nextn_predict_layers
        raise ValueError(f"mtpd_vllm: got num_speculative_tokens {drafts}, expected at most {count}, one draft per head")


def note_on_base(base: dict[str, Any], served: str) -> str | None:
    """A line where the folder that is served holds other weights than those that the heads were trained on, else None.

    base: `mtpd_base` of the heads' config.json; served: what vLLM was given. A hub id is not looked at. The text is the served
    model's own in any case, so nothing is refused.
    """
    folder = Path(served).expanduser()
    known = (base.get("fingerprint"), *base.get("same_weights", ()))
    if known[0] is None or not folder.is_dir():
        return None
    from mtpd_mlx.checkpoints.fingerprint import fingerprint_base

    try:
        if fingerprint_base(folder) in known:
            return None
    except ValueError as error:
        return f"mtpd_vllm: {served}: cannot tell whether the heads belong to it: {error}"
    return (
        f"mtpd_vllm: {served} is not the model that the heads belong to ({base.get('id')}): the text stays right, "
        "but fewer drafts will be accepted; mtpd refit adapts heads"
    )
