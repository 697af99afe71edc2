"""Measure training on one and on two GPUs (or CPU processes), the batch of each held fixed.

    python benchmarks/scaling.py --model MODEL --output benchmarks/results/scaling.json
    python benchmarks/scaling.py --preset cpu --output /tmp/scaling.json     # to try it

Each number of GPUs is a launch of its own: plain Python for one, as one GPU is used, torchrun for
more. It loads the model and runs a few steps of SFT and of GRPO through the pipeline's own
trainers. Every process writes its times as soon as they are known and the rates are worked out from
them afterwards, so a launch that fails or runs out of time still gives what it had, and its row says
why it ended. Rows of other numbers of GPUs that the output holds already stay, so that each launch
may be a command of its own. `tasks_per_s` is tasks of GRPO, sampling and scoring included;
`tokens_per_s` is sampled tokens while sampling. Medians leave out the first steps, which compile.
Says nothing about learning: more GPUs take a larger batch in each step.
"""

import argparse
import faulthandler
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FULL_STEPS = 3
"""SFT steps whose times are looked at; the ones before them compile."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or hub name (the preset's)")
    parser.add_argument("--preset", default="80gb", choices=("cpu", "24gb", "80gb"))
    parser.add_argument("--output", type=Path, required=True, help="JSON file of figures")
    parser.add_argument("--gpus", default="1,2", help="numbers of GPUs, one launch each")
    parser.add_argument("--work-dir", type=Path, default=Path("outputs/scaling"))
    parser.add_argument("--timeout-s", type=int, default=480, help="for each launch")
    parser.add_argument("--completion-tokens", type=int, default=192)
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser


class Figures:
    """One process's figures, written as soon as they are known."""

    def __init__(self, folder: Path) -> None:
        """Start the file of this process."""
        self.path = folder / f"rank-{os.environ.get('RANK', '0')}.json"
        self.values: dict[str, Any] = {}

    def note(self, **values: Any) -> None:
        """Add figures."""
        self.values |= values
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, indent=2), encoding="utf-8")
        temporary.replace(self.path)
        print(f"rank {self.path.stem.removeprefix('rank-')}: {values}", flush=True)


