"""The figures of `mtpd bench` as one SVG file."""

import html
from typing import Any

from mtpd_mlx.decoding.bench.run import KEYS, LABELS
from mtpd_mlx.text.svg import Series, bar_plot, line_plot, text

WIDTH, BAR, TITLE, PLOT = 720, 34, 30, 290
STYLE = (
    "svg{font-family:system-ui,sans-serif;background:#fff}.tick{font-size:12px;fill:#555}.label{font-size:14px;fill:#222}"
    ".title{font-size:15px;fill:#222;font-weight:600}.grid{stroke:#ddd}.curve{fill:none;stroke-width:2}"
)
COLOURS = {"stock": "#9aa0a6", "plain": "#6b7f99", "stock speculative": "#c9a227", "exact": "#7a5ea8", "mtpd": "#1f7a4d"}


def draw(values: dict[str, Any]) -> str:
    """Tokens per second of every arm, and CAR by depth of every prompt set."""
    stock = values["stock_plain_tok_s"]
    bars = [
        (LABELS[name], values[f"{key}_tok_s"], f"tok/s ({values[f'{key}_tok_s'] / stock:.2f}x)", COLOURS[name])
        for name, key in KEYS.items()
        if f"{key}_tok_s" in values
    ]
    parts, top = [], TITLE
    title = f"{values['device']}, {values['dtype']}, {values['num_draft_tokens']} drafts, tau {values['tau']:.2f}"
    parts.append(text(10, 20, title, "start", "title"))
    parts.append(_at(top, len(bars) * BAR, bar_plot(bars, width=WIDTH)))
    top += len(bars) * BAR
    palette = ("#1f7a4d", "#b3541e", "#3a6ea5", "#7a5ea8", "#c9a227", "#9aa0a6", "#a83a5b")
    lines = [
        Series(name, list(range(1, len(s["car"]) + 1)), s["car"], palette[i % len(palette)])
        for i, (name, s) in enumerate(values["sets"].items())
    ]
    if plot := line_plot(lines, "depth", "CAR", size=(WIDTH, PLOT), y_range=(0.0, 1.0)):
        parts.append(text(10, top + 20, "CAR: share of rounds whose drafts 1..depth were all accepted", "start", "label"))
        parts.append(_at(top + TITLE, PLOT, plot))
        top += TITLE + PLOT
        for i, line in enumerate(lines):
            parts.append(f'<rect x="10" y="{top + 6 + 18 * i}" width="18" height="4" fill="{line.colour}"/>')
            parts.append(text(34, top + 12 + 18 * i, line.label, "start", "tick"))
        top += 18 * len(lines) + 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 6}" width="{WIDTH}" height="{top + 6}">'
    return f"{head}<title>{html.escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"


def _at(y: int, height: int, svg: str) -> str:
    """A drawing inside the drawing."""
    return svg.replace("<svg ", f'<svg x="0" y="{y}" width="{WIDTH}" height="{height}" ', 1)
