"""docs/families.md has a row for every reference and says nothing but what tests said."""

import json
from pathlib import Path

from family_models import NAMES, REFERENCES

from mtpd_mlx.families.multimodal import text_config
from mtpd_mlx.families.table import FAMILIES

TABLE = Path(__file__).parent.parent.parent / "docs" / "families.md"


def test_every_reference_has_a_row_and_every_family_a_reference() -> None:
    records = [json.loads((REFERENCES / f"{name}.json").read_text()) for name in NAMES]
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| model")]
    assert sorted(row.split(" | ")[0].removeprefix("| ") for row in rows) == sorted(r["title"] for r in records)
    assert {text_config(r["config"])["model_type"] for r in records} == set(FAMILIES)
    for row in rows:
        assert {c.strip() for c in row.split("|")[3:9]} == {"yes"}, row
