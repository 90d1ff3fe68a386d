"""The picture of two terminals: every piece is there, at its place and its time."""

from xml.etree import ElementTree

from tools.terminal_picture import COLUMNS, REST, Recording, draw, laid_out

SVG = "{http://www.w3.org/2000/svg}"
WORDS = [f"word{i} " for i in range(20)]
PLAIN = Recording([(w, False, 0.1 * i) for i, w in enumerate(WORDS)], list(range(20)), 1.9)
DRAFTED = Recording([(w, i % 2 == 1, 0.1 * (i // 2)) for i, w in enumerate(WORDS)], list(range(20)), 0.9)


def test_lines_break_before_words_and_hold_all_text() -> None:
    shown = list(laid_out(Recording([("a <b>\nnext ", False, 0.0), ("x" * (2 * COLUMNS), True, 0.5)], [1, 2], 0.5)))
    assert all(s.column + len(s.text.rstrip()) <= COLUMNS for s in shown)
    assert "".join(s.text for s in shown) == "a <b>next " + "x" * (2 * COLUMNS)
    assert [(s.line, s.column) for s in shown] == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_drafts_are_green_and_come_when_they_came() -> None:
    root = ElementTree.fromstring(draw(PLAIN, DRAFTED, "a <model>", 2.0))
    texts = [t for t in root.iter(f"{SVG}text") if (t.text or "").startswith("word")]
    assert [t.text for t in texts] == 2 * WORDS
    assert [t.get("class") for t in texts] == 20 * [None] + 10 * [None, "draft"]
    whole = 2.0 * 1.9 + REST
    for t, (_, _, at) in zip(texts, PLAIN.pieces + DRAFTED.pieces, strict=True):
        key = t.find(f"{SVG}animate")
        assert key is None if at == 0 else key.get("keyTimes") == f"0;{at * 2.0 / whole:.4f}"
    said = "".join(root.itertext())
    assert "10 tokens/s" in said and "21 tokens/s" in said and "a <model>; shown 2 times slower" in said
