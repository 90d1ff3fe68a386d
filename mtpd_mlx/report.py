"""report.json and a self-contained report.html of a demo run."""

import html
import io
from pathlib import Path
from typing import Any

from mtpd_mlx.checkpoint_format import write_json

ARM_NAMES = {
    "ce_short": "from scratch, CE",
    "mtpd_short": "from scratch, MTP-D",
    "mtpd": "shipped MTP-D heads",
    "mtpd_looped": "looped to 8, copied",
    "mtpd_extended": "looped to 8, trained",
}
COLOURS = {
    "ce_short": "#9aa5b1",
    "mtpd_short": "#e0803c",
    "mtpd": "#2a78d6",
    "mtpd_looped": "#86b6ef",
    "mtpd_extended": "#1c7f5c",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #616e7c; --paper: #fbfaf7; --card: #ffffff; --line: #dde2e8;
  --draft: #cfe8da; --accent: #1c7f5c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --muted: #9aa5b1; --paper: #14181d; --card: #1d232a;
  --line: #323f4b; --draft: #1f4d3a; --accent: #5fc79b; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 920px;
  padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p, li { max-width: 70ch; } .muted { color: var(--muted); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem; }
.figure b { display: block; font-size: 1.7rem; font-variant-numeric: tabular-nums; color: var(--accent); }
.plot { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem; } .plot svg { width: 100%;
  height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; margin: .8rem 0;
  white-space: pre-wrap; } .sample mark { background: var(--draft); color: inherit; border-radius: 3px; }
"""


def write_report(report: dict[str, Any], curves: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Writes `folder`/report.json and `folder`/report.html (plots inline, nothing fetched)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    (folder / "report.html").write_text(render(report, curves), encoding="utf-8")


def render(report: dict[str, Any], curves: dict[str, list[dict[str, Any]]]) -> str:
    arms, speed, parity = report["arms"], report["speed"], report["parity"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>MTP-D demo</title><style>{STYLE}</style>",
        "<h1>Several tokens per pass, the same text</h1>",
        "<p>The main model normally writes one token per pass. Small <b>MTP heads</b> guess the next few tokens; the main "
        "model checks all guesses in one pass and keeps those it would have written itself, so the text is exactly its own. "
        "MTP-D trains the heads to imitate the main model (self-distillation) and grows more heads by copying trained ones "
        "(looping).</p>",
        figures(report),
        "<h2>How often guesses are right</h2>",
        "<p class=muted>CAR at depth k: share of rounds in which guesses 1..k were all accepted, over the main model's own "
        "greedy continuations of held-out prompts.</p>",
        plot(lambda axes: draw_car(axes, arms)),
        arm_table(arms),
        "<h2>Training</h2>",
        "<p class=muted>Agreement with the main model while training from scratch: simulated tokens per pass. Both runs see "
        "the same batches.</p>",
        plot(lambda axes: draw_curves(axes, curves, "tau", "simulated tau")),
        "<p class=muted>The training loss of each run (their objectives differ: MTP-D adds the distillation term).</p>",
        plot(lambda axes: draw_curves(axes, curves, "loss", "loss, summed over heads")),
        "<h2>Speed</h2>",
        plot(lambda axes: draw_speed(axes, speed)),
        f"<p class=muted>Tokens per second after the prompt, medians of interleaved repeats. Draft tokens: MLX "
        f"{speed['mlx_num_draft_tokens']}, ONNX {speed['onnx_num_draft_tokens']} (the fastest of those tried).</p>",
        "<h2>Parity</h2>",
        f"<p>{'All' if parity['tokens_equal'] else '<b>Not all</b>'} tokens are identical on MLX and onnxruntime "
        f"({parity['tokens']} tokens, {parity['prompts']} prompts); the largest difference of any logit is "
        f"{parity['max_logit_diff']:.1e}.</p>",
        "<h2>What it wrote</h2>",
        "<p class=muted><mark style='background:var(--draft);color:inherit'>Marked</mark> tokens were guessed by the heads "
        "and confirmed; the others are the main model's own.</p>",
        *(sample(s) for s in report["samples"]),
        "<h2>Conditions</h2>",
        conditions(report),
    ]
    return "\n".join(parts) + "\n"


def figures(report: dict[str, Any]) -> str:
    speed, arms = report["speed"], report["arms"]
    values = [
        (f"{arms['mtpd']['tau']:.2f}", "tokens per pass, 4 heads"),
        (f"{arms['mtpd_extended']['tau']:.2f}", "tokens per pass, looped to 8"),
        (f"{speed['onnx_mtpd'] / speed['onnx_plain']:.2f}x", "speed of plain decoding, onnxruntime"),
        (f"{speed['mlx_mtpd'] / speed['mlx_plain']:.2f}x", "speed of plain decoding, MLX"),
    ]
    cells = "".join(f"<div class=figure><b>{value}</b>{text}</div>" for value, text in values)
    return f"<div class=figures>{cells}</div>"


def arm_table(arms: dict[str, Any]) -> str:
    depth = max(len(a["car"]) for a in arms.values())
    head = "".join(f"<th>CAR {k + 1}</th>" for k in range(depth))
    rows = []
    for name, arm in arms.items():
        cells = "".join(f"<td>{arm['car'][k]:.3f}</td>" if k < len(arm["car"]) else "<td></td>" for k in range(depth))
        rows.append(
            f"<tr><td>{ARM_NAMES.get(name, name)}</td><td>{arm['tau']:.3f}</td><td>{arm['novel']['tau']:.3f}</td>"
            f"<td>{arm['distinct4']:.3f}</td><td>{arm['steps']}</td><td>{arm['seconds']:.0f}</td>{cells}</tr>"
        )
    titles = "<th>heads</th><th>tau</th><th>tau, new 4-grams</th><th>distinct-4</th><th>steps</th><th>seconds</th>"
    return f"<table><tr>{titles}{head}</tr>{''.join(rows)}</table>"


def sample(entry: dict[str, Any]) -> str:
    text = "".join(
        f"<mark>{html.escape(p['text'])}</mark>" if p["kind"] == "draft" else html.escape(p["text"]) for p in entry["pieces"]
    )
    return f"<div class=sample><span class=muted>{html.escape(entry['prompt'])}</span>{text}</div>"


def conditions(report: dict[str, Any]) -> str:
    rows = {**report.get("conditions", {}), **report["machine"], **report["versions"]}
    cells = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def plot(draw: Any) -> str:
    """An inline SVG of one pair of axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.4, 3.4), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb")
    axes.set_axisbelow(True)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    text = buffer.getvalue()
    return f"<div class=plot>{text[text.index('<svg') :]}</div>"