def wait_for_device() -> None:
    """Wait until the GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(call: Callable, record: Callable[[float, Any], None]) -> Callable:
    """Return a function that does the same and records its seconds and its result."""

    def timed_call(*args: Any, **kwargs: Any) -> Any:
        wait_for_device()
        begin = time.perf_counter()
        result = call(*args, **kwargs)
        wait_for_device()
        record(time.perf_counter() - begin, result)
        return result

    return timed_call


def peak_gib() -> float:
    """Return the most memory this process has held: of its GPU, or of the machine without one."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def run_timed(trainer: Any, figures: Figures, name: str) -> tuple[list[float], list[float]]:
    """Train and return the seconds and the loss of each optimizer step; note each as it ends."""
    from transformers import TrainerCallback

    from training.trainer import run_trainer

    seconds, losses = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait_for_device()
            self.begin = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait_for_device()
            seconds.append(time.perf_counter() - self.begin)
            figures.note(**{name: [round(value, 3) for value in seconds]})

        def on_log(self, args: Any, state: Any, control: Any, logs: dict, **_: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    trainer.add_callback(Clock())
    run_trainer(trainer, resume=False)
    return seconds, losses


def measure_sft(run: Any, model: Any, tokenizer: Any, figures: Figures) -> None:
    """Note rows per second and the loss of a few SFT steps."""
    import torch

    from training.sft import build_sft_trainer

    stage = run.config.sft
    trainer = build_sft_trainer(model, tokenizer, run.train, run.config)
    seconds, losses = run_timed(trainer, figures, "sft_step_s")
    rows = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
    figures.note(
        loss=losses[-1],
        sft_rows_per_s=round(rows / statistics.median(seconds[-FULL_STEPS:]), 3),
        sft_peak_gib=peak_gib(),
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def measure_grpo(run: Any, model: Any, tokenizer: Any, figures: Figures) -> None:
    """Note the times of GRPO over two generate calls; the second one finds everything compiled."""
    from training.grpo import build_grpo_trainer
    from training.rewards import make_reward_functions

    stage = run.config.grpo
    trainer = build_grpo_trainer(
        model, tokenizer, run.train, run.db, run.config, run.validation, make_reward_functions
    )
    samplings: list[tuple[float, int]] = []
    preparations: list[float] = []

    def record_sampling(seconds: float, result: Any) -> None:
        samplings.append((seconds, sum(map(len, result[0]))))
        figures.note(grpo_samplings=[(round(s, 3), tokens) for s, tokens in samplings])

    def record_preparation(seconds: float, _: Any) -> None:
        preparations.append(seconds)
        figures.note(
            grpo_preparations_s=[round(value, 3) for value in preparations], peak_gib=peak_gib()
        )

    trainer._generate_single_turn = timed(trainer._generate_single_turn, record_sampling)
    trainer._generate_and_score_completions = timed(
        trainer._generate_and_score_completions, record_preparation
    )
    figures.note(
        steps_per_generation=stage.steps_per_generation,
        tasks_per_step=stage.completions_per_step // stage.num_generations,
    )
    _, losses = run_timed(trainer, figures, "grpo_step_s")
    figures.note(grpo_loss=losses[-1])


def grpo_rates(figures: dict[str, Any]) -> dict[str, float]:
    """Work out the pace of GRPO from the times of one process.

    Args:
        figures: What `measure_grpo` noted.

    Returns:
        seconds_per_step, its parts, tasks_per_s and tokens_per_s; nothing before the step of the
        second generate call has ended, as the first one compiles.
    """
    every, steps = figures.get("steps_per_generation", 0), figures.get("grpo_step_s", [])
    if len(steps) <= every:
        return {}
    preparations, samplings = figures["grpo_preparations_s"], figures["grpo_samplings"]
    # Steps that reuse completions are updates alone; those that sample hold a preparation as well.
    updates = [
        step - (preparations[number // every] if number % every == 0 else 0.0)
        for number, step in enumerate(steps)
    ]
    update = statistics.median(updates[1:])
    sampling_s, tokens = samplings[-1]
    step_s = update + preparations[-1] / every
    return {
        "seconds_per_step": round(step_s, 3), "update_s": round(update, 3),
        "sampling_s_per_step": round(sampling_s / every, 3),
        "tasks_per_s": round(figures["tasks_per_step"] / step_s, 4),
        "tokens_per_s": round(tokens / sampling_s, 1),
    }


def run_child(arguments: argparse.Namespace) -> None:
    """Measure in this process, one of those of a launch."""
    # Processes that wait for each other for ever are ended, and say where they stood.
    faulthandler.dump_traceback_later(arguments.timeout_s, exit=True)
    figures = Figures(arguments.child)
    try:
        measure(arguments, figures)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        figures.note(error=f"{type(error).__name__}: {lines[-1]}")
        raise
    from accelerate import PartialState

    PartialState().destroy_process_group()


def measure(arguments: argparse.Namespace, figures: Figures) -> None:
    """Load the model and measure both stages."""
    import torch

    import configs
    import training  # noqa: F401  (Unsloth, before anything that it patches)
    from training import pipeline

    config = configs.get_preset(arguments.preset)
    overrides: dict[str, object] = {
        "output_dir": str(arguments.child / "run"), "show_progress": False,
        "sft.max_steps": FULL_STEPS + 2, "sft.logging_steps": 1, "sft.save_steps": 10_000,
        "grpo.max_steps": max(config.grpo.steps_per_generation + 1, 4),
        "grpo.save_steps": 10_000, "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
        "grpo.resample_rounds": 0, "grpo.max_completion_length": arguments.completion_tokens,
        # What several processes sample with, whatever the preset has for one.
        "evaluation.num_tasks": 8, "model.sampling": "fast",
    }
    if arguments.model:
        overrides["model.model_name"] = arguments.model
    overrides |= dict(text.split("=", 1) for text in arguments.set)
    config = configs.with_overrides(config, overrides)
    run = pipeline.prepare_run(config)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        device = f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB"
    else:
        device = f"{platform.machine()}, {os.cpu_count()} cores"
    figures.note(device=device, versions=pipeline.package_versions())
    begin = time.perf_counter()
    model, tokenizer = pipeline.load_run_model(run)
    figures.note(load_s=round(time.perf_counter() - begin, 1), model_device=str(model.device))
    measure_sft(run, model, tokenizer, figures)
    measure_grpo(run, model, tokenizer, figures)


def launch(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """Run one launch to its end and return its row."""
    folder = (arguments.work_dir / f"{count}-gpus").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    program = [sys.executable]
    if count > 1:
        program += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    words = [*sys.argv[1:], "--child", str(folder)]
    environment = dict(os.environ)
    if arguments.preset == "cpu":
        environment |= {"OMP_NUM_THREADS": "1"}
        words += ["--set", "model.num_threads=1"]
    else:
        # Otherwise one process alone would spread over all of the GPUs that it sees.
        visible = environment.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[:count])
        # Unsloth writes generated code into this folder: one of its own for each model.
        environment.setdefault("UNSLOTH_COMPILE_LOCATION", str(arguments.work_dir / "compiled"))
    begin = time.perf_counter()
    error = ""
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*program, __file__, *words], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            # The children end themselves; torchrun then ends the others and says so.
            code = process.wait(timeout=arguments.timeout_s + 90)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            error = f"exit code {code}"
    if error and time.perf_counter() - begin > arguments.timeout_s:
        error = f"not done within {arguments.timeout_s} s, see log.txt"
    return make_row(count, folder, error) | {"wall_s": round(time.perf_counter() - begin, 1)}


def make_row(count: int, folder: Path, error: str) -> dict[str, Any]:
    """Put together what the processes wrote: rates add up, the slowest one sets the time."""
    ranks = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("rank-*.json"))]
    ranks = [rank | grpo_rates(rank) for rank in ranks]
    row: dict[str, Any] = {"gpus": count}
    rules: dict[str, Callable] = {
        "tasks_per_s": sum, "tokens_per_s": sum, "sft_rows_per_s": sum, "seconds_per_step": max,
        "update_s": max, "sampling_s_per_step": max, "peak_gib": max, "sft_peak_gib": max,
        "load_s": max, "loss": max, "grpo_loss": max,
        "sft_step_s": max, "grpo_step_s": max, "grpo_preparations_s": max, "grpo_samplings": max,
    }
    for name, rule in rules.items():
        values = [rank[name] for rank in ranks if name in rank]
        if len(values) == count:
            value = rule(values)
            row[name] = round(value, 4) if isinstance(value, float) else value
    row["devices"] = [rank.get("model_device") for rank in ranks]
    found = [rank["error"] for rank in ranks if "error" in rank]
    if found or error:
        row["error"] = found[0] if found else error
    return row


def main() -> None:
    """Measure each number of GPUs and write the figures after each."""
    arguments = build_parser().parse_args()
    if arguments.child:
        run_child(arguments)
        return
    result: dict[str, Any] = {
        "device": None, "model": arguments.model or f"the preset's ({arguments.preset})",
        "rows": [], "command": " ".join(["python", *sys.argv]),
    }
    counts = [int(count) for count in arguments.gpus.split(",")]
    if arguments.output.exists():
        earlier = json.loads(arguments.output.read_text(encoding="utf-8"))
        result["rows"] = [row for row in earlier["rows"] if row["gpus"] not in counts]
    for count in counts:
        row = launch(arguments, count)
        result["rows"] = sorted([*result["rows"], row], key=lambda one: one["gpus"])
        first = arguments.work_dir / f"{count}-gpus" / "rank-0.json"
        if first.exists():
            facts = json.loads(first.read_text(encoding="utf-8"))
            result["device"] = facts.get("device", result["device"])
            result["versions"] = facts.get("versions")
        if "error" in row:
            print((arguments.work_dir / f"{count}-gpus" / "log.txt").read_text("utf-8")[-3000:])
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
