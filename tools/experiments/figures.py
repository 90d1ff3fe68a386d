"""`save_plot`: the plots of mtpd_mlx/text/svg.py as SVG files that stand alone.
Called by tools/experiments/report.py."""

from collections.abc import Sequence
from pathlib import Path

from mtpd_mlx.text.svg import PLOT_HEIGHT, Series, document, legend, line_plot

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#8c564b")
STYLE = "svg{font-family:sans-serif}.tick,.label{font-size:12px;fill:#333}.grid{stroke:#ddd}.curve{fill:none;stroke-width:2}"


def series_of(lines: Sequence[tuple[str, Sequence[float]]]) -> list[Series]:
    """One line per (label, values at depths 1, 2, ..)."""
    return [
        Series(label, list(range(1, len(ys) + 1)), list(ys), COLOURS[i % len(COLOURS)], dashed=i >= len(COLOURS))
        for i, (label, ys) in enumerate(lines)
    ]


def save_plot(file: Path, series: list[Series], x_label: str, y_label: str) -> None:
    """One plot and its legend."""
    plot = line_plot(series, x_label, y_label)
    file.write_text(document([(PLOT_HEIGHT, plot), legend(series)], f"{y_label} by {x_label}", STYLE))
