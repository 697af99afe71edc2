"""Write docs/RESULTS.md and its picture from the rows in benchmarks/results/learning/.

    python benchmarks/results_page.py

Every figure comes from a row (`learning_rows.py` makes them), from cpu_recipes.json, or from the tasks in
examples.jsonl; what has no row is not mentioned. Left out: any figure written by hand.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from common.files import read_json, write_text_atomic  # noqa: E402
from scoring.metrics import Estimate, format_estimate  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "RESULTS.md"
PICTURE = ROOT / "docs" / "plots" / "learning.png"

MODELS = {
    "tiny-gpt-oss": "the small GPT-OSS of this repository (3.9 M parameters)",
    "tiny-gpt-oss-agent": "the small GPT-OSS of this repository, weights for agent mode (3.9 M parameters)",
    "SmolLM2-135M-Instruct": "SmolLM2-135M-Instruct (135 M parameters)",
}
METHODS = {
    "base": "base", "sft": "SFT", "grpo": "SFT+GRPO", "random": "GRPO with random rewards",
    "more-sft": "more SFT",
}
COLORS = {
    "base": "#9aa0a6", "sft": "#4c78a8", "grpo": "#e4572e", "random": "#b279a2", "more-sft": "#54a24b",
}
METRICS = {
    "plan": {"exact_match_rate": "exact match", "db_match_rate": "db match", "action_f1": "action F1",
             "json_parse_success": "JSON parse"},
    "agent": {"success_rate": "success", "db_match_rate": "db match", "violation_rate": "policy violations"},
}
"""By mode; the first is drawn and decides what the page calls proven."""
Row = dict[str, Any]


def read_rows(folder: Path) -> list[list[Row]]:
    """Return the rows by model, mode and setting; in a group by method and seed."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        row = read_json(path, {})
        groups[row["mode"], row["model"], row["setting"]].append(row)
    places = list(METHODS)
    order = sorted(groups, key=lambda key: (key[0] != "plan", list(MODELS).index(key[1]), key[2]))
    return [
        sorted(groups[key], key=lambda row: (places.index(row["method"]), row.get("seed", 0)))
        for key in order
    ]


def main_metric(row: Row) -> str:
    """Return the metric that decides, by the row's mode."""
    return next(iter(METRICS[row["mode"]]))


def title(group: Sequence[Row]) -> str:
    """Return a group's heading."""
    name = MODELS[group[0]["model"]]
    return f"{name[0].upper()}{name[1:]}, {group[0]['mode']} mode: {group[0]['setting']}"


def trained_in(groups: Sequence[Sequence[Row]]) -> list[Sequence[Row]]:
    """Return the groups without those that only evaluate adapters of other groups again."""
    return [group for group in groups if not group[0].get("again")]


def verdict(difference: Estimate) -> str:
    """Return what an interval says."""
    if difference["low"] == difference["high"] == 0:
        return "no change: the adapter of SFT was kept"
    if difference["low"] > 0:
        return "gain proven"
    return "loss proven" if difference["high"] < 0 else "no proven gain"


# -- the picture --------------------------------------------------------------------------------


def start_of(row: Row, group: Sequence[Row]) -> tuple[float, Estimate] | None:
    """Return when and where a row's training began: its seed's SFT, or the base model."""
    earlier = row.get("begins_with", "base" if row["method"] == "sft" else "sft")
    for other in group:
        if other["method"] == earlier and (earlier == "base" or other["seed"] == row["seed"]):
            return (other.get("train_minutes") or 0.0), other["metrics"][main_metric(row)]
    return None


