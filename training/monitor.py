"""Watch GRPO: validation evaluations, sample rollouts, warnings that say what to do.

The warnings are rules over the rows of metrics.csv, so they can be tested on rows and hold for any
run. Left out on purpose: acting on a warning. Only the KL guard and early stopping stop a run, and
only when they are switched on.
"""

import json
import shutil
from collections.abc import Callable
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
from envs.retail import Episode, RetailDatabase
from gptoss.generation import engine_of
from gptoss.load import load_adapter, save_adapter
from gptoss.model_types import Model, Tokenizer
from prompting import harmony
from scoring.parse import parse_plan
from scoring.reward import Score, score_completion
from training.agent_evaluation import play_tasks
from training.episode_rewards import EpisodeScorer
from training.evaluation import choose_tasks, complete_tasks
from training.rewards import CompletionScorer
from training.trainer import MetricsTable, RunLogger

BEST_NAME = "best_adapter"
QUIET_STEPS = 20
"""A warning of one kind is not repeated within this many steps."""
MAX_SAMPLER_KL = 0.1
"""Nats a token between the sampler and the trainer above which importance weights are mostly noise."""
FIGURES = {"plan": ("db_match", "exact_match"), "agent": ("success", "reward_share")}
"""Figures of a validation evaluation, by mode."""
Row = dict[str, float]


class Finding(NamedTuple):
    """A warning rule's finding."""

    kind: str
    message: str


