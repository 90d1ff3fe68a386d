"""`figures`, `describe`: figures of loads by server and number of clients, and a table for a person.
Called by bench_serve/__main__.py."""

import statistics
from collections.abc import Sequence
from typing import Any

from mtpd_mlx.text.tables import format_table
from tools.bench_serve.load import Load

Figures = dict[str, Any]
Loads = dict[str, dict[int, list[Load]]]  # by server and number of clients, one a repeat


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that so large a share of them does not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def rate(load: Load) -> float:
    """Tokens per second of all clients together."""
    return sum(each.tokens for each in load.asked) / load.seconds


def per_cpu_second(load: Load) -> float | None:
    """Tokens of all clients for a second of the server's processor time."""
    return sum(each.tokens for each in load.asked) / load.cpu if load.cpu else None


def ratio_of(mine: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median of mine over theirs, repeat by repeat."""
    found = [a / b for a, b in zip(mine, theirs, strict=True) if a is not None and b]
    return statistics.median(found) if found else None


def figures(loads: Sequence[Load], reference: Sequence[Load]) -> Figures:
    """Of the repeats of one cell. ratio: the median of tokens/s over the reference's in the same repeat; cpu_ratio: the same of
    tokens for a second of the server's processor time, which other programs' load disturbs less."""
    asked = [each for load in loads for each in load.asked]
    right = [each for each in asked if each.error is None]
    ratios = [rate(mine) / rate(theirs) for mine, theirs in zip(loads, reference, strict=True) if rate(theirs)]
    spoke = [each for each in right if each.text]
    per_cpu = [per_cpu_second(load) for load in loads]
    known = [each for each in per_cpu if each is not None]
    return {
        "requests": len(asked),
        "errors": len(asked) - len(right),
        "first_errors": sorted({each.error for each in asked if each.error})[:3],
        "tokens": sum(each.tokens for each in right),
        "tokens_per_second": statistics.median(rate(load) for load in loads),
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "tokens_per_cpu_second": statistics.median(known) if known else None,
        "cpu_ratio": ratio_of(per_cpu, [per_cpu_second(load) for load in reference]),
        "first_p50": quantile([each.first for each in spoke], 0.5),
        "first_p95": quantile([each.first for each in spoke], 0.95),
        "between_p50": quantile([each.between for each in right if each.between is not None], 0.5),
        "gap_p95": quantile([gap for each in right for gap in each.gaps], 0.95),
    }


def summary(loads: Loads, reference: str) -> Figures:
    """{"reference", "servers": {name: {clients: figures}}}."""
    servers = {
        name: {str(clients): figures(cell, loads[reference][clients]) for clients, cell in cells.items()}
        for name, cells in loads.items()
    }
    return {"reference": reference, "servers": servers}


def describe(found: Figures) -> str:
    """A row for every server and number of clients."""
    headers = [
        "server",
        "clients",
        "tokens/s",
        "ratio",
        "per CPU s",
        "ratio",
        "first p50",
        "first p95",
        "ms/token p50",
        "gap p95",
        "requests",
        "errors",
    ]
    counts = list(dict.fromkeys(count for cells in found["servers"].values() for count in cells))
    rows = [
        [name, count, *_row(cells[count])] for count in counts for name, cells in found["servers"].items() if count in cells
    ]
    wrong = [
        f"{name}, {count} clients: {error}"
        for name, cells in found["servers"].items()
        for count, cell in cells.items()
        for error in cell["first_errors"]
    ]
    notes = [f"ratio: over {found['reference']} in the same repeat, median. first: seconds to the first text.", *wrong]
    notes += [f"{name}: matrix products by {blas}" for name, blas in found.get("blas", {}).items() if blas]
    return "\n".join([format_table(rows, headers), "", *notes])


def _row(cell: Figures) -> list[str]:
    def shown(name: str, form: str, factor: float = 1.0) -> str:
        return "-" if cell[name] is None else format(cell[name] * factor, form)

    return [
        shown("tokens_per_second", ".1f"),
        shown("ratio", ".2f"),
        shown("tokens_per_cpu_second", ".1f"),
        shown("cpu_ratio", ".2f"),
        shown("first_p50", ".2f"),
        shown("first_p95", ".2f"),
        shown("between_p50", ".1f", 1000),
        shown("gap_p95", ".3f"),
        str(cell["requests"]),
        str(cell["errors"]),
    ]
