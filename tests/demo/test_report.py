"""The report renders from a small dictionary, holds its figures, is well formed, and fetches nothing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mtpd_mlx.demo.report import write_report
from mtpd_mlx.text.svg import Series, bar_plot, line_plot, nice_ticks


def arm(tau: float, depth: int, steps: int = 3) -> dict:
    return {
        "car": [0.5] * depth,
        "ar": [0.9] * depth,
        "tau": tau,
        "steps": steps,
        "seconds": 1.0,
        "distinct4": 0.9,
        "novel": {"tau": tau, "car": [0.5] * depth},
    }


def curve(*losses: float, heads: int = 2, depth: int = 2) -> list[dict]:
    return [
        {"iter": i, "tau": 1.0 + i / 10, "loss": x, "head_loss": [x] * heads, "car": [0.1] * depth}
        for i, x in enumerate(losses, start=1)
    ]


@pytest.fixture
def report() -> dict:
    return {
        "arms": {"ce_short": arm(1.2345, 2), "mtpd": arm(2.5, 2, steps=0), "mtpd_extended": arm(3.0, 4)},
        "base": {"valid_loss": 1.375, "distinct4": 0.9},
        "parity": {"tokens_equal": True, "tokens": 2000, "prompts": 40, "max_logit_diff": 1e-5},
        "speed": {
            "mlx_plain": 10.0,
            "mlx_mtpd": 20.0,
            "onnx_plain": 100.0,
            "onnx_mtpd": 150.0,
            "mlx_num_draft_tokens": 2,
            "onnx_num_draft_tokens": 4,
            "onnx_by_k": {"2": 131.0, "4": 150.0},
        },
        "samples": [{"prompt": "a <b>", "pieces": [{"text": "x<y", "kind": "draft"}, {"text": "z", "kind": "main"}]}],
        "versions": {"mlx": "1"},
        "machine": {"cores": 2, "blas": "<none>"},
    }


class Balance(HTMLParser):
    """Open tags that are never closed, or closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("html", "meta", "br"):  # html's end tag is optional
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()


def page_of(report: dict, curves: dict, folder: Path) -> str:
    write_report(report, curves, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_report_files(report: dict, tmp_path: Path) -> None:
    curves = {"ce_short": curve(3.0, 2.0), "mtpd_short": curve(3.0), "mtpd_extended": curve(1.0, 0.9, depth=4)}
    page = page_of(report, curves, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert sorted(f.name for f in tmp_path.iterdir()) == ["report.html", "report.json"]  # no temporary file stays
    for figure in ("1.234", "1.50x", "2.00x", "1.375", "131", "150 (chosen)", "0.900", "2000 tokens"):
        assert figure in page, figure
    assert page.count("<svg") == 2 + 2 + 3 + 2  # drawings, CAR and tau, losses by run, speeds
    assert "head 4" in page  # an extension's losses are those of the new heads
    assert "<mark>x&lt;y</mark>z" in page and "a &lt;b&gt;" in page and "&lt;none&gt;" in page


def test_page_is_well_formed_and_fetches_nothing(report: dict, tmp_path: Path) -> None:
    page = page_of(report, {"ce_short": curve(3.0, 2.0)}, tmp_path)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    for outside in ("src=", "<script", "<link", "@import", "http", "file:"):
        assert outside not in page, outside
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {"#arrow"}
    used, defined = set(re.findall(r"var\(--([\w-]+)\)", page)), set(re.findall(r"--([\w-]+):", page))
    assert used <= defined
    light, dark = page.split("prefers-color-scheme: dark")[:2]
    assert set(re.findall(r"--([\w-]+):", light)) == set(re.findall(r"--([\w-]+):", dark.split("body {")[0]))


def test_failed_parity_is_loud(report: dict, tmp_path: Path) -> None:
    report["parity"]["tokens_equal"] = False
    page = page_of(report, {}, tmp_path)
    assert "Not all" in page and "All tokens are identical" not in page and "parity bad" in page


def test_curves_without_heads_show_the_sum(report: dict, tmp_path: Path) -> None:
    records = [{"iter": 1, "tau": 1.0, "loss": 3.25}, {"iter": 2, "tau": 1.1, "loss": 2.5}]
    assert "head 1: 3.250 (step 1)" in page_of(report, {"mtpd_short": records}, tmp_path)


@pytest.mark.parametrize("low, high", [(0, 1), (1.03, 2.09), (3.0, 3.0), (0.0, 0.0), (-4, 7), (250, 900), (0.0001, 0.0003)])
def test_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and ticks == sorted(set(ticks)) and 2 <= len(ticks) <= 8


def test_line_plot_puts_points_where_they_belong() -> None:
    svg = line_plot([Series("a", [1, 2, 3], [0.0, 1.0, 0.5], "red")], "depth", "CAR", y_range=(0, 1))
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert dots[0][0] < dots[1][0] < dots[2][0]
    assert dots[1][1] < dots[2][1] < dots[0][1]  # SVG's y grows downwards
    assert dots[2][1] == pytest.approx((dots[0][1] + dots[1][1]) / 2, abs=0.1)


def test_plots_refuse_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="finite"):
        line_plot([Series("a", [1], [float("nan")], "red")], "x", "y")
    with pytest.raises(ValueError, match="above 0"):
        bar_plot([("a", 0.0, "", "red")])
    assert line_plot([], "x", "y") == "" and bar_plot([]) == ""