def _column(rows: list[Row], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def _dead_groups(rows: list[Row]) -> str | None:
    last = _column(rows, "frac_reward_zero_std")[-5:]
    if len(last) == 5 and min(last) > 0.999:
        return (
            "every group had zero variance for 5 steps, so nothing is learned: raise "
            "grpo.temperature, set grpo.resample_rounds=2, or train SFT longer (shorter if every "
            "reward is at its maximum)"
        )
    return None


def _clipping(rows: list[Row]) -> str | None:
    if _lasts(rows, 0.5, "turn_failures/cut_off"):
        return (
            "half of the conversations or more end in a turn that is cut at agent.max_turn_tokens: raise "
            "it, or train SFT longer so that turns end"
        )
    # A conversation may well end with what somebody else said, which counts as clipped.
    if not _column(rows, "turn_failures/cut_off") and _lasts(rows, 0.5, "completions/clipped_ratio"):
        return (
            "half of the completions or more are cut at grpo.max_completion_length: raise it, or "
            "train SFT longer so that answers end"
        )
    return None


def _context_full(rows: list[Row]) -> str | None:
    if _lasts(rows, 0.5, "turn_failures/context_full"):
        return (
            "half of the conversations or more outgrow model.max_seq_length, with which SFT left the "
            "longer ones out: raise it"
        )
    return None


def _lasts(rows: list[Row], least: float, *names: str) -> bool:
    """Return whether columns sum to `least` or more in each of the last three rows that have them."""
    last = [sum(row[name] for name in names) for row in rows if names[0] in row][-3:]
    return len(last) == 3 and min(last) >= least


def _talks_for_ever(rows: list[Row]) -> str | None:
    if _lasts(rows, 0.5, "endings/turn_limit", "endings/call_limit", "endings/customer_gave_up"):
        return (
            "half of the conversations or more end at agent.max_turns or with a customer who lost "
            "patience: read the sample conversations, and train SFT longer"
        )
    return None


def _never_writes(rows: list[Row]) -> str | None:
    last = _column(rows, "episodes/writes_per_gold")[-3:]
    if len(last) == 3 and max(last) < 0.1:
        return (
            "conversations make less than one change for ten that are asked for: train SFT longer, or "
            "lower grpo.learning_rate"
        )
    return None


def _always_transfers(rows: list[Row]) -> str | None:
    if _lasts(rows, 0.5, "episodes/needless_transfers"):
        return (
            "half of the conversations or more are handed to a person who is not needed: lower "
            "grpo.learning_rate, or train SFT longer"
        )
    return None


def _confirms_nothing(rows: list[Row]) -> str | None:
    if _lasts(rows, 0.5, "episodes/unconfirmed_writes"):
        return (
            "half of the changes or more are made without the customer's yes: lower "
            "grpo.learning_rate, and read the violations in trajectories.jsonl"
        )
    return None


def _length_collapse(rows: list[Row]) -> str | None:
    lengths = _column(rows, "completions/mean_length")
    if len(lengths) >= 8 and fmean(lengths[-3:]) < 0.4 * fmean(lengths[:5]):
        return (
            "completions are less than 0.4 times as long as at the start: read the sample rollouts "
            "for what is left out, and lower grpo.learning_rate"
        )
    return None


def _dropped_calls(rows: list[Row]) -> str | None:
    ratios = _column(rows, "rollouts/calls_per_gold")
    if len(ratios) < 8:
        return None
    start, now = fmean(ratios[:5]), fmean(ratios[-3:])
    if now < 0.75 * start:
        return (
            f"plans hold {now:.2f} calls for each gold call, {start:.2f} at the start: the policy "
            "drops calls to dodge penalties; lower grpo.learning_rate or raise "
            "grpo.outcome_reward_weight"
        )
    return None


def _kl_blow_up(rows: list[Row]) -> str | None:
    values = _column(rows, "kl_to_sft") or _column(rows, "kl_to_base")
    # Against the start and not against the step before: a slow rise ends as far away as a jump.
    if len(values) > 1 and values[-1] > max(0.5, 5 * fmean(values[:-1][:10])):
        return (
            f"the KL to the reference policy rose to {values[-1]:.2f}: lower grpo.learning_rate, "
            "raise grpo.beta, or set grpo.max_kl to stop in time"
        )
    return None


def _fall_of_results(rows: list[Row]) -> float:
    figures = _column(rows, "heldout/db_match") or _column(rows, "heldout/success")
    return max(figures) - figures[-1] if figures else 0.0


def _reward_rises(rows: list[Row]) -> bool:
    rewards = _column(rows, "reward")
    return len(rewards) >= 10 and fmean(rewards[-5:]) > fmean(rewards[:5])


def _reward_without_result(rows: list[Row]) -> str | None:
    fell = _fall_of_results(rows)
    if fell >= 0.05 and _reward_rises(rows):
        return (
            f"the reward rises while held-out results fell by {fell:.2f} from its best: read the "
            "sample rollouts for what is rewarded, and set grpo.early_stopping_patience=3"
        )
    return None


def _result_falls(rows: list[Row]) -> str | None:
    # A small fall alone may be noise: 0.15 is 2.5 standard errors of a share of 64 tasks.
    fell = _fall_of_results(rows)
    if fell >= 0.15 and not _reward_rises(rows):
        return (
            f"held-out results fell by {fell:.2f} from its best: lower grpo.learning_rate, and "
            "set grpo.early_stopping_patience=3"
        )
    return None


def _parse_rate_falls(rows: list[Row]) -> str | None:
    rates = _column(rows, "rollouts/parsed")
    if len(rates) >= 10 and fmean(rates[-5:]) < fmean(rates[:5]) - 0.1:
        return (
            "fewer completions are valid JSON than at the start: lower grpo.learning_rate or "
            "grpo.temperature"
        )
    return None


def _sampler_apart(rows: list[Row]) -> str | None:
    last = _column(rows, "sampling/kl")[-3:]
    if len(last) == 3 and fmean(last) > MAX_SAMPLER_KL:
        return (
            f"what samples and what trains are {fmean(last):.2f} nats a token apart (KL), more than "
            "rounding explains: set model.vllm_model to the weights that model.model_name was made "
            "from, or model.sampling=fast"
        )
    return None


RULES: dict[str, Callable[[list[Row]], str | None]] = {
    "dead_groups": _dead_groups,
    "clipping": _clipping,
    "length_collapse": _length_collapse,
    "dropped_calls": _dropped_calls,
    "kl_blow_up": _kl_blow_up,
    "reward_without_result": _reward_without_result,
    "result_falls": _result_falls,
    "parse_rate_falls": _parse_rate_falls,
    "sampler_apart": _sampler_apart,
    "context_full": _context_full,
    "talks_for_ever": _talks_for_ever,
    "never_writes": _never_writes,
    "always_transfers": _always_transfers,
    "confirms_nothing": _confirms_nothing,
}


def find_warnings(rows: list[Row]) -> list[Finding]:
    """Return what the rows of metrics so far give reason to warn of.

    Args:
        rows: Rows of the GRPO stage, oldest first, as metrics.csv has them.

    Returns:
        One finding per rule that holds at the last row.
    """
    found = ((kind, rule(rows)) for kind, rule in RULES.items())
    return [Finding(kind, message) for kind, message in found if message]


def describe_completion(scorer: CompletionScorer, index: int) -> str:
    """Return one completion of the last batch as readable text, see `describe_rollout`."""
    return describe_rollout(
        scorer.tasks[index], scorer.texts[index], scorer.scores[index], scorer.db
    )


def describe_rollout(task: Task, text: str, score: Score, db: RetailDatabase) -> str:
    """Return one rollout as readable text: query, completion, calls with results, reward parts.

    Args:
        text: The completion with special tokens.

    Returns:
        Markdown.
    """
    calls, _ = parse_plan(harmony.parse_completion(text).final)
    episode = Episode(db)
    lines = [f"**{task.task_id}** {task.query}", "", "```", text, "```", ""]
    for call in calls:
        observation = episode.call(call.name, call.arguments)
        result = json.dumps(observation.content, ensure_ascii=False)[:300]
        mark = "ok" if observation.ok else "refused"
        lines.append(f"- {call.name}({json.dumps(call.arguments)}) {mark}: {result}")
    parts = ", ".join(f"{name} {value:+g}" for name, value in score.parts.items())
    lines.append(f"- reward {score.reward:g} of {score.max_reward:g} ({parts or 'no parts'})")
    lines.append(f"- outcome {score.outcome:g}, parse error: {score.parse_error or 'none'}")
    return "\n".join(lines)


class SampleRollouts(TrainerCallback):
    """Writes the best and the worst rollout of a batch to TensorBoard, ten times a run."""

    def __init__(
        self, scorer: CompletionScorer | EpisodeScorer, logger: RunLogger,
        describe: Callable[[int], str],
    ) -> None:
        """Remember where rollouts come from and go to, and what shows one by its number."""
        self.scorer = scorer
        self.logger = logger
        self.describe = describe

    def on_step_end(self, args: Arguments, state: State, control: Control, **_: Any) -> None:
        """Write two rollouts when it is time."""
        every = max(1, state.max_steps // 10)
        if state.global_step % every or not self.scorer.scores:
            return
        order = sorted(range(len(self.scorer.scores)), key=lambda i: (self.scorer.scores[i].reward, i))
        for name, index in (("worst", order[0]), ("best", order[-1])):
            self.logger.text(f"rollouts/{name}", self.describe(index), state.global_step)


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
        """Return whether this one's adapter takes the place of the other's."""
        return other is None or list(self.figures.values()) > list(other.figures.values())


class ValidationWatch(TrainerCallback):
    """Evaluates validation tasks every N steps, keeps the best adapter, stops when it gets no better.

    Compared are db match, then exact match; in agent mode success, then the share of the reward.

    Attributes:
        steps: Steps of all evaluations, oldest first.
        best: The evaluation whose adapter is kept. It is read from that adapter's folder, so that after
            a kill it is the adapter which is there, also when its step was lost and is trained
            again.
    """

    def __init__(
        self, config: configs.RunConfig, logger: RunLogger, tokenizer: Tokenizer, tasks: list[Task],
        db: RetailDatabase,
    ) -> None:
        """Choose the tasks.

        Args:
            config: `grpo.eval_steps`, `grpo.num_eval_tasks`, `grpo.early_stopping_patience`.
        """
        self.config = config
        self.logger = logger
        self.tokenizer = tokenizer
        self.tasks = choose_tasks(tasks, config.grpo.num_eval_tasks, config.data.split_seed)
        self.db = db
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
            texts = complete_tasks(*given, self.config, parts_dir)
            scores = [
                score_completion(task, harmony.parse_completion(text).final, self.db)
                for task, text in zip(self.tasks, texts, strict=True)
            ]
            values = [fmean(s.db_match for s in scores), fmean(s.exact_match for s in scores)]
        return dict(zip(FIGURES[self.config.mode], values, strict=True))

    def _save_best(self, model: Model, folder: Path, found: Validation) -> None:
        save_adapter(model, self.tokenizer, folder)
        write_json_atomic(folder / "step.json", {"step": found.step} | found.figures)


def restore_best(folder: Path, model: Model, last_step: int) -> None:
    """Put the best evaluation's adapter into the model.

    Args:
        model: The trained model; changed in place.
    """
    step = read_json(folder / BEST_NAME / "step.json", {})["step"]
    if step != last_step:
        print(f"the adapter of step {step} is kept, the best on held-out tasks")
    load_adapter(model, folder / BEST_NAME)


class Watchdog(TrainerCallback):
    """Prints and records warnings, and stops at the KL guard."""

    def __init__(self, config: configs.RunConfig, logger: RunLogger) -> None:
        """Remember the guard's limit and where warnings go."""
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
