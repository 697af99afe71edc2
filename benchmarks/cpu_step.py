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

import training  # noqa: E402, F401, I001  (Unsloth, before anything that it patches)
import torch  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

import configs  # noqa: E402
from gptoss.load import load_model  # noqa: E402
from training.grpo import build_grpo_trainer, run_trainer  # noqa: E402
from training.pipeline import prepare_run  # noqa: E402
from training.rewards import make_reward_functions  # noqa: E402

WAYS = {"padded": False, "shared": True}
"""`grpo.shared_prefix`."""
METHODS = {
    "rollout_func": "sampling", "_get_per_token_logps_and_entropies": "reference",
    "_prepare_inputs": "prepare", "training_step": "train",
}
"""The trainer's methods that are timed; the second one is the update's too, with gradients."""
OUTPUT = ROOT / "benchmarks" / "results" / "cpu_step.json"


class StepClock(TrainerCallback):
    """Seconds of each part of each step, by the wall clock or by the CPU.

    Attributes:
        steps: One row a step: seconds by part, `step` is all of it.
    """

    def __init__(self, trainer: Any) -> None:
        """Wrap the trainer's methods."""
        self.steps: list[dict[str, float]] = []
        self.seconds: Counter = Counter()
        for name in METHODS:
            setattr(trainer, name, self._timed(name, getattr(trainer, name)))
        trainer.add_callback(self)
        self.last = _now()

    def _timed(self, name: str, method: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            part = METHODS[name] + (" with gradient" if torch.is_grad_enabled() else "")
            begin = _now()
            try:
                return method(*args, **kwargs)
            finally:
                self._add(part, begin)

        return timed

    def _add(self, part: str, begin: dict[str, float]) -> None:
        for clock, value in _now().items():
            self.seconds[clock, part] += value - begin[clock]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Close a step."""
        self._add("step", self.last)
        row = {}
        for clock in self.last:
            spent = {part: value for (name, part), value in self.seconds.items() if name == clock}
            parts = {
                "sampling": spent["sampling with gradient"],
                "reference": spent.get("reference", 0.0),
                "update": spent["train with gradient"] - spent["prepare with gradient"],
            }
            parts |= {"other": spent["step"] - sum(parts.values()), "step": spent["step"]}
            row |= {f"{part}_{clock}": value for part, value in parts.items()}
        self.steps.append(row)
        self.seconds.clear()
        self.last = _now()


def _now() -> dict[str, float]:
    return {"s": time.perf_counter(), "cpu_s": time.process_time()}


def measure(adapter: Path, steps: int, shared: bool, settings: dict[str, Any]) -> list[dict]:
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
    rows: dict[str, list[dict]] = {way: [] for way in WAYS}
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