def draw_car(axes: Any, arms: dict[str, Any]) -> None:
    for name, arm in arms.items():
        depths = range(1, len(arm["car"]) + 1)
        axes.plot(depths, arm["car"], marker="o", color=COLOURS.get(name), label=ARM_NAMES.get(name, name))
    axes.set(xlabel="depth k", ylabel="CAR", ylim=(0, 1))
    axes.legend(frameon=False)


def draw_curves(axes: Any, curves: dict[str, list[dict[str, Any]]], key: str, label: str) -> None:
    for name, curve in curves.items():
        if name in ("ce_short", "mtpd_short"):
            axes.plot([r["iter"] for r in curve], [r[key] for r in curve], color=COLOURS.get(name), label=ARM_NAMES[name])
    axes.set(xlabel="step", ylabel=label)
    axes.legend(frameon=False)


def draw_speed(axes: Any, speed: dict[str, Any]) -> None:
    names = ("mlx_plain", "mlx_mtpd", "onnx_plain", "onnx_mtpd")
    labels = ("MLX plain", "MLX with heads", "ONNX plain", "ONNX with heads")
    bars = axes.bar(labels, [speed[n] for n in names], color=["#9aa5b1", COLOURS["mtpd"], "#9aa5b1", COLOURS["mtpd_extended"]])
    axes.bar_label(bars, fmt="%.0f")
    axes.set_ylabel("tokens per second")
