#!/usr/bin/env python3
"""docs/results.md, the pages and figures of docs/results and its summary.json from the JSON of the runs, and from nothing else.

    python -m tools.experiments.report docs/results

FOLDER holds results files of tools/experiments/run.py under any names and perhaps speed.json, the speeds measured with those
arms (findings.py, read_speed). FOLDER.md has the tables that matter, FOLDER/NAME.md all those of a run.
"""

import argparse
from pathlib import Path

from tools.experiments.figures import save_plot, series_of
from tools.experiments.findings import CE, CE_MEAN, FIRST, WAYS, Run, greedy, read_runs, read_speed, summary
from tools.experiments.pages import (
    MISSING,
    PARTS,
    aims_table,
    arms_table,
    domains_table,
    joint_table,
    paper_table,
    sets_table,
    speed_table,
    sureness_table,
)
from tools.experiments.real_heads import FILE_NAME as REAL_NAME
from tools.experiments.real_heads import front as real_front
from tools.experiments.real_heads import section as real_section
from tools.experiments.results_file import write_generated

SUMMARY_NAME = "summary.json"
JOINT = tuple(f"joint4-{of}" for of in (CE, CE_MEAN, FIRST, *(of for of, _ in WAYS)))
FIGURES = {
    "heads": ("CAR by depth, four heads", lambda e: e["num_heads"] == 4 and e["seed"] == 0 and e["part"] != "ablations"),
    "loops": ("CAR by depth, looped and from scratch", lambda e: e["num_heads"] > 4),
}

JOINT_NOTE = (
    "Joint training of four heads from scratch, by seed. [Training the base too](joint-training.md) explains the options.\n\n"
)
INTRO = """# Results

Six tables answer most questions; the pages of the runs, linked below, have all the others. Everything here is made by
`python -m tools.experiments.report docs/results` from the JSON in docs/results. To run the experiments again:
`python -m tools.experiments.run --help`. The speed of the real model is in the first table of README.md and in the
[log](log.md).

How to read the columns ([glossary](glossary.md)):

| column | meaning |
|---|---|
| CAR | share of rounds whose drafts 1..k were all accepted, for k = 1, 2, ... |
| AR | share of drafts k that were accepted, where drafts 1..k-1 were |
| tau | tokens per pass of the base: 1 + the sum of CAR |
| T = 0.7 | sampled with rejection sampling; everything else is greedy |
| new 4-grams | rounds whose first target ends a 4-gram that is new to the text |
| distinct-4 | share of distinct 4-grams in the measured text |

Where no set is named, figures are taken over all seven prompt sets. ms/step is missing where copies or other programs
ran beside.

"""


def section(run: Run, folder: Path) -> str:
    """The page of a run."""
    c = run.content
    options = ", ".join(f"{k} {v}" for k, v in c["options"].items())
    device = f"{c['device']}, MLX {c['versions']['mlx']}"
    parts = [
        f"# {run.name}\n\n[Results](../{folder.name}.md) says what the columns are.\n\n"
        f"{device}; {c['data']['train_tokens'] / 1e6:.1f}M training tokens, "
        f"vocabulary {c['data']['vocab_size']}. Setting {c['setting']}: {options}.\n",
        f"## Aims\n\n{aims_table(run)}",
    ]
    for part, title in PARTS.items():
        if entries := [e for e in run.arms.values() if e["part"] == part]:
            parts.append(f"## {title}\n\n{arms_table(entries)}")
    if any(run.get(name) for name in JOINT):
        for kind, title in (("greedy", "greedy"), ("sampled", "T = 0.7")):
            parts.append(f"## CAR of the last depth (%) / tau by prompt set, {title}\n\n{sets_table(run, JOINT, kind)}")
        parts.append(f"## Main loss by domain\n\n{domains_table(run, JOINT)}")
    own_base = [e for e in run.arms.values() if e["mode"] in ("base", "joint")]
    if (sureness := sureness_table(own_base)) is not None:
        parts.append(f"## Main head on held-out text: loss and entropy (nats a token), accuracy\n\n{sureness}")
    for name, (title, wanted) in FIGURES.items():
        lines = [(key, greedy(e)["car"]) for key, e in run.arms.items() if "greedy" in e and wanted(e)]
        if lines:
            file = folder / f"{run.name}-{name}.svg"
            save_plot(file, series_of(lines), "depth", "CAR")
            parts.append(f"![{title}]({file.name})\n")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    runs = read_runs(folder)
    write_generated(folder / SUMMARY_NAME, "tools.experiments.report", summary(runs))
    real = folder / REAL_NAME
    parts = real_front(real, f"{folder.name}/{real.stem}.md") if real.is_file() else [MISSING + "\n"] * 3
    titles = (
        "Heads of a real model",
        "Which loss and which optimiser",
        "After a fine-tune",
        "Base and heads trained together",
        "The paper's figures and ours",
        "Speed of models from scratch",
    )
    parts += [JOINT_NOTE + joint_table(runs), paper_table(runs), speed_table(read_speed(folder))]
    page = [INTRO, *(f"## {i}. {title}\n\n{part}\n" for i, (title, part) in enumerate(zip(titles, parts, strict=True), 1))]
    page.append("## All runs\n\n" + "".join(f"- [{r.name}]({folder.name}/{r.name}.md): {r.content['device']}\n" for r in runs))
    if real.is_file():
        page.append(f"- [{real.stem}]({folder.name}/{real.stem}.md): heads of a real model\n")
        real.with_suffix(".md").write_text(real_section(real).rstrip("\n") + "\n")
    for run in runs:
        (folder / f"{run.name}.md").write_text(section(run, folder).rstrip("\n") + "\n")
    folder.with_suffix(".md").write_text("".join(page).rstrip("\n") + "\n")
    print(f"{folder.with_suffix('.md')}: {len(runs)} run(s), {sum(len(r.arms) for r in runs)} arms")


if __name__ == "__main__":
    main()