def draw_rows(axis: Axes, group: Sequence[Row]) -> None:
    """Draw each row from where its training began to its held-out result, with 95 % intervals."""
    labelled = set()
    for row in group:
        if not row["metrics"]:
            continue
        color, end = COLORS[row["method"]], row["metrics"][main_metric(row)]
        begin = start_of(row, group) if row["method"] != "base" else None
        minutes = row.get("train_minutes") or 0.0
        if begin and row.get("begins_with") != "base" and row["method"] != "sft":
            minutes += begin[0]
        if begin:
            times, ends = (begin[0], minutes), (begin[1], end)
            # No evaluation lies between the two ends of a dotted line.
            axis.plot(times, [e["value"] for e in ends], color=color, linestyle=":", linewidth=1.2)
            axis.fill_between(times, *([e[side] for e in ends] for side in ("low", "high")),
                              color=color, alpha=0.08, linewidth=0)
        axis.errorbar(
            minutes, end["value"], [[end["value"] - end["low"]], [end["high"] - end["value"]]],
            color=color, marker="o", markersize=4, capsize=2, linewidth=1,
            label=None if row["method"] in labelled else METHODS[row["method"]],
        )
        labelled.add(row["method"])


def draw_curves(axis: Axes, group: Sequence[Row]) -> None:
    """Draw validation evaluations over the minutes of GRPO, with 95 % binomial intervals."""
    for row, style in zip(with_curve(group), ("-", "--", ":"), strict=False):
        times = [point["minutes"] for point in row["curve"]]
        values = [point[main_metric(row)] for point in row["curve"]]
        size, color = row["curve"][0]["num_tasks"], COLORS[row["method"]]
        widths = [1.96 * (value * (1 - value) / size) ** 0.5 for value in values]
        axis.plot(times, values, style, color=color, marker="o", markersize=3, label=f"seed {row['seed']}")
        sides = [[v + sign * w for v, w in zip(values, widths, strict=True)] for sign in (-1, 1)]
        axis.fill_between(times, *sides, color=color, alpha=0.08, linewidth=0)


def with_curve(group: Sequence[Row]) -> list[Row]:
    """Return the rows that show how validation went, more than its two ends."""
    return [row for row in group if len(row.get("curve", [])) > 2]


def draw(groups: Sequence[Sequence[Row]], path: Path) -> None:
    """Draw a panel for each group that compares something; the file says what it was drawn from."""
    shown = [
        group for group in trained_in(groups)
        if with_curve(group) or len({row["method"] for row in group}) > 1
    ]
    panels = sorted(
        ((draw_curves if with_curve(group) else draw_rows, group) for group in shown),
        key=lambda panel: panel[0] is draw_curves,
    )
    columns = 3 if len(panels) > 4 else max(1, min(2, len(panels)))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.4 * lines), dpi=90, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    handles: dict[str, Any] = {}
    # The panels come first: a zip takes one of its first more than it gives.
    for (draw_panel, group), axis in zip(panels, axes, strict=False):
        draw_panel(axis, group)
        metric = METRICS[group[0]["mode"]][main_metric(group[0])]
        name = MODELS[group[0]["model"]].split(" of this")[0].split(" (")[0].removeprefix("the ")
        axis.set_title(f"{name}, {group[0]['mode']} mode\n{group[0]['setting']}", fontsize=8.5)
        axis.set_xlabel("minutes of GRPO" if draw_panel is draw_curves else "minutes of training", fontsize=8)
        where = "validation" if draw_panel is draw_curves else "held-out"
        axis.set_ylabel(f"{where} {metric}", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if draw_panel is draw_curves:
            axis.legend(fontsize=8, frameon=False, loc="lower right")
        else:
            handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    for axis in axes:
        axis.set_axis_off()
    names = [name for name in METHODS.values() if name in handles]
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=5, fontsize=9,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None, "Description": digest(groups)})


def digest(groups: Sequence[Sequence[Row]]) -> str:
    """Return the hash of the rows, written into the picture."""
    return hashlib.sha256(json.dumps(groups, sort_keys=True).encode()).hexdigest()


# -- the page -----------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def differences(group: Sequence[Row], method: str) -> list[Estimate]:
    """Return a method's differences from SFT in a group's main metric, one for each seed."""
    return [
        row["minus_sft"][main_metric(row)] for row in group
        if row["method"] == method and "minus_sft" in row
    ]


def with_verdict(difference: Estimate) -> str:
    """Return a difference and what it says."""
    return f"{format_estimate(difference, '+')} ({verdict(difference)})"


