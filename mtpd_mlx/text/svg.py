"""Plots of the demo report as inline SVG. Colours are CSS variables (demo/report.css), so they follow light and dark."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 40  # margins around the axes, in SVG units


@dataclass(frozen=True)
class Series:
    """One line. `colour` is a CSS colour or variable; xs and ys have the same length."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dashed: bool = False


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"plot: expected finite values, got {low} to {high}")
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power * count >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 10) for i in range(first, last + 1)]


def text(x: float, y: float, content: str, anchor: str = "middle", css: str = "tick") -> str:
    """One line of text; `content` is escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{html.escape(content)}</text>'


def line_plot(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    size: tuple[int, int] = (720, 290),
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines with dots that show their values when pointed at. Empty without any point."""
    series = [s for s in series if len(s.xs)]
    if not series:
        return ""
    width, height = size
    xs = [x for s in series for x in s.xs]
    ys = [y for s in series for y in s.ys]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_ticks = nice_ticks(*(y_range or (min(ys), max(ys))))

    def px(x: float) -> float:
        return LEFT + 10 + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT - 20)

    def py(y: float) -> float:
        return TOP + (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]) * (height - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y_label)} by {html.escape(x_label)}">']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        parts.append(text(LEFT - 6, py(y) + 4, f"{y:g}", "end"))
    for x in x_ticks(x_low, x_high, round(width / 80)):
        parts.append(text(px(x), height - BOTTOM + 18, f"{x:g}"))
    parts.append(text((LEFT + width - RIGHT) / 2, height - 4, x_label))
    for s in series:
        points = [(px(x), py(y)) for x, y in zip(s.xs, s.ys, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if s.dashed else ""
        parts.append(f'<polyline class="curve" points="{path}" style="stroke:{s.colour}"{dash}/>')
        radius = 4 if len(points) <= 16 else 2
        for (x, y), a, b in zip(points, s.xs, s.ys, strict=True):
            title = f"{html.escape(s.label)}: {b:.3f} ({html.escape(x_label)} {a:g})"
            dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{s.colour}">'
            parts.append(f"{dot}<title>{title}</title></circle>")
    return "".join([*parts, "</svg>"])


def x_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers inside [low, high]; every whole number where there are few (depths)."""
    if high - low <= count and float(low).is_integer() and float(high).is_integer():
        return [float(x) for x in range(int(low), int(high) + 1)]
    return [x for x in nice_ticks(low, high, count) if low <= x <= high and (x.is_integer() or high - low < count)]


def legend(series: Sequence[Series]) -> str:
    """An HTML legend, which wraps on small screens."""
    items = "".join(
        f'<span><i style="border-top-color:{s.colour};border-top-style:{"dashed" if s.dashed else "solid"}"></i>'
        f"{html.escape(s.label)}</span>"
        for s in series
    )
    return f"<div class=legend>{items}</div>"


def bar_plot(bars: Sequence[tuple[str, float, str, str]], *, width: int = 720) -> str:
    """Horizontal bars from zero: (label, value, note behind the value, colour)."""
    if not bars:
        return ""
    row, label_width, note_width = 34, 150, 150
    longest = max(value for _, value, _, _ in bars)
    if not longest > 0:
        raise ValueError(f"plot: expected a bar above 0, got {longest}")
    scale = (width - label_width - note_width) / longest
    parts = [f'<svg viewBox="0 0 {width} {row * len(bars)}" role="img" aria-label="bars">']
    for i, (label, value, note, colour) in enumerate(bars):
        y = i * row
        parts.append(text(label_width - 10, y + 22, label, "end", "label"))
        parts.append(
            f'<rect x="{label_width}" y="{y + 5}" width="{max(value * scale, 1):.1f}" height="{row - 10}" rx="3" '
            f'style="fill:{colour}"/>'
        )
        parts.append(text(label_width + value * scale + 8, y + 22, f"{value:.0f} {note}".strip(), "start", "label"))
    return "".join([*parts, "</svg>"])
