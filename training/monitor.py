"""Watch GRPO: validation evaluations, sample rollouts, warnings that say what to do.

A warning changes nothing: only the KL guard and early stopping stop a run, and only when they are
switched on.
"""

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Arguments

import configs
from accelerate import PartialState
from common.files import (
    build_folder,
    finish_move,
    is_complete,
    read_json,
    write_json_atomic,
    write_text_atomic,
)
from data_reader import Task
from envs.retail import RetailDatabase
from gptoss.generation import engine_of
from gptoss.load import load_adapter, save_adapter
from gptoss.model_types import Model, Tokenizer
from prompting.plan_format import plan_format
from scoring.reward import score_completion
from training.agent_evaluation import play_tasks
from training.episode_rewards import EpisodeScorer
from training.evaluation import choose_tasks, complete_tasks
from training.rewards import CompletionScorer
from training.trainer import MetricsTable, RunLogger
from training.warning_rules import Finding, find_warnings

BEST_NAME = "best_adapter"
QUIET_STEPS = 20
"""A warning of one kind is not repeated within this many steps."""
FIGURES = {"plan": ("db_match", "exact_match"), "agent": ("success", "reward_share")}
"""Figures of a validation evaluation, by mode."""


class SampleRollouts(TrainerCallback):
    """Writes the best and the worst rollout of a batch to TensorBoard, ten times a run."""

    def __init__(self, scorer: CompletionScorer | EpisodeScorer, logger: RunLogger) -> None:
        self.scorer, self.logger = scorer, logger

    def on_step_end(self, args: Arguments, state: State, control: Control, **_: Any) -> None:
        """Write two rollouts when it is time."""
        every = max(1, state.max_steps // 10)
        if state.global_step % every or not self.scorer.scores:
            return
        order = sorted(range(len(self.scorer.scores)), key=lambda i: (self.scorer.scores[i].reward, i))
        for name, index in (("worst", order[0]), ("best", order[-1])):
            self.logger.text(f"rollouts/{name}", self.scorer.describe(index), state.global_step)


class SamplingEntropy(TrainerCallback):
    """Adds the policy's entropy to the log row where the trainer leaves it out, as Unsloth's does.

    It is that of the tokens as they were sampled, as the engine knows it.
    """

    def on_log(
        self, args: Arguments, state: State, control: Control, logs: dict, model: Model, **_: Any
    ) -> None:
        """Add the entropy; the row goes to the logger next."""
        entropy = engine_of(model).mean_entropy
        if entropy is not None and "train_runtime" not in logs:
            logs.setdefault("entropy", entropy)


class Validation(NamedTuple):
    """Figures of one validation evaluation."""

    step: int
    figures: dict[str, float]
    """What is compared, in order; of equal ones the first stays."""

    def is_better_than(self, other: "Validation | None") -> bool:
        """Return whether this one's adapter replaces the other's."""
        return other is None or list(self.figures.values()) > list(other.figures.values())


class ValidationWatch(TrainerCallback):
    """Evaluates validation tasks every N steps, keeps the best adapter, stops when it gets no better.

    Compared are db match, then exact match; in agent mode success, then the share of the reward.

    Attributes:
        steps: Steps of all evaluations, oldest first.
        best: The evaluation whose adapter is kept; read from the adapter's folder, so that the two
            agree after a kill.
    """

    def __init__(
        self, config: configs.RunConfig, logger: RunLogger, tokenizer: Tokenizer, tasks: list[Task],
        db: RetailDatabase,
    ) -> None:
        """Choose the tasks; `grpo.eval_steps`, `num_eval_tasks` and `early_stopping_patience` are used."""
        self.config, self.logger, self.tokenizer, self.db = config, logger, tokenizer, db
        self.tasks = choose_tasks(tasks, config.grpo.num_eval_tasks, config.data.split_seed)
        self.folder = Path(config.output_dir)
        self.steps: list[int] = []
        self.best: Validation | None = None

    def on_train_begin(self, args: Arguments, state: State, control: Control, model: Model, **_: Any) -> None:
        """Read the evaluations before a resume; evaluate the SFT adapter at step 0."""
        processes = PartialState()
        if processes.is_main_process:
            # Begun evaluations belong to steps that are trained again, which a GPU rounds otherwise.
            for parts_dir in (self.folder / "evaluation_parts").glob("grpo-step-*"):
                shutil.rmtree(parts_dir)
            finish_move(self.folder / BEST_NAME)
        processes.wait_for_everyone()
        if state.global_step:
            rows = MetricsTable(self.folder / "metrics.csv").stage_rows("grpo", state.global_step)
            self.steps = [int(row["step"]) for row in rows if "heldout/db_match" in row]
            self.best = self._read_best()
        if self.best is None:
            self._evaluate(model, state.global_step)

    def on_step_end(self, args: Arguments, state: State, control: Control, model: Model, **_: Any) -> Control:
        """Evaluate every `eval_steps`; stop after `patience` evaluations without improvement."""
        step = state.global_step
        if step % self.config.grpo.eval_steps and step != state.max_steps:
            return control
        self._evaluate(model, step)
        patience = self.config.grpo.early_stopping_patience
        if patience and sum(step > self.best.step for step in self.steps) >= patience:
            control.should_training_stop = True
            if PartialState().is_main_process:
                print(f"grpo stops at step {step}: no better validation since step {self.best.step}")
        return control

    def _read_best(self) -> Validation | None:
        folder = self.folder / BEST_NAME
        facts = read_json(folder / "step.json", {}) if is_complete(folder) else {}
        step = facts.pop("step", None)
        known = facts.keys() == set(FIGURES[self.config.mode])
        return Validation(step, facts) if step is not None and known else None

    def _evaluate(self, model: Model, step: int) -> None:
        parts_dir = self.folder / "evaluation_parts" / f"grpo-step-{step}"
        found = Validation(step, self._measure(model, parts_dir))
        state = PartialState()
        state.wait_for_everyone()
        # The adapter comes before the row: an evaluation whose row is there is not repeated.
        if found.is_better_than(self.best):
            self.best = found
            if state.is_main_process:
                best_dir = self.folder / BEST_NAME
                build_folder(best_dir, lambda part: self._save_best(model, part, found))
        self.steps.append(step)
        self.logger.record({f"heldout/{n}": value for n, value in found.figures.items()}, step)
        if state.is_main_process:
            shutil.rmtree(parts_dir)
        state.wait_for_everyone()

    def _measure(self, model: Model, parts_dir: Path) -> dict[str, float]:
        """Return the figures of `FIGURES`."""
        given = (model, self.tokenizer, self.tasks)
        if self.config.mode == "agent":
            rows = play_tasks(*given, self.db, self.config, parts_dir)
            values = [
                fmean(row["success"] for row in rows),
                fmean(row["reward"] / row["max_reward"] for row in rows),
            ]
        else:
            texts, plans = complete_tasks(*given, self.config, parts_dir), plan_format(self.tokenizer)
            scores = [
                score_completion(task, plans.final_text(text), self.db)
                for task, text in zip(self.tasks, texts, strict=True)
            ]
            values = [fmean(s.db_match for s in scores), fmean(s.exact_match for s in scores)]
        return dict(zip(FIGURES[self.config.mode], values, strict=True))

    def _save_best(self, model: Model, folder: Path, found: Validation) -> None:
        save_adapter(model, self.tokenizer, folder)
        write_json_atomic(folder / "step.json", {"step": found.step} | found.figures)


def restore_best(folder: Path, model: Model, last_step: int) -> None:
    """Put the best evaluation's adapter into the trained model, in place."""
    step = read_json(folder / BEST_NAME / "step.json", {})["step"]
    if step != last_step:
        print(f"the adapter of step {step} is kept, the best on held-out tasks")
    load_adapter(model, folder / BEST_NAME)


class Watchdog(TrainerCallback):
    """Prints and records warnings, and stops at the KL guard."""

    def __init__(self, config: configs.RunConfig, logger: RunLogger) -> None:
        self.max_kl = config.grpo.max_kl
        self.logger = logger
        self.path = Path(config.output_dir) / "warnings.jsonl"
        self.records: list[dict] = []

    def on_train_begin(self, args: Arguments, state: State, control: Control, **_: Any) -> None:
        """Keep the warnings up to the step that a resume starts from."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            self.records = [r for r in records if r["step"] <= state.global_step]

    def on_log(self, args: Arguments, state: State, control: Control, logs: dict, **_: Any) -> Control:
        """Check the rules after each row."""
        kl = logs.get("kl")
        if self.max_kl and kl is not None and kl > self.max_kl:
            control.should_training_stop = True
            message = (
                f"stopped: the KL to the reference policy is {kl:.3f}, above grpo.max_kl="
                f"{self.max_kl:g}; lower grpo.learning_rate or raise grpo.beta"
            )
            self._warn(Finding("kl_guard", message), state.global_step)
        if self.logger.table is not None and "train_runtime" not in logs:
            for warning in find_warnings(self.logger.table.stage_rows("grpo", state.global_step)):
                self._warn(warning, state.global_step)
        return control

    def _warn(self, warning: Finding, step: int) -> None:
        recent = [
            r for r in self.records
            if r["kind"] == warning.kind and step - r["step"] < QUIET_STEPS
        ]
        if recent or not PartialState().is_main_process:
            return
        self.records.append({"step": step, "kind": warning.kind, "message": warning.message})
        lines = [json.dumps(record) + "\n" for record in self.records]
        write_text_atomic(self.path, "".join(lines))
        self.logger.text("warnings", warning.message, step)
        print(f"warning at grpo step {step}: {warning.message}")
