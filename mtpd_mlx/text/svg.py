"""SVG by hand: shapes, line and bar plots with axes and legends, inline in a page or as a file of their own.

Used by the demo's report and drawings, `mtpd bench --svg` and the plots of tools/experiments. Text is escaped here. Colours
may be CSS variables and classes those of a page (demo/report.css) or of the `style` of a file.
"""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, PLOT_HEIGHT = 720, 290  # of a plot, in SVG units, as all lengths here
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40  # margins around the axes
BAR = 34  # height of one bar of a bar plot
LEGEND_LINE = 18  # height of one line of a legend
LABELS, NOTES = 150, 150  # room beside the bars


@dataclass(frozen=True)
class Series:
    """One line. `colour` is a CSS colour or variable; xs and ys have the same length."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dashed: bool = False

    @property
    def stroke(self) -> str:
        """Attributes of a line in its colour."""
        return f'style="stroke:{self.colour}"' + (' stroke-dasharray="6 4"' if self.dashed else "")


def picture(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """An <svg> element for a page. `label`: what it shows, for those who cannot see it."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}">'
    return "".join([head, *parts, "</svg>"])


def document(blocks: Sequence[tuple[float, str]], title: str, style: str) -> str:
    """An SVG file on white: blocks (height, SVG), pictures or shapes, one below the other."""
    parts, y = [f"<title>{html.escape(title)}</title><style>svg{{background:#fff}}{style}</style>"], 0.0
    for height, content in blocks:
        parts.append(f'<svg y="{y:g}" width="{WIDTH}" height="{height:g}">{content}</svg>')
        y += height
    size = f'viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}"'
    return "".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *parts, "</svg>\n"])


def text(x: float, y: float, content: str, anchor: str = "middle", css: str = "tick") -> str:
    """One line of text on the base line `y`."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{html.escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, look: str, radius: float = 0) -> str:
    """`look`: attributes of its class or style."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" {look}/>'


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    """As rect."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}/>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]. ValueError where they are not finite."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"plot: expected finite values, got {low} to {high}")
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]


def x_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside [low, high]; every whole number where there are few (depths)."""
    if high - low <= count and float(low).is_integer() and float(high).is_integer():
        return [float(x) for x in range(int(low), int(high) + 1)]
    return [x for x in nice_ticks(low, high, count) if low <= x <= high and (x.is_integer() or high - low < count)]


def line_plot(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    size: tuple[int, int] = (WIDTH, PLOT_HEIGHT),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines with dots that show their values when pointed at. Empty without any point."""
    series = [s for s in series if len(s.xs)]
    if not series:
        return ""
    width, height = size
    xs, ys = [x for s in series for x in s.xs], [y for s in series for y in s.ys]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_ticks = nice_ticks(*(y_range or (min(ys), max(ys))))

    def px(x: float) -> float:
        return LEFT + 10 + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT - 20)

    def py(y: float) -> float:
        return TOP + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (height - TOP - BOTTOM)

    parts = []
    for y in y_ticks:
        parts += [line(LEFT, py(y), width - RIGHT, py(y), 'class="grid"'), text(LEFT - 6, py(y) + 4, f"{y:g}", "end")]
    parts += [text(px(x), height - BOTTOM + 18, f"{x:g}") for x in x_ticks(x_low, x_high, round(width / 80))]
    parts.append(text((LEFT + width - RIGHT) / 2, height - 4, x_label))
    for s in series:
        points = [(px(x), py(y)) for x, y in zip(s.xs, s.ys, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="curve" points="{path}" {s.stroke}/>')
        for (x, y), a, b in zip(points, s.xs, s.ys, strict=True):
            title = html.escape(f"{s.label}: {b:.3f} ({x_label} {a:g})")
            radius = 4 if len(points) <= 16 else 2
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{s.colour}"><title>{title}</title></circle>'
            )
    return picture(width, height, f"{y_label} by {x_label}", parts)


def legend(series: Sequence[Series]) -> tuple[float, str]:
    """A block of `document`: the names of lines, one below the other. (A page has one of its own, in HTML.)"""
    parts = []
    for i, s in enumerate(series, start=1):
        y = LEGEND_LINE * i
        parts += [
            line(LEFT, y - 4, LEFT + 26, y - 4, f'class="curve" {s.stroke}'),
            text(LEFT + 34, y, s.label, "start", "label"),
        ]
    return LEGEND_LINE * len(series) + 6, "".join(parts)


def bar_plot(bars: Sequence[tuple[str, float, str, str]]) -> str:
    """Horizontal bars from zero: (label, value, note behind the value, colour), BAR high each. Empty without any; ValueError
    where none is above 0."""
    if not bars:
        return ""
    longest = max(value for _, value, _, _ in bars)
    if not longest > 0:
        raise ValueError(f"plot: expected a bar above 0, got {longest}")
    scale, parts = (WIDTH - LABELS - NOTES) / longest, []
    for i, (label, value, note, colour) in enumerate(bars):
        y = i * BAR
        parts.append(text(LABELS - 10, y + 22, label, "end", "label"))
        parts.append(rect(LABELS, y + 5, max(value * scale, 1), BAR - 10, f'style="fill:{colour}"', 3))
        parts.append(text(LABELS + value * scale + 8, y + 22, f"{value:.0f} {note}".strip(), "start", "label"))
    return picture(WIDTH, BAR * len(bars), "bars", parts)