def in_short(groups: Sequence[Sequence[Row]]) -> list[str]:
    """Return how many runs of each method have a proven gain or loss against their SFT."""
    lines = []
    groups = trained_in(groups)
    for method in ("grpo", "random", "more-sft"):
        found = [verdict(difference) for group in groups for difference in differences(group, method)]
        if found:
            lines.append(
                f"- {METHODS[method]} against SFT: {len(found)} runs, {found.count('gain proven')} with a "
                f"proven gain, {found.count('loss proven')} with a proven loss."
            )
    return lines


def findings(groups: Sequence[Sequence[Row]], recipes: dict[str, Any]) -> list[str]:
    """Return what each difference from SFT says, by group and method."""
    lines = []
    for group in groups:
        row = group[0]
        metric = METRICS[row["mode"]][main_metric(row)]
        found = [
            f"  - {METHODS[method]}: {'; '.join(map(with_verdict, values))}"
            for method in METHODS if (values := differences(group, method))
        ]
        for curve in with_curve(group):
            first, last = curve["curve"][0], curve["curve"][-1]
            begin, end = (f"{point[main_metric(row)]:.3f}" for point in (first, last))
            found.append(
                f"  - {METHODS[curve['method']]}, seed {curve['seed']}, on {first['num_tasks']} validation "
                f"tasks: {begin} before, {end} after {last['step']:.0f} steps (not paired: no verdict)"
            )
        if found:
            lines += [f"- {title(group)}. {metric[0].upper()}{metric[1:]} minus that of SFT, {size(group)}, "
                      "one figure for each seed:", *found]
    if recipes:
        lines.append("- The search for a recipe (below), after one epoch of SFT, one run each. Exact match "
                     "minus that of SFT:")
        lines += [f"  - {row['what']}: {with_verdict(row['minus_sft_exact'])}"
                  for row in recipes["held_out"]["after"]]
    return lines


def size(group: Sequence[Row]) -> str:
    """Return the number of a group's held-out tasks."""
    return "n=" + ", ".join(f"{n:,}" for n in sorted({r["num_tasks"] for r in group if r["metrics"]}))


def group_table(group: Sequence[Row]) -> list[str]:
    """Return a group's rows as a table."""
    metrics = METRICS[group[0]["mode"]]
    paired = list(metrics)[:2]
    lines = []
    for row in group:
        if row["metrics"]:
            gains, minutes = row.get("minus_sft", {}), row.get("train_minutes")
            lines.append([
                METHODS[row["method"]], str(row.get("seed", "")),
                *(format_estimate(row["metrics"][n]) if n in row["metrics"] else "" for n in metrics),
                *(format_estimate(gains[name], "+") if name in gains else "" for name in paired),
                f"{minutes:.1f}" if minutes else "",
            ])
    header = ["", "seed", *metrics.values(), *(f"{metrics[n]} minus SFT" for n in paired), "minutes"]
    return table(header, lines)


def trials_table(group: Sequence[Row]) -> list[str]:
    """Return a group's pass^k as a table with its heading; nothing where no row has it."""
    rows = [row for row in group if "pass_hat_k" in row["metrics"]]
    if not rows:
        return []
    what = "success" if rows[0]["mode"] == "agent" else "db match"
    counts = list(rows[0]["metrics"]["pass_hat_k"])
    lines = [
        [METHODS[row["method"]], str(row.get("seed", "")),
         *(format_estimate(row["metrics"]["pass_hat_k"][k]) for k in counts)] for row in rows
    ]
    header = ["", "seed", *(f"pass^{k}" for k in counts)]
    return [f"Chance of {what} in all of k sampled answers to a task (pass^k):", "",
            *table(header, lines), ""]


