"""Measure the settings that the troubleshooting table names, on the small model and a CPU.

    python benchmarks/troubleshooting.py

Low accuracy: exact match on validation customers after more steps of SFT. Not converging: the share
of groups whose eight rewards are all equal, at two temperatures, and when such groups are replaced
once by other tasks' groups. Took 22 CPU minutes; writes
benchmarks/results/troubleshooting.json. Says nothing about the 20B.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import configs  # noqa: E402
import training  # noqa: E402, F401  (before torch: it sets what torch reads once)
from common.files import write_json_atomic  # noqa: E402
from data_reader import Task, plan_prompt  # noqa: E402
from gptoss.generation import generate_batch  # noqa: E402
from prompting import harmony  # noqa: E402
from task_tester import score_completion  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import choose_tasks, evaluate_model  # noqa: E402

SFT_STEPS = (20, 40, 80)
PRESET_STEPS = 40
TEMPERATURES = (0.7, 1.0)
NUM_GROUPS = 128
GROUP_SIZE = 8
TASKS_PER_CALL = 16


def train_and_evaluate(folder: Path, steps: int, num_tasks: int) -> tuple[Any, Any, Any, dict]:
    """Train SFT from the base for some steps and evaluate on validation customers.

    Args:
        folder: Where the run goes.
        steps: Optimizer steps of 8 tasks.
        num_tasks: Validation tasks.

    Returns:
        The run, the model, its tokenizer, and the figures.
    """
    settings = {"sft.max_steps": steps, "output_dir": str(folder), "show_progress": False}
    run = pipeline.prepare_run(configs.with_overrides(configs.get_preset("cpu"), settings))
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    tasks = choose_tasks(run.validation, num_tasks, run.config.data.split_seed)
    found = evaluate_model(model, tokenizer, tasks, run.db, run.config, "validation")
    names = ("exact_match_rate", "json_parse_success")
    return run, model, tokenizer, {name: found.metrics[name] for name in names}


def equal_groups(
    run: pipeline.Run, model: Any, tokenizer: Any, tasks: list[Task], temperature: float
) -> list[bool]:
    """Sample a group for each task and say whether all its rewards are equal.

    Args:
        run: The run, for store and settings.
        model: The model.
        tokenizer: Its tokenizer.
        tasks: Training tasks.
        temperature: Sampling temperature.

    Returns:
        One flag per task.
    """
    flags = []
    for start in range(0, len(tasks), TASKS_PER_CALL):
        chunk = tasks[start:start + TASKS_PER_CALL]
        prompts = [plan_prompt(task, run.config.data.prompt_style) for task in chunk]
        texts = generate_batch(
            model, tokenizer, [prompt for prompt in prompts for _ in range(GROUP_SIZE)],
            run.config.grpo.max_completion_length, temperature,
        )
        for index, task in enumerate(chunk):
            group = texts[index * GROUP_SIZE:(index + 1) * GROUP_SIZE]
            scores = [
                score_completion(task, harmony.parse_completion(text).final, run.db)
                for text in group
            ]
            flags.append(len({round(score.reward + score.outcome, 6) for score in scores}) == 1)
    return flags


def measure_groups(run: pipeline.Run, model: Any, tokenizer: Any, num_groups: int) -> dict:
    """Return the share of groups without spread by temperature, and after one replacement."""
    tasks = choose_tasks(run.train, 2 * num_groups, run.config.data.split_seed)
    drawn, spare = tasks[::2], tasks[1::2]
    shares: dict[str, Any] = {"num_groups": num_groups, "group_size": GROUP_SIZE}
    for temperature in TEMPERATURES:
        torch.manual_seed(run.config.seed)
        flags = equal_groups(run, model, tokenizer, drawn, temperature)
        shares[f"equal at temperature {temperature}"] = sum(flags) / num_groups
    # What one resample round does: each equal group gives its place to another task's group.
    again = equal_groups(run, model, tokenizer, spare[:sum(flags)], TEMPERATURES[-1])
    shares[f"equal at temperature {TEMPERATURES[-1]}, replaced once"] = sum(again) / num_groups
    return shares


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-tasks", type=int, default=256, help="validation tasks (256)")
    parser.add_argument("--num-groups", type=int, default=NUM_GROUPS, help="groups (128)")
    default = ROOT / "benchmarks" / "results" / "troubleshooting.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    figures: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]), "num_tasks": arguments.num_tasks, "sft": {},
    }
    try:
        for steps in SFT_STEPS:
            run, model, tokenizer, found = train_and_evaluate(
                folder / str(steps), steps, arguments.num_tasks
            )
            figures["sft"][f"{steps} steps"] = found
            if steps == PRESET_STEPS:
                figures["groups"] = measure_groups(run, model, tokenizer, arguments.num_groups)
    finally:
        shutil.rmtree(folder)
    write_json_atomic(arguments.output, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
