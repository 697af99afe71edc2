"""Evaluate a model on held-out tasks: the same tasks, greedily decoded, at every stage.

Each batch of completions is written as it is done, so an evaluation that was killed resumes
where it stopped and ends with the same figures. Under torchrun the batches are shared out among the
processes through the output folder.
"""

import json
import random
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import configs
from accelerate import PartialState
from agent.evaluation import score_of_row
from common.files import RunError, read_json, write_json_atomic, write_text_atomic
from data_reader import DatasetError, Task, plan_prompt
from envs.retail import RetailDatabase
from gptoss.generation import generate_batch, split_batches
from gptoss.memory import LARGER_GPU
from gptoss.model_card import STAGE_NAMES
from gptoss.model_types import Model, Tokenizer
from gptoss.policy import ModelPolicy, make_format
from prompting.dialogue import Tools
from prompting.plan_format import HARMONY, PlanFormat, plan_format
from scoring.episode import EpisodeScore
from scoring.metrics import (
    RATIOS,
    estimate_gains,
    format_estimate,
    parse_failure_table,
    per_tool_table,
    summarize,
)
from scoring.reward import Score, score_completion
from scoring.trials import RATES, summarize_trials
from training.agent_evaluation import count_failures, in_parts, play_tasks
from training.fit import Demand, describe_long_tasks

ROWS_NAMES = {"plan": "completions.jsonl", "agent": "trajectories.jsonl"}
"""File of the evaluated tasks, by mode."""
PAIRED_METRICS = ("exact_match_rate", "db_match_rate", "mean_reward", "json_parse_success")
"""Metrics of plan mode that stages are compared by; agent mode compares every rate."""
HEADLINES = ("exact_match_rate", "success_rate", "db_match_rate")
"""Metrics whose paired differences are printed, those that the run's mode has."""


@dataclass(frozen=True)
class Evaluation:
    """What one model made of the held-out tasks."""

    label: str
    """Stage: "base", "sft" or "sft_grpo"."""
    metrics: dict[str, Any]
    """Metric name to {"value", "low", "high"}, and `num_tasks`."""
    per_tool: dict[str, dict[str, int]]
    """Per tool: called, correct, wrong arguments, refused; empty in agent mode."""
    parse_failures: dict[str, int]
    """Number of completions, in agent mode of turns, that fail to parse, by kind."""
    scores: list[Score] | list[EpisodeScore]
    """One per task, in agent mode one per episode, in the order of the tasks."""
    completions: list[dict]
    """One row per task: `task_id`, `completion`, `raw` text and the score's figures. In agent mode
    one per episode, a line of trajectories.jsonl and its stage."""


def choose_tasks(tasks: list[Task], num_tasks: int, seed: int) -> list[Task]:
    """Return a random sample of tasks (all for `num_tasks=0`), in file order, the same for the same seed."""
    if not num_tasks or num_tasks >= len(tasks):
        return list(tasks)
    chosen = sorted(random.Random(seed).sample(range(len(tasks)), num_tasks))
    return [tasks[index] for index in chosen]


