"""`draw_round`, `draw_training`: MTP-D in two drawings, as inline SVG coloured by report.css.
Called by demo/report.py."""

from mtpd_mlx.text.svg import WIDTH, picture, rect, text

ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z" class="head"/></marker></defs>'
)
COLUMN, BOX = 118, 96  # distance of token columns and width of a token box, in SVG units


def box(x: float, y: float, content: str, css: str, width: float = BOX, height: float = 32) -> str:
    """A rounded box with one line of centred text."""
    return rect(x, y, width, height, f'class="{css}"', 6) + text(x + width / 2, y + height / 2 + 5, content, css="label")


def arrow(x1: float, y1: float, x2: float, y2: float, rise: float = 0) -> str:
    """A straight arrow, or one that bends up by about `rise`."""
    way = f"C{x1 + 20:.0f} {y1 - rise:.0f} {x2 - 20:.0f} {y2 - rise:.0f} {x2:.0f} {y2:.0f}" if rise else f"L{x2:.0f} {y2:.0f}"
    return f'<path d="M{x1:.0f} {y1:.0f} {way}" class="arrow" marker-end="url(#arrow)"/>'


def draw_round() -> str:
    """One round: heads guess, the main model checks in one pass, the matching prefix and its own next token stay."""
    left, guesses = 128, ("at", "8", ":", "15")
    xs = [left + i * COLUMN for i in range(5)]
    parts = [ARROW]
    parts += [text(0, y, label, "start", "step") for y, label in ((49, "1  guess"), (129, "2  check"), (213, "3  keep"))]
    parts += [text(xs[0] + BOX / 2, 18, "known")]
    parts += [text(x + BOX / 2, 18, f"head {k}") for k, x in enumerate(xs[1:], start=1)]
    parts += [box(xs[0], 28, "leaves", "token-main")]
    parts += [box(x, 28, guess, "token-guess") for x, guess in zip(xs[1:], guesses, strict=True)]
    parts += [arrow(x + BOX + 2, 44, x + COLUMN - 3, 44) for x in xs[:4]]
    parts += [arrow(x + BOX / 2, 62, x + BOX / 2, 104) for x in xs]
    parts += [box(xs[0], 106, "the main model, one pass over all five", "model", 4 * COLUMN + BOX, 36)]
    parts += [arrow(x + BOX / 2, 144, x + BOX / 2, 188) for x in xs[1:]]
    parts += [box(x, 190, f"{guess} ✓", "token-draft") for x, guess in zip(xs[1:4], guesses, strict=False)]
    parts += [box(xs[4], 190, "40", "token-main")]
    parts += [text(xs[2] + BOX / 2, 243, "guessed right: kept"), text(xs[4] + BOX / 2, 243, "15 was wrong:")]
    parts += [text(xs[4] + BOX / 2, 259, "the model's own word")]
    return picture(WIDTH, 264, "a decoding round", parts)


def bars(x: float, y: float, heights: tuple[int, ...], css: str) -> str:
    """A small histogram standing on y."""
    return "".join(rect(x + i * 17, y - h, 13, h, f'class="{css}"', 2) for i, h in enumerate(heights))


def draw_training() -> str:
    """Left: the distillation target of a head. Right: looping."""
    parts = [ARROW, text(0, 16, "Distillation: learn the whole opinion", "start", "step")]
    parts += [bars(30, 112, (62, 34, 12, 7, 4), "bar-main"), text(71, 132, "main model's next"), text(71, 148, "word (fixed)")]
    parts += [
        bars(228, 112, (44, 20, 24, 14, 10), "bar-draft"),
        text(269, 132, "head k's guess of"),
        text(269, 148, "the same word"),
    ]
    parts += [arrow(126, 82, 222, 82), text(174, 72, "KL divergence")]
    parts += [text(0, 182, "Plain training (CE) knows only which word came next.", "start")]
    start, side = 392, 34
    parts += [text(start, 16, "Looping: trained heads become new ones", "start", "step")]
    for k in range(8):
        parts.append(box(start + k * 41, 92, str(k + 1), "token-draft" if k < 4 else "token-guess", side, 34))
    for k in range(4):
        x1, x2 = start + k * 41 + side / 2, start + (k + 4) * 41 + side / 2
        parts.append(arrow(x1, 90, x2, 89, rise=56))
    parts += [text(start + 1.92 * 41, 148, "trained, now frozen"), text(start + 5.92 * 41, 148, "copied, then trained")]
    return picture(WIDTH, 196, "distillation and looping", parts)
