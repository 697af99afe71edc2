"""Draw README's figure: one task from the customer's words to the reward.

    python benchmarks/overview_figure.py

Takes the first task of dataset.jsonl with one cancellation, runs its gold plan on the store and
writes docs/plots/overview.png. Everything shown comes from the tools and the scorer.
"""

import argparse
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

from data_reader import gold_completion, read_tasks  # noqa: E402
from envs.retail import Episode, RetailDatabase  # noqa: E402
from scoring.reward import score_completion  # noqa: E402

OUTPUT = ROOT / "docs" / "plots" / "overview.png"
COLORS = ("#e8eef7", "#fdf1e3", "#eaf5ea", "#f3ebf7")


def wrap(text: str, width: int) -> str:
    """Return text broken into lines, its own line breaks kept."""
    lines = [textwrap.wrap(line, width) or [""] for line in text.splitlines()]
    return "\n".join(part for group in lines for part in group)


def panels() -> list[tuple[str, str]]:
    """Return title and text of the four panels."""
    db = RetailDatabase.load()
    task = next(
        task for task in read_tasks(ROOT / "dataset.jsonl")
        if task.tags["wishes"] == ["cancel"] and len(task.query) < 260
    )
    episode = Episode(db)
    calls = []
    for call in task.gold_actions:
        observation = episode.call(call["name"], call["arguments"])
        shown = "\n".join(f"  {name}: {value}" for name, value in call["arguments"].items())
        calls.append(f"{call['name']}\n{shown}\n  -> {'accepted' if observation.ok else 'refused'}")
    changes = []
    for order_id, order in episode.changed_records()["orders"].items():
        before = db.orders[order_id]
        changes.append(f"order {order_id}")
        changes += [f"status: {before['status']}\n     -> {order['status']}"]
        refund = order["payment_history"][-1]
        changes += [f"payment_history:\n     + {refund['transaction_type']} {refund['amount']:.2f}"]
    score = score_completion(task, gold_completion(task), db)
    points = [f"{part.replace('_', ' ')}: {value:+g}" for part, value in score.parts.items() if value]
    reward = [*points, f"tool reward: {score.reward:g} of {score.max_reward:g}", "",
              f"outcome: {score.outcome:g}", "(store equals gold's)"]
    return [
        ("1  A customer writes", wrap(task.query, 34)),
        ("2  The model plans", "\n\n".join(calls)),
        ("3  The tools run the plan", "\n\n".join(changes)),
        ("4  The result is the reward", "\n".join(reward)),
    ]


def main() -> None:
    """Draw the figure."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    figure = Figure(figsize=(13.5, 3.7), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 4)
    axes.set_ylim(0, 1)
    for index, (title, text) in enumerate(panels()):
        axes.text(index + 0.06, 0.93, title, fontsize=11, weight="bold", va="top")
        axes.text(
            index + 0.06, 0.80, text, fontsize=9, va="top", linespacing=1.45,
            family="sans-serif" if index in (0, 3) else "monospace",
        )
        axes.add_patch(
            FancyBboxPatch(
                (index + 0.03, 0.05), 0.92, 0.92, boxstyle="round,pad=0,rounding_size=0.03",
                facecolor=COLORS[index], edgecolor="none", zorder=0,
            )
        )
        if index:
            axes.annotate("", (index + 0.035, 0.5), (index - 0.06, 0.5),
                          arrowprops={"arrowstyle": "->", "lw": 1.8, "color": "#555555"})
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT)
    print(OUTPUT.relative_to(ROOT))


if __name__ == "__main__":
    main()