def complete_tasks(
    model: Model, tokenizer: Tokenizer, tasks: list[Task], config: configs.RunConfig, parts_dir: Path | None
) -> list[str]:
    """Decode one completion per task, with special tokens, batch by batch.

    Args:
        parts_dir: Folder where finished batches are kept, so that a killed evaluation resumes; None
            keeps nothing and decodes everything on this process.
    """
    settings = config.evaluation
    plans = plan_format(tokenizer)
    prompts = [plan_prompt(task, config.data.prompt_style, plans) for task in tasks]
    lengths = [len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
    batches = split_batches(lengths, settings.batch_size)

    def complete(number: int) -> dict[str, str]:
        if not settings.greedy:
            torch.manual_seed(config.seed * 100_003 + number)
        rows = generate_batch(
            model, tokenizer, [prompts[index] for index in batches[number]], settings.max_new_tokens,
            None if settings.greedy else settings.temperature,
        )
        return {str(index): row for index, row in zip(batches[number], rows, strict=True)}

    count = len(batches)
    parts = in_parts(parts_dir, count, complete) if parts_dir else map(complete, range(count))
    texts = {int(index): text for part in parts for index, text in part.items()}
    return [texts[index] for index in range(len(tasks))]


def complete_trials(
    model: Model, tokenizer: Tokenizer, tasks: list[Task], config: configs.RunConfig, num_trials: int,
    parts_dir: Path | None = None,
) -> list[str]:
    """Decode several completions per task, each trial with its own seed.

    Args:
        config: As `complete_tasks`.
        num_trials: Completions per task.
        parts_dir: As `complete_tasks`; each trial has a folder in it.

    Returns:
        One per trial and task, trial by trial.
    """
    return [
        text for trial in range(num_trials)
        for text in complete_tasks(
            model, tokenizer, tasks, replace(config, seed=config.seed + trial),
            parts_dir and parts_dir / f"trial-{trial}",
        )
    ]


def score_texts(
    tasks: list[Task], texts: list[str], db: RetailDatabase, config: configs.RunConfig, label: str,
    plans: PlanFormat = HARMONY,
) -> Evaluation:
    """Score one completion per task, with special tokens, in the format `plans`; sum the scores up."""
    finals = list(map(plans.final_text, texts))
    scores = [score_completion(task, final, db) for task, final in zip(tasks, finals, strict=True)]
    metrics = summarize(
        scores, num_bootstrap=config.evaluation.num_bootstrap, seed=config.data.split_seed
    )
    rows = [
        {"stage": label, "task_id": score.task_id, "completion": final, "raw": raw} | score.figures()
        for raw, final, score in zip(texts, finals, scores, strict=True)
    ]
    return Evaluation(label, metrics, per_tool_table(scores), parse_failure_table(scores), scores, rows)


def score_rows(rows: list[dict], config: configs.RunConfig, label: str) -> Evaluation:
    """Sum up the episodes of agent mode, lines of trajectories.jsonl."""
    scores = [score_of_row(row) for row in rows]
    metrics = summarize_trials(scores, config.evaluation.num_bootstrap, config.data.split_seed)
    marked = [{"stage": label} | row for row in rows]
    return Evaluation(label, metrics, {}, count_failures(rows), scores, marked)


def evaluate_model(
    model: Model, tokenizer: Tokenizer, tasks: list[Task], db: RetailDatabase, config: configs.RunConfig,
    label: str,
) -> Evaluation:
    """Evaluate a model and add the result to evaluation.json and completions.jsonl.

    In agent mode the tasks are talked through, and the rows go to trajectories.jsonl. A stage that is in
    evaluation.json already is read from there.

    Args:
        label: "base", "sft" or "sft_grpo".

    Returns:
        The evaluation, the same on every process.

    Raises:
        RunError: The folder holds this stage's evaluation on other tasks, or a damaged file.
    """
    folder, is_agent = Path(config.output_dir), config.mode == "agent"
    parts_dir = folder / "evaluation_parts" / label
    done = label in read_json(folder / "evaluation.json", {})
    if done:
        rows = [row for row in _read_rows(folder / ROWS_NAMES[config.mode]) if row["stage"] == label]
        trials = config.agent.num_trials if is_agent else 1
        if [row["task_id"] for row in rows] != [t.task_id for t in tasks for _ in range(trials)]:
            raise RunError(f"{folder}: {label} was evaluated on other tasks; use another --output-dir")
    elif is_agent:
        rows = play_tasks(model, tokenizer, tasks, db, config, parts_dir)
    if is_agent:
        evaluation = score_rows(rows, config, label)
    else:
        texts = [row["raw"] for row in rows] if done else complete_tasks(
            model, tokenizer, tasks, config, parts_dir
        )
        evaluation = score_texts(tasks, texts, db, config, label, plan_format(tokenizer))
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process and not done:
        _write_evaluation(folder, evaluation, ROWS_NAMES[config.mode])
        shutil.rmtree(folder / "evaluation_parts", ignore_errors=True)
    state.wait_for_everyone()
    return evaluation


def _read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    rows = []
    # As bytes: text would also be split at the rarer line ends that a completion may hold.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(
                f"{path}:{number}: not valid JSON ({error}); copy the file again, or delete it and "
                "evaluation.json to evaluate once more"
            ) from error
    return rows


def _write_evaluation(folder: Path, evaluation: Evaluation, rows_name: str) -> None:
    """Add one stage to the files; evaluation.json comes last and says that the rest is there."""
    label, path = evaluation.label, folder / rows_name
    rows = [row for row in _read_rows(path) if row["stage"] != label] + evaluation.completions
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text_atomic(path, "".join(lines))
    details = read_json(folder / "evaluation_details.json", {})
    details.setdefault("per_tool", {})[label] = evaluation.per_tool
    details.setdefault("parse_failures", {})[label] = evaluation.parse_failures
    write_json_atomic(folder / "evaluation_details.json", details)
    metrics = read_json(folder / "evaluation.json", {})
    write_json_atomic(folder / "evaluation.json", metrics | {label: evaluation.metrics})


def compare_evaluations(
    before: Evaluation, after: Evaluation, num_bootstrap: int, seed: int
) -> dict[str, dict[str, float]]:
    """Return by metric how much better one stage is than another on the same tasks, see `estimate_gains`."""
    is_agent = isinstance(before.scores[0], EpisodeScore)
    ratios = RATES if is_agent else {name: RATIOS[name] for name in PAIRED_METRICS}
    return estimate_gains(before.scores, after.scores, ratios, num_bootstrap, seed)[0]


def format_table(metrics_by_stage: dict[str, dict[str, Any]]) -> str:
    """Return the base / SFT / SFT+GRPO table as text, each figure with its 95 % interval."""
    stages = list(metrics_by_stage)
    names = [n for n, v in metrics_by_stage[stages[0]].items() if isinstance(v, dict) and "low" in v]
    lines = ["metric".ljust(22) + "".join(STAGE_NAMES.get(s, s).rjust(26) for s in stages)]
    for name in names:
        cells = (format_estimate(metrics[name]).rjust(26) for metrics in metrics_by_stage.values())
        lines.append(name.ljust(22) + "".join(cells))
    counts = {metrics["num_tasks"] for metrics in metrics_by_stage.values()}
    lines.append(f"{'/'.join(map(str, sorted(counts)))} held-out tasks, 95 % bootstrap intervals")
    return "\n".join(lines)


