#!/usr/bin/env python
"""An animated SVG of two terminals: an exported folder decodes one prompt plainly and with drafts, accepted drafts in green.

    python -m tools.terminal_picture smollm2-onnx --out docs/terminal.svg

Both texts are decoded here and now, and every piece appears when it did (--slower times later, which the picture says). A text
that is not that of plain decoding is an error. README shows the one of an idle machine.
"""

import argparse
import html
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtpd_mlx.files.atomic import write_text
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.text.answer import Answer
from mtpd_mlx.text.prompts import Prompt, encode_prompt
from mtpd_mlx.text.tokenizer import Tokenizer

COLUMNS, WIDE, LINE, MARGIN, HEAD = (
    46,
    7.4,
    17.0,
    14.0,
    62.0,
)  # characters of a line; SVG units of one, of a line, around, above
REST = 2.5  # seconds that the whole texts stay
STYLE = (
    "text{font:12.3px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#c9d1d9;white-space:pre}"
    ".draft{fill:#3fb950;font-weight:600}.name{fill:#f0f6fc;font-weight:600}.note{fill:#8b949e}"
)


@dataclass
class Shown:
    """A piece of text: where it stands, when it came (seconds from the start), and whether a draft brought it."""

    line: int
    column: int
    text: str
    at: float
    drafted: bool


@dataclass
class Recording:
    pieces: list[tuple[str, bool, float]]
    tokens: list[int]
    seconds: float  # of decoding, without the prompt

    @property
    def tokens_per_second(self) -> float:
        return (len(self.tokens) - 1) / self.seconds


def record(backend: Backend, tokenizer: Tokenizer, prompt: list[int], max_tokens: int) -> Recording:
    """Decodes once to warm up and once for the picture."""
    for _ in range(2):
        backend.rewind_to(0)
        answer, pieces, tokens = Answer(tokenizer, ()), [], []
        began = 0.0
        for chunk in generate(backend, prompt, max_tokens=max_tokens, eos_token_ids=tokenizer.eos_token_ids, stop=answer.see):
            now = time.perf_counter()
            began = began or now
            tokens += chunk.tokens
            pieces += [(text, drafted, now - began) for text, drafted in answer.take(chunk.num_drafted)]
        seconds = time.perf_counter() - began
    return Recording(pieces, tokens, seconds)


def laid_out(recording: Recording) -> Iterator[Shown]:
    """Lines of COLUMNS characters, broken at line breaks and before words that do not fit."""
    line = column = 0
    for text, drafted, at in recording.pieces:
        for i, part in enumerate(text.split("\n")):
            if i:
                line, column = line + 1, 0
            if column and column + len(part.rstrip()) > COLUMNS:
                line, column, part = line + 1, 0, part.lstrip()
            while part:
                fits = part[: COLUMNS - column]
                yield Shown(line, column, fits, at, drafted)
                column, part = column + len(fits), part[len(fits) :]
                if part:
                    line, column = line + 1, 0


def pane(x: float, title: str, recording: Recording, slower: float, whole: float) -> tuple[list[str], int]:
    """SVG of one terminal, and the number of its lines."""
    parts = [f'<text x="{x:g}" y="24" class="name">{html.escape(title)}</text>']
    parts.append(f'<text x="{x:g}" y="42" class="note">{recording.tokens_per_second:.0f} tokens/s</text>')
    lines = 0
    for shown in laid_out(recording):
        lines = max(lines, shown.line + 1)
        at = min(shown.at * slower / whole, 1.0)
        look = ' class="draft"' if shown.drafted else ""
        x_y = f'x="{x + shown.column * WIDE:.1f}" y="{HEAD + (shown.line + 1) * LINE:.1f}"'
        place = f'{x_y} textLength="{len(shown.text) * WIDE:.1f}"'
        appear = (
            f'<animate attributeName="opacity" values="0;1" keyTimes="0;{at:.4f}" calcMode="discrete" dur="{whole:.2f}s" '
            'repeatCount="indefinite"/>'
        )
        parts.append(f"<text {place}{look}>{html.escape(shown.text)}{appear if at else ''}</text>")
    return parts, lines


def draw(plain: Recording, drafted: Recording, what: str, slower: float) -> str:
    whole = slower * max(plain.seconds, drafted.seconds) + REST
    width = 2 * COLUMNS * WIDE + 4 * MARGIN
    left, lines = pane(MARGIN, "plain: one token per pass", plain, slower, whole)
    right, _ = pane(width / 2 + MARGIN, "with heads: accepted drafts in green", drafted, slower, whole)
    height = HEAD + (lines + 3) * LINE
    note = f"{what}; shown {slower:g} times slower" if slower != 1 else what
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    frame = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<title>{html.escape(what)}</title><style>{STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#0d1117"/>',
        f'<path d="M{width / 2:.0f} 10V{height - 34:.0f}" stroke="#30363d"/>',
        f'<text x="{MARGIN:g}" y="{height - 12:.0f}" class="note">{html.escape(note)}</text>',
    ]
    return "".join([*frame, *left, *right, "</svg>\n"])


def main() -> int:
    parser = argparse.ArgumentParser(description="An animated SVG: plain decoding beside decoding with drafts.")
    parser.add_argument("folder", type=Path, help="exported folder (mtpd export)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--name", default="", help="what the folder holds, for the picture's last line")
    parser.add_argument("--prompt", default="Write a Python function that adds up a list, and explain it.")
    parser.add_argument("-m", "--max-tokens", type=int, default=120, metavar="N")
    parser.add_argument("--slower", type=float, default=5.0, metavar="X", help="times slower than it was (default: 5)")
    args = parser.parse_args()
    from mtpd_onnx.runtime.open import open_folder

    tokenizer = Tokenizer.from_folder(args.folder)
    prompt = encode_prompt(Prompt("1", args.prompt), tokenizer)
    plain = record(open_folder(args.folder, plain=True), tokenizer, prompt, args.max_tokens)
    drafted = record(open_folder(args.folder, choose=True), tokenizer, prompt, args.max_tokens)
    if plain.tokens != drafted.tokens:
        print("terminal_picture: error: the text with drafts is not that of plain decoding", file=sys.stderr)
        return 1
    what = ", ".join(filter(None, [args.name, "mtpd-onnx", f"{os.cpu_count()} CPU cores ({platform.machine()})"]))
    write_text(args.out, draw(plain, drafted, what, args.slower))
    print(f"plain {plain.tokens_per_second:.1f}, with drafts {drafted.tokens_per_second:.1f} tokens/s -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