def curve_table(group: Sequence[Row]) -> list[str]:
    """Return the validation evaluations of a group's GRPO as a table."""
    rows = with_curve(group)
    metrics = {k: v for k, v in METRICS[group[0]["mode"]].items() if k in rows[0]["curve"][0]}
    lines = [
        [METHODS[row["method"]], str(row["seed"]), f"{point['step']:.0f}", f"{point['minutes']:.1f}",
         *(f"{point[name]:.3f}" for name in metrics), str(point["num_tasks"])]
        for row in rows for point in row["curve"]
    ]
    return table(["", "seed", "step", "minutes", *metrics.values(), "n"], lines)


def commands(group: Sequence[Row]) -> list[str]:
    """Return the commands of a group; the common beginning of those of a script appears once."""
    scripts: dict[str, list[list[str]]] = defaultdict(list)
    for command in dict.fromkeys(row["command"] for row in group):
        scripts[command.split()[1]].append(command.split())
    lines = []
    for found in scripts.values():
        if len(found) == 1:
            lines.append(f"- `{' '.join(found[0])}`")
            continue
        begin = os.path.commonprefix(found)
        rests = (" ".join(words[len(begin):]) for words in found)
        lines.append(f"- `{' '.join(begin)}` with each of {', '.join(f'`{rest}`' for rest in rests)}")
    return lines


def measured(group: Sequence[Row]) -> list[str]:
    """Return how a group was measured: tasks, machine, what to know, and the commands."""
    tasks, machines, notes = (
        list(dict.fromkeys(row[key] for row in group if row[key])) for key in ("tasks", "machine", "note")
    )
    return [
        f"Held-out tasks: {'; '.join(tasks)} ({size(group)}). Machine: {'; '.join(machines)}. "
        + " ".join(notes), "", "Commands:", "", *commands(group),
        f'- `python benchmarks/learning_rows.py RESULT --setting "{group[0]["setting"]}"` makes the rows',
    ]


def ablations(found: dict[str, Any]) -> list[str]:
    """Return the recipe search as tables: validation by step, then the held-out comparison."""
    steps = sorted({point["step"] for run in found["validation"] for point in run["curve"]})
    lines = []
    for run in found["validation"]:
        values = {point["step"]: point["exact_match"] for point in run["curve"]}
        settings = ", ".join(f"{name} {value}" for name, value in run["settings"].items())
        lines.append([settings, run["grpo_tasks"], str(run["num_tasks"]),
                      *(f"{values[step]:.3f}" if step in values else "" for step in steps)])
    sft, held_out = found["held_out"]["sft"], found["held_out"]
    after = [
        [row["what"], f"{row['exact_match']:.3f}", format_estimate(row["minus_sft_exact"], "+"),
         f"{row['db_match']:.3f}", format_estimate(row["minus_sft_db"], "+"), row["machine"]]
        for row in held_out["after"]
    ]
    machines = "; ".join(dict.fromkeys(run["machine"] for run in found["validation"]))
    return [
        "## Ablations: the search for a recipe", "",
        f"`{found['model']}`, from {found['from']}. Exact match on validation tasks (n in the table)",
        "after so many GRPO steps. With n=200 the 95 % interval reaches about 0.05 to either side: most rows",
        f"differ by chance. Machines: {machines}. Command, one call for each row:",
        "`python benchmarks/cpu_recipes.py --output-dir FOLDER --set STAGE.FIELD=VALUE`.", "",
        *table(["settings", "tasks of GRPO", "n", *(f"step {step}" for step in steps)], lines), "",
        f"The same, on {held_out['tasks']}; SFT has exact match {sft['exact_match']:.3f}, "
        f"db match {sft['db_match']:.3f}.", "",
        *table(["after SFT", "exact match", "minus SFT", "db match", "minus SFT", "machine"], after), "",
    ]


def calls_text(calls: Sequence[dict[str, Any]] | str) -> list[str]:
    """Return calls as lines of code; a text that is no plan stays a text."""
    if isinstance(calls, str):
        return [calls]
    return [f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls]


