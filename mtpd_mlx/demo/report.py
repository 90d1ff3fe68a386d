"""report.json and a self-contained report.html of a demo run."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtpd_mlx.demo.drawings import draw_round, draw_training
from mtpd_mlx.files.atomic import write_json
from mtpd_mlx.text.svg import Series, bar_plot, legend, line_plot

ARM_NAMES = {
    "ce_short": "from scratch, CE",
    "mtpd_short": "from scratch, MTP-D",
    "mtpd": "shipped MTP-D heads",
    "mtpd_looped": "looped to 8, copied",
    "mtpd_extended": "looped to 8, trained",
}
STYLE = Path(__file__).parent / "report.css"
Curves = dict[str, list[dict[str, Any]]]


def write_report(report: dict[str, Any], curves: Curves, folder: Path) -> None:
    """Writes `folder`/report.json and `folder`/report.html (nothing fetched), each under a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)  # first: the figures outlive a page that cannot be drawn
    page = render(report, curves)
    temporary = folder / f".report.html.{os.getpid()}.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(folder / "report.html")


def render(report: dict[str, Any], curves: Curves) -> str:
    """The page. `curves`: arm -> records with iter, tau, loss and (where known) head_loss per trained head."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>MTP-D demo</title><style>{STYLE.read_text(encoding='utf-8')}</style>",
        *introduction(report),
        *acceptance(report),
        *training(curves),
        *speed_section(report["speed"]),
        "<h2>Parity</h2>",
        parity_box(report["parity"]),
        "<h2>What it wrote</h2>",
        "<p class=muted><mark>Marked</mark> tokens were guessed by the heads and confirmed; the others are the main model's "
        "own. The prompt is grey.</p>",
        *(sample(s) for s in report["samples"]),
        "<h2>Conditions</h2>",
        conditions(report),
    ]
    return "\n".join(parts) + "\n"


def introduction(report: dict[str, Any]) -> list[str]:
    return [
        "<h1>Several tokens per pass, the same text</h1>",
        "<p>A language model normally writes one token per pass. Small <b>MTP heads</b> guess the next few tokens; the main "
        "model checks all guesses in one pass and keeps those it would have written itself, so the text is exactly its own, "
        "only sooner.</p>",
        figures(report),
        f"<div class=plot>{draw_round()}</div>",
        "<p><b>MTP-D</b> trains the heads to imitate the main model (self-distillation), because a guess counts only if the "
        "main model agrees with it. More heads come cheaply: the trained ones are copied behind themselves (looping), and only "
        "the copies are trained further.</p>",
        f"<div class=plot>{draw_training()}</div>",
    ]


def figures(report: dict[str, Any]) -> str:
    speed, arms = report["speed"], report["arms"]
    values = [
        (f"{arms['mtpd']['tau']:.2f}", f"tokens per pass, {len(arms['mtpd']['car'])} heads"),
        (f"{arms['mtpd_extended']['tau']:.2f}", f"tokens per pass, looped to {len(arms['mtpd_extended']['car'])}"),
        (f"{speed['onnx_mtpd'] / speed['onnx_plain']:.2f}x", "speed of plain decoding, onnxruntime"),
        (f"{speed['mlx_mtpd'] / speed['mlx_plain']:.2f}x", "speed of plain decoding, MLX"),
    ]
    cells = "".join(f"<div class=figure><b>{value}</b>{label}</div>" for value, label in values)
    return f"<div class=figures>{cells}</div>"


def arm_series(arms: Sequence[str], values: dict[str, tuple[Sequence[float], Sequence[float]]]) -> list[Series]:
    """One line per arm, in the arm's own colour and name. `values`: arm -> (xs, ys)."""
    return [
        Series(
            ARM_NAMES.get(name, name), *values[name], f"var(--{name})" if name in ARM_NAMES else "var(--ink)", "looped" in name
        )
        for name in arms
    ]


def acceptance(report: dict[str, Any]) -> list[str]:
    arms, base = report["arms"], report["base"]
    series = arm_series(list(arms), {n: (range(1, len(a["car"]) + 1), a["car"]) for n, a in arms.items()})
    return [
        "<h2>How often guesses are right</h2>",
        "<p class=muted>CAR at depth k: share of rounds in which guesses 1..k were all accepted, over the main model's own "
        "greedy continuations of held-out prompts.</p>",
        f"<div class=plot>{legend(series)}{line_plot(series, 'depth k', 'CAR', y_range=(0, 1))}</div>",
        arm_table(arms),
        depth_table(arms),
        "<p class=muted>tau: tokens per pass, 1 + the sum of CAR. AR at depth k: guess k accepted, given that the earlier ones "
        "were. Rounds that accept more begin at other places of the text, so the same heads can differ slightly between arms. "
        f"Models that repeat themselves are easy to guess: {base['distinct4']:.0%} of this one's 4-grams are distinct, and the "
        "column 'new' counts only rounds whose 4-gram had not occurred before. Its validation loss is "
        f"{base['valid_loss']:.3f} nats per token.</p>",
    ]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """Cells are HTML already; escape what comes from outside."""
    head = f"<tr>{''.join(f'<th>{t}</th>' for t in titles)}</tr>" if titles else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table class='{css}'>{head}{body}</table>"


