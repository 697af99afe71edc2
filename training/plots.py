"""Draw a run from the files in its folder; a plot never sees the trainer's memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import read_json
from training.evaluation import STAGE_NAMES
from training.trainer import MetricsTable

COLORS = {"base": "#9aa0a6", "sft": "#4c78a8", "sft_grpo": "#e4572e"}
SIZE = (9.0, 4.8)
"""Width and height in inches; at 110 dots an inch the text stays legible in a notebook."""
SMALL = 9
"""Points of legends and of crowded tick labels; the rest has matplotlib's 10 and 12."""
DPI = 110
RATES = (
    "success_rate", "exact_match_rate", "db_match_rate", "outputs_told_rate", "violation_rate",
    "action_precision", "action_recall", "action_f1", "json_parse_success", "ordering_accuracy",
    "completeness_score",
)
"""Metrics that are drawn, those that the run's mode has."""


def _rows(folder: Path, stage: str) -> list[dict[str, float]]:
    return MetricsTable(folder / "metrics.csv").stage_rows(stage, last_step=10**9)


def _figure(num_axes: int = 1) -> tuple[Figure, list[Axes]]:
    # Figures are made without pyplot: a notebook would show them a second time.
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = list(figure.subplots(1, num_axes, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _smooth(values: Sequence[float], window: int) -> np.ndarray:
    return np.array([np.mean(values[max(0, end - window):end]) for end in range(1, len(values) + 1)])


def _points(rows: list[dict], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of one metric, rows without it left out."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [value for _, value in points]


def _held_out(axis: Axes, rows: list[dict], name: str, label: str) -> None:
    """Draw a figure of the validation evaluations as points."""
    steps, values = _points(rows, name)
    if values:
        axis.plot(steps, values, "o-", color=COLORS["sft_grpo"], label=label)


def _curve(
    axis: Axes, rows: list[dict], name: str, label: str, color: str, is_share: bool = False
) -> None:
    """Draw one metric where there is any, thin, with its running mean on top; 95 % around a share's."""
    steps, values = _points(rows, name)
    if not values:
        return
    window = max(1, len(values) // 5)
    means = _smooth(values, window)
    axis.plot(steps, values, color=color, alpha=0.25, linewidth=1)
    axis.plot(steps, means, color=color, linewidth=2, label=label)
    axis.set_xlabel("optimizer step")
    if is_share and len(values) > 1:
        counts = np.minimum(window, np.arange(1, len(values) + 1))
        variances = np.maximum(0.0, _smooth(np.square(values), window) - means**2)
        half = 1.96 * np.sqrt(variances / np.maximum(1, counts - 1))
        axis.fill_between(steps, means - half, means + half, color=color, alpha=0.12, linewidth=0)
        axis.set_ylim(top=1.02)


def _save(figure: Figure, folder: Path, name: str) -> Path:
    for axis in figure.axes:
        count = len(axis.get_legend_handles_labels()[0])
        if count:
            # Below the axis: inside it, a legend covers whatever the run happens to draw there.
            axis.legend(frameon=False, fontsize=SMALL, loc="upper center", ncols=min(count, 3),
                        bbox_to_anchor=(0.5, -0.12), columnspacing=1.0, handlelength=1.4)
    path = folder / "plots" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    return path


def _save_curves(figure: Figure, folder: Path, name: str) -> Path:
    """Save curves over steps, also without any (grpo.max_steps=0): the notebook shows the file."""
    for axis in figure.axes:
        if not axis.has_data():
            axis.text(0.5, 0.5, "not in this run", transform=axis.transAxes, ha="center")
    return _save(figure, folder, name)


def plot_loss(folder: Path) -> Path:
    """Draw the SFT loss, the GRPO loss beside it."""
    figure, (left, right) = _figure(2)
    _curve(left, _rows(folder, "sft"), "loss", "SFT loss", COLORS["sft"])
    _curve(right, _rows(folder, "grpo"), "loss", "GRPO loss", COLORS["sft_grpo"])
    left.set(title="SFT: cross-entropy of gold completions", ylabel="nats per token")
    right.set(title="GRPO: policy loss (near 0 by design)", ylabel="loss (advantage-weighted)")
    return _save_curves(figure, folder, "loss")


def plot_rewards(folder: Path) -> Path:
    """Draw the rollouts' reward as a share of each task's maximum, and the validation figures."""
    rows = _rows(folder, "grpo")
    figure, (left, right) = _figure(2)
    color = COLORS["sft"]
    _curve(left, rows, "rollouts/reward_share", "sampled: reward / maximum", color, is_share=True)
    _held_out(left, rows, "heldout/exact_match", "held out: exact match")
    _held_out(left, rows, "heldout/reward_share", "held out: reward / maximum")
    left.set(title="Reward earned, share of gold's", ylabel="share")
    _curve(right, rows, "rewards/outcome_reward/mean", "sampled: outcome", color, is_share=True)
    _held_out(right, rows, "heldout/db_match", "held out: db match")
    _curve(right, rows, "episodes/success", "sampled: success", color, is_share=True)
    _held_out(right, rows, "heldout/success", "held out: success")
    right.set(title="Does the store end as gold leaves it?", ylabel="share of completions")
    return _save_curves(figure, folder, "rewards")


def plot_health(folder: Path) -> Path:
    """Draw what tells whether GRPO is healthy: KL, entropy, zero-variance groups, clipping, length."""
    rows = _rows(folder, "grpo")
    figure, (left, right) = _figure(2)
    _curve(left, rows, "kl_to_sft", "KL to the SFT adapter", COLORS["sft_grpo"])
    _curve(left, rows, "kl_to_base", "KL to the base model", COLORS["sft_grpo"])
    _curve(left, rows, "entropy", "entropy", COLORS["sft"])
    left.set(title="How far the policy moved", ylabel="nats per token")
    _curve(right, rows, "frac_reward_zero_std", "zero-variance groups", COLORS["base"])
    _curve(right, rows, "completions/clipped_ratio", "cut off", COLORS["sft_grpo"])
    _curve(right, rows, "rollouts/parsed", "parse", COLORS["sft"])
    right.set(title="What the batch is made of", ylabel="share of the batch", ylim=(-0.02, 1.02))
    return _save_curves(figure, folder, "health")


def plot_evaluation(folder: Path) -> Path | None:
    """Draw the held-out metrics of each stage as bars with 95 % intervals; None without an evaluation."""
    metrics: dict[str, dict[str, Any]] = read_json(folder / "evaluation.json", {})
    if not metrics:
        return None
    figure, (axis,) = _figure()
    width = 0.8 / len(metrics)
    rates = [name for name in RATES if all(name in figures for figures in metrics.values())]
    for position, (stage, figures) in enumerate(metrics.items()):
        estimates = [figures[name] for name in rates]
        values = [estimate["value"] for estimate in estimates]
        # A percentile interval may leave out the value itself by a rounding error.
        below = [max(0.0, e["value"] - e["low"]) for e in estimates]
        above = [max(0.0, e["high"] - e["value"]) for e in estimates]
        places = [index + position * width for index in range(len(rates))]
        axis.bar(places, values, width, yerr=[below, above], capsize=2, color=COLORS.get(stage),
                 label=STAGE_NAMES.get(stage, stage), error_kw={"linewidth": 1})
    middle = width * (len(metrics) - 1) / 2
    axis.set_xticks([index + middle for index in range(len(rates))])
    names = [name.replace("_", "\n", 1).replace("_", " ") for name in rates]
    axis.set_xticklabels(names, fontsize=SMALL)
    counts = "/".join(str(n) for n in sorted({m["num_tasks"] for m in metrics.values()}))
    title = f"{counts} held-out tasks, 95 % bootstrap intervals"
    axis.set(title=title, ylabel="rate, 0 to 1", ylim=(0, 1.02))
    return _save(figure, folder, "evaluation")


def plot_failures(folder: Path) -> Path | None:
    """Draw parse failures by kind and the share of correct calls by tool, by stage; None without any."""
    details = read_json(folder / "evaluation_details.json", {})
    if not details:
        return None
    figure, (left, right) = _figure(2)
    failures, per_tool = details["parse_failures"], details["per_tool"]
    height = 0.8 / len(per_tool)
    kinds = sorted({kind for counts in failures.values() for kind in counts})
    last = list(per_tool.values())[-1]
    tools = sorted(last, key=lambda name: -last[name]["called"])
    for position, stage in enumerate(per_tool):
        shift = position * height
        color, label = COLORS.get(stage), STAGE_NAMES.get(stage, stage)
        counts = [failures[stage].get(kind, 0) for kind in kinds]
        places = [index + shift for index in range(len(kinds))]
        left.barh(places, counts, height, color=color, label=label)
        rows = [per_tool[stage].get(name, {"called": 0, "correct": 0}) for name in tools]
        shares = [row["correct"] / row["called"] if row["called"] else 0.0 for row in rows]
        right.barh([index + shift for index in range(len(tools))], shares, height, color=color)
    middle = height * (len(per_tool) - 1) / 2
    left.set_yticks([index + middle for index in range(len(kinds))], kinds, fontsize=SMALL)
    title = "Answers that cannot be read" if kinds else "Every answer can be read"
    left.set(title=title, xlabel="answers")
    names = [f"{name} ({last[name]['called']})" for name in tools]
    right.set_yticks([index + middle for index in range(len(tools))], names, fontsize=SMALL)
    title = "Calls that are correct\n(number: calls of the last stage)" if tools else "Calls: of plans only"
    right.set(title=title, xlabel="share of the tool's calls", xlim=(0, 1))
    for axis in (left, right):
        axis.invert_yaxis()  # the first stage on top, as the legend has it
    figure.set_figheight(6.0)  # sixteen tools of three bars
    return _save(figure, folder, "failures")


def plot_all(folder: str | Path) -> list[Path]:
    """Draw everything that the run's files allow; return the PNGs under `plots/`."""
    draw = (plot_loss, plot_rewards, plot_health, plot_evaluation, plot_failures)
    return [path for path in (function(Path(folder)) for function in draw) if path]
