"""Seconds of a GRPO step on a CPU, by part, with the prompts of groups read once and read per row.

    python benchmarks/cpu_step.py --adapter outputs/tau_bench_rl/sft/adapter

Writes benchmarks/results/cpu_step.json. Both ways take turns and train on the same completions:
the learning rate is next to nothing, so that the policy stays what the adapter is. CPU seconds are
noted beside wall-clock seconds, as other jobs on the machine blur the latter.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from gptoss.load import load_model  # noqa: E402
from training.grpo import build_grpo_trainer, run_trainer  # noqa: E402
from training.pipeline import prepare_run  # noqa: E402
from training.rewards import make_reward_functions  # noqa: E402

WAYS = {"padded": False, "shared": True}
OUTPUT = ROOT / "benchmarks" / "results" / "cpu_step.json"


class StepClock:
    """Wall-clock and CPU seconds of each part of each step.

    Attributes:
        steps: One counter a step: seconds by part, `step` is all of it.
    """

    def __init__(self, trainer: Any) -> None:
        """Wrap the trainer's methods."""
        import torch

        self.steps: list[Counter] = []
        self.seconds: Counter = Counter()
        wrap = self._wrap
        wrap(trainer, "_generate_single_turn", lambda: "sampling")
        wrap(trainer, "_get_per_token_logps_and_entropies",
             lambda: "forward" if torch.is_grad_enabled() else "reference")
        wrap(trainer, "_prepare_inputs", lambda: "prepare")
        wrap(trainer, "training_step", lambda: "train")
        self.now = self._times()
        trainer.add_callback(_EndOfStep(self))

    @staticmethod
    def _times() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _wrap(self, trainer: Any, name: str, part: Callable[[], str]) -> None:
        inner = getattr(trainer, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin, key = self._times(), part()
            try:
                return inner(*args, **kwargs)
            finally:
                self.add(key, begin)

        setattr(trainer, name, timed)

    def add(self, part: str, begin: tuple[float, float]) -> None:
        """Add the time since `begin` to a part."""
        wall, cpu = self._times()
        self.seconds[part] += wall - begin[0]
        self.seconds[f"{part}_cpu"] += cpu - begin[1]

    def end_step(self) -> None:
        """Close a step."""
        self.add("step", self.now)
        self.now, row = self._times(), self.seconds
        self.seconds = Counter()
        parts = {"sampling": row["sampling"], "reference": row["reference"],
                 "update": row["train"] - row["prepare"]}
        self.steps.append(Counter(
            **parts, other=row["step"] - sum(parts.values()), step=row["step"],
            step_cpu=row["step_cpu"],
        ))


def _EndOfStep(clock: StepClock) -> Any:
    from transformers import TrainerCallback

    class EndOfStep(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end_step()

    return EndOfStep()


def measure(adapter: Path, steps: int, shared: bool, settings: dict[str, Any]) -> list[Counter]:
    """Return the seconds of each step but the first, by part."""
    with tempfile.TemporaryDirectory() as folder:
        config = configs.with_overrides(configs.get_preset("cpu"), {
            "grpo.max_steps": steps + 1, "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
            "grpo.save_steps": steps + 1, "grpo.learning_rate": 1e-12, "output_dir": folder,
            "grpo.shared_prefix": shared, "show_progress": False, "merge_model": False, **settings,
        })
        run = prepare_run(config)
        model, tokenizer = load_model(config.model, adapter)
        trainer = build_grpo_trainer(
            model, tokenizer, run.train, run.db, config, [],
            make_reward_functions,
        )
        clock = StepClock(trainer)
        run_trainer(trainer, resume=False)
    return clock.steps[1:]


def main() -> None:
    """Measure both ways in turns and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, default=ROOT / "outputs/tau_bench_rl/sft/adapter")
    parser.add_argument("--steps", type=int, default=3, help="steps of each turn (default 3)")
    parser.add_argument("--turns", type=int, default=2, help="turns of each way (default 2)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--busy", action="store_true", help="note that other jobs ran beside it")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if not arguments.adapter.is_dir():
        sys.exit(f"{arguments.adapter}: no such folder; run `make train` first, or name --adapter")
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    rows: dict[str, list[Counter]] = {way: [] for way in WAYS}
    for _ in range(arguments.turns):
        for way, shared in WAYS.items():
            rows[way] += measure(arguments.adapter, arguments.steps, shared, settings)
    medians = {
        way: {name: round(statistics.median(row[name] for row in found), 3) for name in found[0]}
        for way, found in rows.items()
    }
    padded, shared = medians.values()
    figures: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "other_jobs_beside_it": arguments.busy,
                    "load_average_at_the_end": os.getloadavg()[0]},
        "settings": settings, "steps_measured": len(rows["shared"]), "median_seconds": medians,
        "padded_over_shared": {
            name: round(padded[name] / shared[name], 2) for name in padded if shared[name]
        },
    }
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