def arm_table(arms: dict[str, Any]) -> str:
    rows = [
        [
            html.escape(ARM_NAMES.get(name, name)),
            f"{arm['tau']:.3f}",
            f"{arm['novel']['tau']:.3f}",
            f"{arm['distinct4']:.3f}",
            str(arm["steps"]) if arm["steps"] else "-",
            f"{arm['seconds']:.0f}" if arm["steps"] else "-",
        ]
        for name, arm in arms.items()
    ]
    return table(["heads", "tau", "tau, new", "distinct-4", "steps here", "seconds"], rows)


def depth_table(arms: dict[str, Any]) -> str:
    """CAR above AR, for each arm and depth."""
    depth = max(len(a["car"]) for a in arms.values())
    rows = []
    for name, arm in arms.items():
        pairs = [f"{c:.3f}<br><span class=muted>{a:.3f}</span>" for c, a in zip(arm["car"], arm["ar"], strict=True)]
        label = f"{html.escape(ARM_NAMES.get(name, name))}<br><span class=muted>AR</span>"
        rows.append([label, *pairs, *[""] * (depth - len(pairs))])
    return table(["CAR at depth", *(str(k + 1) for k in range(depth))], rows)


def training(curves: Curves) -> list[str]:
    """Simulated tau of the two short runs in one plot; losses by head, one panel per run."""
    short = {n: c for n, c in curves.items() if n in ("ce_short", "mtpd_short")}
    taus = arm_series(list(short), {n: ([r["iter"] for r in c], [r["tau"] for r in c]) for n, c in short.items()})
    panels = "".join(loss_panel(name, curve) for name, curve in curves.items() if curve)
    return [
        "<h2>Training</h2>",
        "<p class=muted>Simulated tokens per pass of heads trained from scratch; both runs see the same batches.</p>",
        f"<div class=plot>{legend(taus)}{line_plot(taus, 'step', 'simulated tau')}</div>",
        "<p class=muted>Training loss of each head. CE and MTP-D are different objectives: compare the shapes of these curves, "
        "not their heights.</p>",
        f"<div class=panels>{panels}</div>",
    ]


def loss_panel(name: str, curve: list[dict[str, Any]]) -> str:
    """One run's loss per trained head (in an extension: the new ones); its summed loss where heads were not recorded."""
    losses = [r.get("head_loss") or [r["loss"]] for r in curve]
    steps = [r["iter"] for r in curve]
    frozen = max(len(curve[0].get("car", [])) - len(losses[0]), 0)
    lines = [
        Series(f"head {frozen + k + 1}", steps, [row[k] for row in losses], f"var(--head-{k % 4 + 1})")
        for k in range(len(losses[0]))
    ]
    plot = line_plot(lines, "step", f"loss of {name}", size=(300, 200))
    return f"<div class=plot><h3>{html.escape(ARM_NAMES.get(name, name))}</h3>{legend(lines)}{plot}</div>"


def speed_section(speed: dict[str, Any]) -> list[str]:
    bars = [
        ("MLX, plain", speed["mlx_plain"], "tokens/s", "var(--ce_short)"),
        ("MLX, heads", speed["mlx_mtpd"], f"({speed['mlx_mtpd'] / speed['mlx_plain']:.2f}x)", "var(--mtpd)"),
        ("ONNX, plain", speed["onnx_plain"], "tokens/s", "var(--ce_short)"),
        ("ONNX, heads", speed["onnx_mtpd"], f"({speed['onnx_mtpd'] / speed['onnx_plain']:.2f}x)", "var(--mtpd_extended)"),
    ]
    best = str(speed["onnx_num_draft_tokens"])
    by_k = [
        (
            f"{k} drafts",
            value,
            "(chosen)" if str(k) == best else "",
            "var(--mtpd_extended)" if str(k) == best else "var(--line)",
        )
        for k, value in speed.get("onnx_by_k", {}).items()
    ]
    parts = [
        "<h2>Speed</h2>",
        f"<div class=plot>{bar_plot(bars)}</div>",
        f"<p class=muted>Tokens per second after the prompt, medians of interleaved repeats. Draft tokens: MLX "
        f"{speed['mlx_num_draft_tokens']}, ONNX {best}.</p>",
    ]
    if by_k:
        parts += [
            "<p class=muted>More guesses per round cost more to check: ONNX tokens per second by number of drafts, one "
            "measurement each.</p>",
            f"<div class=plot>{bar_plot(by_k)}</div>",
        ]
    return parts


def parity_box(parity: dict[str, Any]) -> str:
    equal = parity["tokens_equal"]
    verdict = "✓ All tokens are identical" if equal else "✗ <b>Not all</b> tokens are identical"
    return (
        f"<div class='parity{'' if equal else ' bad'}'>{verdict} on MLX and onnxruntime ({parity['tokens']} tokens, "
        f"{parity['prompts']} prompts); the largest difference of any logit is {parity['max_logit_diff']:.1e}.</div>"
    )


def sample(entry: dict[str, Any]) -> str:
    text = "".join(
        f"<mark>{html.escape(p['text'])}</mark>" if p["kind"] == "draft" else html.escape(p["text"]) for p in entry["pieces"]
    )
    return f"<div class=sample><span class=muted>{html.escape(entry['prompt'])}</span>{text}</div>"


def conditions(report: dict[str, Any]) -> str:
    rows = {**report.get("conditions", {}), **report["machine"], **report["versions"]}
    return table([], [[html.escape(str(k)), html.escape(str(v))] for k, v in rows.items()], "facts")
