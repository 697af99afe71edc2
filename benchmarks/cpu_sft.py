"""Seconds of an SFT step of the preset cpu, with attention written out and by torch's flash kernel.

    python benchmarks/cpu_sft.py --mode agent

Adds the mode to benchmarks/results/cpu_sft.json. Both implementations take turns and train from the
same adapter on the first rows of the preset's run, so the losses at the end differ by rounding alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import training  # noqa: E402, F401, I001  (Unsloth, before anything that it patches)
from transformers import TrainerCallback  # noqa: E402

import configs  # noqa: E402
from gptoss.cpu_attention import CPU_ATTENTION  # noqa: E402
from gptoss.weights import find_causal_lm  # noqa: E402
from training.conversations import agent_rows  # noqa: E402
from training.pipeline import load_run_model, prepare_run  # noqa: E402
from training.sft import build_sft_trainer  # noqa: E402
from training.trainer import run_trainer  # noqa: E402

IMPLEMENTATIONS = ("eager", CPU_ATTENTION)
"""Of attention: transformers' own and `gptoss.cpu_attention`."""
OUTPUT = ROOT / "benchmarks" / "results" / "cpu_sft.json"


class StepClock(TrainerCallback):
    """Seconds of each step, by the wall clock and by the CPU; ends training after some steps."""

    def __init__(self, num_steps: int) -> None:
        """Begin without steps."""
        self.num_steps, self.seconds, self.begin = num_steps, [], _now()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin a step."""
        self.begin = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close a step."""
        self.seconds.append(tuple(e - b for e, b in zip(_now(), self.begin, strict=True)))
        control.should_training_stop = len(self.seconds) >= self.num_steps


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(mode: str, implementation: str, num_steps: int) -> dict[str, float]:
    """Return the seconds of the steps but the first, and the mean loss of all."""
    with tempfile.TemporaryDirectory() as folder:
        config = configs.with_overrides(configs.get_preset("cpu", mode), {
            "output_dir": folder, "show_progress": False, "merge_model": False,
            "sft.logging_steps": num_steps,
        })
        run = prepare_run(config)
        model, tokenizer = load_run_model(run)
        find_causal_lm(model).set_attn_implementation(implementation)
        rows = agent_rows(tokenizer, run.train, run.db, config) if mode == "agent" else None
        trainer = build_sft_trainer(model, tokenizer, run.train, config, rows)
        clock = StepClock(num_steps)
        trainer.add_callback(clock)
        run_trainer(trainer, resume=False)
    wall, cpu = zip(*clock.seconds[1:], strict=True)
    return {
        "median_s": statistics.median(wall), "mean_s": statistics.mean(wall), "longest_s": max(wall),
        "mean_cpu_s": statistics.mean(cpu), "loss": trainer.state.log_history[0]["loss"],
    }


def main() -> None:
    """Measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=configs.MODES, default="agent")
    parser.add_argument("--steps", type=int, default=21, help="steps of each, the first not timed")
    parser.add_argument("--busy", action="store_true", help="note that other jobs ran beside it")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    figures = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    before = os.getloadavg()[0]
    seconds = {name: measure(arguments.mode, name, arguments.steps) for name in IMPLEMENTATIONS}
    figures[arguments.mode] = {
        "machine": {"cores": os.cpu_count(), "other_jobs_beside_it": arguments.busy,
                    "load_average_before": round(before, 2)},
        "steps_timed": arguments.steps - 1,
        **{implementation: {name: round(value, 6 if name == "loss" else 3) for name, value in row.items()}
           for implementation, row in seconds.items()},
    }
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures[arguments.mode], indent=2))


if __name__ == "__main__":
    main()