def examples(path: Path) -> list[str]:
    """Return tasks before and after GRPO."""
    if not path.exists():
        return []
    about, *tasks = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    counts = about["counts"]
    lines = [
        "## Tasks before and after GRPO", "",
        f"{MODELS[about['model']]}, seed {about['seed']}, of {about['num_tasks']:,} held-out tasks: "
        f"{counts['both']} right before and after, {counts['neither']} wrong both times, {counts['after']} "
        f"made right by GRPO, {counts['before']} made wrong by it. Shown are the first of each kind in the "
        "order of the file, not the best. Right means: exactly the gold calls.", "",
    ]
    for task in tasks:
        sft, grpo = ("right" if task[f"{name}_right"] else "wrong" for name in ("sft", "grpo"))
        blocks = {f"SFT: {sft}": task["sft"], f"SFT+GRPO: {grpo}": task["grpo"]}
        if (sft, grpo) == ("wrong", "wrong"):
            blocks["gold"] = task["gold"]
        lines += [f"### {task['task_id']}: {sft}, then {grpo}", "",
                  *(f"> {line}".rstrip() for line in task["query"].splitlines()), "", "```text"]
        for name, calls in blocks.items():
            lines += [name, *(f"  {line}" for line in calls_text(calls))]
        lines += ["```", ""]
    return lines


def page(groups: Sequence[Sequence[Row]], recipes: dict[str, Any], tasks: Path) -> str:
    """Return the text of RESULTS.md."""
    models = sorted({MODELS[group[0]["model"]] for group in groups})
    lines = [
        "# Results: what SFT and GRPO teach, and what they do not", "",
        "Written by `python benchmarks/results_page.py` from `benchmarks/results/learning/` and",
        "`cpu_recipes.json`; do not edit.",
        f"Models: {'; '.join(models)}.",
        "**Nothing here was measured on GPT-OSS 20B**: its weights were not at hand. These are small models;",
        "what they show may or may not hold for a large one.", "",
        f"![Held-out results against minutes of training](plots/{PICTURE.name})", "",
        "Each dot is one run on held-out tasks of customers that training never saw, with its 95 %",
        "bootstrap interval. A dotted line joins a run to what it began with; nothing was measured between.",
        "A solid or dashed line is a validation curve with its 95 % binomial interval. Panels differ in",
        "machine and tasks: compare within a panel only.", "",
        "## What is proven, and what is not", "",
        "Over the tables below, without the search for a recipe:", "", *in_short(groups), "",
        "A gain is proven when the 95 % interval of the paired difference (task by task) lies above 0, a",
        "loss when it lies below. Two controls: would any reward have done it (random rewards), and would",
        "time spent on more SFT have done better?", "",
        *findings(groups, recipes), "",
        "What these runs cannot say: what a 20B model gains, and what other seeds would show. An interval",
        "covers the choice of tasks, not the choice of the seed; and of twenty comparisons without any",
        "difference, about one would count as proven by chance.", "",
        "## Making a row again", "",
        "Below each table are its commands; RUN and FOLDER are run folders of yours. The last one turns",
        "RESULT into rows: the JSON file that the command wrote (`learning.py` into `outputs/learning/`,",
        "`agent_learning.py` into its run folder, `cpu_recipes.py` as `recipe.json`), or the folder of a run",
        "that was stopped. It reads tasks, machine and note from there; `--tasks`, `--machine` and `--note`",
        "put other words in their place, as these tables have. `python benchmarks/results_page.py` then",
        "writes this page.", "",
    ]
    for group in groups:
        lines += [f"## {title(group)}", "", *group_table(group), "", *trials_table(group)]
        if with_curve(group):
            lines += ["Validation evaluations during GRPO:", "", *curve_table(group), ""]
        lines += [*measured(group), ""]
    if recipes:
        lines += ablations(recipes)
    return "\n".join([*lines, *examples(tasks)]).rstrip() + "\n"


def main() -> None:
    """Write the page and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    groups = read_rows(RESULTS / "learning")
    draw(groups, arguments.picture)
    text = page(groups, read_json(RESULTS / "cpu_recipes.json", {}), RESULTS / "learning" / "examples.jsonl")
    write_text_atomic(arguments.output, text)


if __name__ == "__main__":
    main()
