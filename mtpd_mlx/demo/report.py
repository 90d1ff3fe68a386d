"""`write_report`: report.json and a self-contained report.html, from demo/report.html.jinja and report.css.
Called by `mtpd demo`.

The page leads with the real model where there is one; then the bundled small one gets a short section.
Everything that the page shows as text is escaped by the template; only plots and style are not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mtpd_mlx.demo.drawings import draw_round, draw_training
from mtpd_mlx.files.atomic import write_json, write_text
from mtpd_mlx.text.svg import Series, bar_plot, line_plot

ARM_NAMES = {
    "ce_short": "from scratch, CE",
    "mtpd_short": "from scratch, MTP-D",
    "mtpd": "shipped MTP-D heads",
    "mtpd_looped": "looped to 8, copied",
    "mtpd_extended": "looped to 8, trained",
}
FOLDER = Path(__file__).parent
Curves = dict[str, list[dict[str, Any]]]
Plot = tuple[list[Series], Markup]


def write_report(report: dict[str, Any], curves: Curves, folder: Path) -> None:
    """Writes `folder`/report.html (nothing fetched) and `folder`/report.json. `curves`: those of the leading model."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_text(folder / "report.html", render(report, curves))
    finally:
        write_json(folder / "report.json", report)  # the figures outlive a page that cannot be drawn


def render(report: dict[str, Any], curves: Curves) -> str:
    """The page. `curves`: arm -> records with iter, tau, loss and (where known) head_loss per trained head."""
    lead = report.get("real") or report
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("report.html.jinja").render(
        report=report,
        lead=lead,
        name_of=name_of,
        style=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        drawings={"round": Markup(draw_round()), "training": Markup(draw_training())},
        acceptance=acceptance(lead["arms"]),
        taus=taus(curves, "seconds" if report.get("real") else "iter"),
        losses=[(name, *losses(name, curve)) for name, curve in curves.items() if curve],
        speeds=speeds(lead["speed"]),
        speeds_by_folder=speeds_by_folder(lead["speed"]),
        conditions={**lead.get("conditions", {}), **report["machine"], **report["versions"]},
    )


def name_of(arm: str) -> str:
    return ARM_NAMES.get(arm, arm)


def arm_series(values: dict[str, tuple[Sequence[float], Sequence[float]]]) -> list[Series]:
    """One line per arm, in the arm's own colour and name. `values`: arm -> (xs, ys)."""
    return [
        Series(name_of(arm), xs, ys, f"var(--{arm})" if arm in ARM_NAMES else "var(--ink)", "looped" in arm)
        for arm, (xs, ys) in values.items()
    ]


def acceptance(arms: dict[str, Any]) -> Plot:
    """CAR by depth of every arm."""
    series = arm_series({name: (range(1, len(arm["car"]) + 1), arm["car"]) for name, arm in arms.items()})
    return series, Markup(line_plot(series, "depth k", "CAR", y_range=(0, 1)))


def taus(curves: Curves, by: str = "iter") -> Plot:
    """Simulated tau of the two short runs. `by`: iter, or seconds (since the first step, which compiles)."""
    short = {name: curve for name, curve in curves.items() if name in ("ce_short", "mtpd_short")}
    series = arm_series(
        {name: ([r[by] - (c[0][by] if by == "seconds" else 0) for r in c], [r["tau"] for r in c]) for name, c in short.items()}
    )
    return series, Markup(line_plot(series, "step" if by == "iter" else "seconds", "simulated tau"))


def losses(name: str, curve: list[dict[str, Any]]) -> Plot:
    """One run's loss per trained head (in an extension: the new ones); its summed loss where heads were not recorded."""
    values = [r.get("head_loss") or [r["loss"]] for r in curve]
    steps = [r["iter"] for r in curve]
    frozen = max(len(curve[0].get("car", [])) - len(values[0]), 0)
    series = [
        Series(f"head {frozen + k + 1}", steps, [row[k] for row in values], f"var(--head-{k % 4 + 1})")
        for k in range(len(values[0]))
    ]
    return series, Markup(line_plot(series, "step", f"loss of {name}", size=(300, 200)))


def speeds(speed: dict[str, Any]) -> Markup:
    """Tokens per second of both runtimes, plain and with heads, and of stock mlx_lm where it was timed."""
    bars = []
    for name, key, colour in (("MLX", "mlx", "var(--mtpd)"), ("ONNX", "onnx", "var(--mtpd_extended)")):
        plain, heads = speed[f"{key}_plain"], speed[f"{key}_mtpd"]
        if stock := speed.get(f"{key}_stock"):
            bars.append((f"{name}, mlx_lm", stock, "tokens/s", "var(--ce_short)"))
        bars += [
            (f"{name}, plain", plain, "tokens/s", "var(--ce_short)"),
            (f"{name}, heads", heads, f"({heads / plain:.2f}x)", colour),
        ]
    return Markup(bar_plot(bars))


def speeds_by_folder(speed: dict[str, Any]) -> Markup:
    """ONNX tokens per second with heads, by number of drafts or precision of the export; empty where only one was measured."""
    measured = speed.get("onnx_by_k", {})
    chosen = speed.get("onnx_folder", str(speed["onnx_num_draft_tokens"]))
    bars = []
    for name, value in measured.items() if len(measured) > 1 else ():
        label = f"{name} drafts" if str(name).isdigit() else str(name)
        note, colour = ("(chosen)", "var(--mtpd_extended)") if str(name) == chosen else ("", "var(--line)")
        bars.append((label, value, note, colour))
    return Markup(bar_plot(bars))
