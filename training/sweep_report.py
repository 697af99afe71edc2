"""What a sweep leaves beside its trials: trials.csv, sweep.png and the closing words.

Left out on purpose: importance figures, which a few dozen trials cannot carry.
"""

import csv
import io
import shlex
from typing import TYPE_CHECKING, Any

from common.files import read_json, write_text_atomic

if TYPE_CHECKING:
    import optuna

    from training.sweep import Sweep

Row = dict[str, Any]


def collect_rows(sweep: "Sweep", study: "optuna.Study") -> list[Row]:
    """Return a row for each trial that is done, in their order.

    Returns:
        Rows with `trial`, `state` ("done" or "failed"), the objective's value and interval, the
        swept values, `seconds` and `error`.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name not in ("COMPLETE", "FAIL"):
            continue
        result = read_json(sweep.trial_dir(trial.number) / "trial.json", {})
        row: Row = {
            "trial": trial.number, "state": "failed" if "error" in result else "done",
            sweep.objective: result.get("value"), "low": result.get("low"),
            "high": result.get("high"),
        }
        row |= {parameter.path: trial.params[parameter.path] for parameter in sweep.space}
        row |= {"seconds": result.get("seconds"), "error": result.get("error")}
        rows.append(row)
    return rows


def best_row(sweep: "Sweep", rows: list[Row]) -> Row | None:
    """Return the row with the highest objective, the earliest of equals; None without a figure."""
    done = [row for row in rows if row["state"] == "done"]
    return max(done, key=lambda row: row[sweep.objective], default=None)


def train_command(sweep: "Sweep", row: Row) -> str:
    """Return the command that trains with the values of a row."""
    words = ["python", "train_script.py", *sweep.words]
    for parameter in sweep.space:
        words += ["--set", f"{parameter.path}={row[parameter.path]}"]
    return shlex.join(words)


def format_rows(sweep: "Sweep", rows: list[Row], best: Row | None) -> str:
    """Return the rows as a text table, the best one marked."""
    names = [parameter.path for parameter in sweep.space]
    widths = [max(len(name), 10) for name in names]
    head = "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    lines = [f"  trial  {sweep.objective:>26}  {head}"]
    for row in rows:
        figure = "failed"
        if row["state"] == "done":
            figure = f"{row[sweep.objective]:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        cells = "  ".join(
            (f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name])).rjust(width)
            for name, width in zip(names, widths, strict=True)
        )
        lines.append(f"{'*' if row is best else ' '} {row['trial']:5d}  {figure:>26}  {cells}")
    return "\n".join(lines)


def plot_rows(sweep: "Sweep", rows: list[Row]) -> None:
    """Write sweep.png: the best value so far, and the objective over each swept field."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    done = [row for row in rows if row["state"] == "done"]
    figure = Figure(figsize=(3.6 * (1 + len(sweep.space)), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(sweep.space), sharey=True, squeeze=False)[0]
    values = [row[sweep.objective] for row in done]
    numbers = [row["trial"] for row in done]
    best = [max(values[: place + 1]) for place in range(len(values))]
    axes[0].step(numbers, best, where="post", color="C1", label="best so far")
    axes[0].plot(numbers, values, "o", markersize=4)
    axes[0].set(xlabel="trial", ylabel=f"{sweep.objective} (validation)")
    axes[0].legend()
    for axis, parameter in zip(axes[1:], sweep.space, strict=True):
        settings = [row[parameter.path] for row in done]
        if parameter.kind == "choice":
            settings = [str(value) for value in settings]
            axis.xaxis.update_units([str(value) for value in parameter.choices])
        axis.plot(settings, values, "o", markersize=4)
        axis.set_xlabel(parameter.path)
        if parameter.kind == "log":
            axis.set_xscale("log")
    path = sweep.folder / "sweep.png"
    temporary = path.with_name("sweep.tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)


def write_report(sweep: "Sweep", study: "optuna.Study", show: bool = False) -> int:
    """Write trials.csv from the trials that are done.

    Args:
        show: Also draw sweep.png, print the table and say how to train with the best values.

    Returns:
        The exit code: 0, or 1 when no trial came to a figure.

    Raises:
        OSError: The disk is full.
    """
    rows = collect_rows(sweep, study)
    best = best_row(sweep, rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(sweep.folder / "trials.csv", text.getvalue())
    if show:
        print(format_rows(sweep, rows, best))
    if show and best is not None:
        plot_rows(sweep, rows)
        # The best of many is partly luck on these tasks, so its figure is not the one to report.
        print(f"best: trial {best['trial']}; this trains with its values and gives the figure to "
              f"report, on the test users:\n{train_command(sweep, best)}")
    return 0 if best is not None else 1