def print_table(output_dir: str | Path) -> None:
    """Print the table of a run, from its folder, and the paired differences between its stages."""
    folder = Path(output_dir)
    metrics = read_json(folder / "evaluation.json", {})
    if not metrics:
        print(f"{folder / 'evaluation.json'}: no stage was evaluated yet")
        return
    print(format_table(metrics))
    differences = read_json(folder / "evaluation_details.json", {}).get("differences", {})
    for pair, figures in differences.items():
        for name in HEADLINES:
            if gain := figures.get(name):
                print(f"{pair}, {name}: {format_estimate(gain, '+')} (paired): {_verdict(gain)}")


def _verdict(gain: dict[str, float]) -> str:
    if gain["low"] > 0:
        return "gain proven"
    return "loss proven" if gain["high"] < 0 else "no proven gain"


def record_differences(evaluations: list[Evaluation], config: configs.RunConfig) -> None:
    """Write the paired differences between consecutive stages to evaluation_details.json."""
    path, differences = Path(config.output_dir) / "evaluation_details.json", {}
    for before, after in pairwise(evaluations):
        names = (STAGE_NAMES.get(stage.label, stage.label) for stage in (after, before))
        differences[" minus ".join(names)] = compare_evaluations(
            before, after, config.evaluation.num_bootstrap, config.data.split_seed
        )
    if PartialState().is_main_process:
        write_json_atomic(path, read_json(path, {}) | {"differences": differences})


def load_agent_policy(
    model: str, batch_size: int, max_new_tokens: int, temperature: float | None, reasoning: str,
    tools: Tools | None = None,
) -> ModelPolicy:
    """Load any causal model (folder of a model or of an adapter, or hub name) as an agent.

    A model of a run in agent mode is shown conversations as it was trained on them.

    Args:
        batch_size: Conversations in one generate call at most.
        temperature: Sampling temperature; None takes the likeliest token each time.
        reasoning: Reasoning effort: low, medium or high.
        tools: OpenAI-style schemas that it is shown; None shows the store's.

    Raises:
        ModelError: The model cannot be loaded, or has no chat template.
    """
    from gptoss.load import load_for_evaluation

    config = configs.config_of_model(model)
    style = config.data.prompt_style if config.mode == "agent" and not tools else "full"
    loaded, tokenizer = load_for_evaluation(model, config.model)
    form = make_format(loaded, tokenizer, reasoning, style, tools)
    return ModelPolicy(loaded, tokenizer, max_new_tokens, temperature, batch_size, form)


def evaluate_model_dir(
    model: str, tasks: list[Task], db: RetailDatabase, output_dir: str | Path, num_trials: int = 1,
    batch_size: int | None = None, tasks_path: str | Path = "tasks",
) -> dict[str, Any]:
    """Evaluate a model folder, an adapter or a hub name for `task_tester.py evaluate`.

    Args:
        output_dir: evaluation.json and completions.jsonl go there, and replace older ones.
        num_trials: Attempts per task; above 1 they are sampled, each trial with its own seed.
        batch_size: Prompts per generate call; None takes that of the model's settings.
        tasks_path: Named in errors.

    Returns:
        The content of evaluation.json: the metrics over all trials under "model".

    Raises:
        DatasetError: A prompt leaves no room for the answer.
        ModelError: The model cannot be loaded, or the GPU's memory is too small for the batch.
    """
    from gptoss.load import load_for_evaluation, memory_guard

    config = configs.config_of_model(model)
    size = batch_size or config.evaluation.batch_size
    settings = replace(config.evaluation, greedy=num_trials == 1, batch_size=size)
    config = replace(config, evaluation=settings, output_dir=str(output_dir))
    loaded, tokenizer = load_for_evaluation(model, config.model)
    demand = Demand(str(tasks_path), tasks, "evaluation.max_new_tokens", settings.max_new_tokens)
    if problem := describe_long_tasks([demand], loaded, tokenizer, config, "train with"):
        raise DatasetError([problem])
    with memory_guard("evaluation", f"--batch-size {size // 2}" if size > 1 else LARGER_GPU):
        texts = complete_trials(loaded, tokenizer, tasks, config, num_trials)
    plans = plan_format(tokenizer)
    evaluation = score_texts(tasks * num_trials, texts, db, config, "model", plans)
    folder, metrics = Path(output_dir), {"model": evaluation.metrics}
    for name in ("evaluation.json", "evaluation_details.json", ROWS_NAMES["plan"]):
        (folder / name).unlink(missing_ok=True)
    _write_evaluation(folder, evaluation, ROWS_NAMES["plan"])
    print(format_table(metrics))
    return metrics
