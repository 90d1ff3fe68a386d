"""SVG files that stand alone: the plots of mtpd_mlx/text/svg.py with their style and a legend inside."""

import re
from collections.abc import Sequence
from pathlib import Path

from mtpd_mlx.text.svg import LEFT, Series, line_plot, text

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#8c564b")
STYLE = (
    "<style>svg{background:#fff;font-family:sans-serif}.tick,.label{font-size:12px;fill:#333}.grid{stroke:#ddd}"
    ".curve{fill:none;stroke-width:2}</style>"
)
ROW = 18  # height of a line of the legend


def series_of(lines: Sequence[tuple[str, Sequence[float]]]) -> list[Series]:
    """One line per (label, values at depths 1, 2, ..)."""
    return [
        Series(label, list(range(1, len(ys) + 1)), list(ys), COLOURS[i % len(COLOURS)], dashed=i >= len(COLOURS))
        for i, (label, ys) in enumerate(lines)
    ]


def save_plot(file: Path, series: list[Series], x_label: str, y_label: str) -> None:
    drawn = line_plot(series, x_label, y_label)
    match = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', drawn)
    assert match is not None
    width, height = int(match[1]), int(match[2])
    whole = height + ROW * len(series) + 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{whole}" viewBox="0 0 {width} {whole}"'
    legend = []
    for i, s in enumerate(series):
        y = height + ROW * (i + 1) - 4
        dash = ' stroke-dasharray="6 4"' if s.dashed else ""
        legend.append(
            f'<line x1="{LEFT}" x2="{LEFT + 26}" y1="{y - 4}" y2="{y - 4}" stroke="{s.colour}" stroke-width="2"{dash}/>'
        )
        legend.append(text(LEFT + 34, y, s.label, "start", "label"))
    body = drawn[match.end() : -len("</svg>")]
    start = body.index(">") + 1
    file.write_text(head + body[:start] + STYLE + body[start:] + "".join(legend) + "</svg>\n")
