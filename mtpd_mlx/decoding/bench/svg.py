"""`draw`: the figures of `mtpd bench` as one SVG file (`--svg`).
Called by `mtpd bench`."""

from typing import Any

from mtpd_mlx.decoding.bench.run import KEYS, LABELS
from mtpd_mlx.text.svg import BAR, PLOT_HEIGHT, Series, bar_plot, document, legend, line_plot, text

TITLE = 30  # height of a line of text
STYLE = (
    "svg{font-family:system-ui,sans-serif}.tick{font-size:12px;fill:#555}.label{font-size:14px;fill:#222}"
    ".title{font-size:15px;fill:#222;font-weight:600}.grid{stroke:#ddd}.curve{fill:none;stroke-width:2}"
)
COLOURS = {"stock": "#9aa0a6", "plain": "#6b7f99", "stock speculative": "#c9a227", "exact": "#7a5ea8", "mtpd": "#1f7a4d"}
PALETTE = ("#1f7a4d", "#b3541e", "#3a6ea5", "#7a5ea8", "#c9a227", "#9aa0a6", "#a83a5b")


def draw(values: dict[str, Any]) -> str:
    """Tokens per second of every arm, and CAR by depth of every prompt set. `values`: what `mtpd bench --json` prints."""
    stock = values["stock_plain_tok_s"]
    bars = [
        (LABELS[name], values[f"{key}_tok_s"], f"tok/s ({values[f'{key}_tok_s'] / stock:.2f}x)", COLOURS[name])
        for name, key in KEYS.items()
        if f"{key}_tok_s" in values
    ]
    lines = [
        Series(name, range(1, len(s["car"]) + 1), s["car"], PALETTE[i % len(PALETTE)])
        for i, (name, s) in enumerate(values["sets"].items())
    ]
    title = f"{values['device']}, {values['dtype']}, {values['num_draft_tokens']} drafts, tau {values['tau']:.2f}"
    blocks: list[tuple[float, str]] = [(TITLE, text(10, 20, title, "start", "title")), (BAR * len(bars), bar_plot(bars))]
    if plot := line_plot(lines, "depth", "CAR", y_range=(0.0, 1.0)):
        caption = text(10, 20, "CAR: share of rounds whose drafts 1..depth were all accepted", "start", "label")
        blocks += [(TITLE, caption), (PLOT_HEIGHT, plot), legend(lines)]
    return document(blocks, title, STYLE)
