"""The shapes that the report, `mtpd bench --svg` and tools/experiments share, and files that stand alone."""

from xml.etree import ElementTree

import pytest

from mtpd_mlx.text.svg import BAR, LEGEND_LINE, PLOT_HEIGHT, Series, bar_plot, document, legend, line_plot, picture, text

SVG = "{http://www.w3.org/2000/svg}"
LINES = [Series("a < b", [1, 2], [0.1, 0.9], "#123456"), Series("c & d", [1, 2], [0.5, 0.4], "#654321", dashed=True)]


def test_blocks_of_a_file_lie_below_one_another() -> None:
    blocks = [(PLOT_HEIGHT, line_plot(LINES, "depth", "CAR")), legend(LINES), (BAR, bar_plot([("x", 2.0, "<s>", "red")]))]
    root = ElementTree.fromstring(document(blocks, "A & B", ".tick{fill:#000}"))
    heights = [height for height, _ in blocks]
    places = [(float(part.get("y", "")), float(part.get("height", ""))) for part in root.findall(f"{SVG}svg")]
    assert places == [(sum(heights[:i]), h) for i, h in enumerate(heights)]
    assert root.get("viewBox", "").split()[3] == root.get("height") == f"{sum(heights):g}"
    title = root.find(f"{SVG}title")
    assert title is not None and title.text == "A & B"
    assert [t.text for t in root.iter(f"{SVG}text")][-3:] == ["c & d", "x", "2 <s>"]


def test_a_legend_has_a_line_for_every_series() -> None:
    height, svg = legend(LINES)
    root = ElementTree.fromstring(picture(100, height, "", [svg]))
    strokes = [(line.get("style"), line.get("stroke-dasharray")) for line in root.findall("line")]
    assert strokes == [("stroke:#123456", None), ("stroke:#654321", "6 4")]
    assert [t.text for t in root.findall("text")] == ["a < b", "c & d"]
    assert max(float(t.get("y", "")) for t in root.findall("text")) == LEGEND_LINE * len(LINES) < height


@pytest.mark.parametrize("label", ["<script>", 'a "quoted" one', "x & y"])
def test_labels_are_escaped_everywhere(label: str) -> None:
    plot = line_plot([Series(label, [1, 2], [1, 2], "red")], label, label)
    for svg in (plot, bar_plot([(label, 1.0, label, "red")]), picture(1, 1, label, [text(0, 0, label)])):
        root = ElementTree.fromstring(svg)
        assert label in [t.text for t in root.iter("text")]
