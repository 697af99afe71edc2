"""Group relative policy optimization through TRL's GRPOTrainer, rewards from the store.

The order of the tasks is laid out here for the whole run, as one epoch of the trainer: TRL's own
shuffle starts over after a resume in a later epoch. The reference policy of the KL term is the
adapter as SFT left it (TRL keeps a frozen copy named "ref"). Left out on purpose: TRL's own use of
vLLM, which Unsloth has no path for with GPT-OSS (`gptoss.vllm_engine` has), and reward models.
"""

import random
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from trl import GRPOConfig, GRPOTrainer

import configs
from accelerate import PartialState
from common.files import SettingsError
from data_reader import Task, grpo_rows
from envs.retail import RetailDatabase
from gptoss.generation import engine_of
from gptoss.load import uses_unsloth
from gptoss.model_types import Model, Tokenizer
from prompting.plan_format import plan_format
from training.dynamic_sampling import DynamicSampler
from training.episode_rewards import EpisodeScorer, make_episode_rewards
from training.episode_sampling import EpisodeSampler
from training.importance import MAX_WEIGHT
from training.monitor import (
    SampleRollouts,
    SamplingEntropy,
    ValidationWatch,
    Watchdog,
    restore_best,
)
from training.rewards import CompletionScorer, RewardFunction, make_reward_functions
from training.run_data import DIFFICULTIES
from training.sft import choose_rows, order_rows, row_lengths
from training.shared_prefix import Score
from training.task_choice import leave_out_long, leave_out_mastered
from training.task_store import drop_rows, select_tasks, store_rows
from training.trainer import (
    CheckpointMarker,
    RunLogger,
    common_arguments,
    count_steps,
    round_up,
    run_trainer,
    text_tokenizer,
    world_size,
)
from training.trl_private import (
    SharedPrefixTrainer,
    limit_forward_rows,
    prepare_shared_prefix,
    weigh_tokens,
)

REFERENCE_ADAPTER = "ref"
MakeRewards = Callable[[CompletionScorer], list[RewardFunction]]
"""Makes the reward functions from the scorer, in agent mode from an `EpisodeScorer`."""


def difficulty(task: Task) -> int:
    """Return what the curriculum sorts by: the difficulty tag, then the number of gold calls."""
    level = DIFFICULTIES.index(task.tags.get("difficulty", DIFFICULTIES[0]))
    return (level << 16) + len(task.gold_actions)


def order_by_difficulty(tasks: Sequence[Task], count: int, seed: int) -> array:
    """Lay out the tasks of a run that shows `count`: from easy to hard in the first pass, then shuffled.

    Returns:
        `count` numbers of tasks; the first ones do not depend on `count`.
    """
    levels = array("I", (difficulty(task) for task in tasks))
    ordered = array("I")
    draws = random.Random(seed)
    while len(ordered) < count:
        numbers = array("I", range(len(levels)))
        draws.shuffle(numbers)
        ordered.extend(numbers if ordered else sorted(numbers, key=levels.__getitem__))
    return ordered[:count]


def rows_dir(config: configs.RunConfig) -> Path:
    """Return the folder that holds the rows while the stage trains."""
    return Path(config.output_dir) / "grpo_rows"


def build_grpo_trainer(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase,
    config: configs.RunConfig, validation_tasks: Sequence[Task],
    make_rewards: MakeRewards | None = None,
) -> GRPOTrainer:
    """Return TRL's trainer for this stage, ready to train; arguments as `run_grpo`."""
    stage, is_agent = config.grpo, config.mode == "agent"
    steps = count_steps(stage, len(tasks), world_size())
    generations = round_up(steps, stage.steps_per_generation) // stage.steps_per_generation
    tasks_per_generation = (
        world_size() * stage.completions_per_step * stage.steps_per_generation
        // stage.num_generations
    )
    order: Sequence[int]
    if stage.curriculum:
        numbers = order_by_difficulty(tasks, generations * tasks_per_generation, config.seed)
        shown, order = np.unique(np.array(numbers, np.int64), return_inverse=True)
    else:
        shown, blocks = choose_rows(len(tasks), tasks_per_generation, generations, config.seed)
    chosen = select_tasks(tasks, shown)
    prompts = grpo_rows(chosen, config.data.prompt_style, shown, plan_format(tokenizer))
    rows = store_rows(prompts, rows_dir(config))
    if not stage.curriculum:
        # TRL pads a whole generate call to its longest prompt: like lengths go together.
        lengths = row_lengths(tokenizer, rows) if stage.group_by_length else [0] * len(rows)
        order = order_rows(blocks, lengths, tasks_per_generation, generations)
    arguments = GRPOConfig(
        **common_arguments(config, stage, Path(config.output_dir), model) | {"max_steps": steps},
        num_train_epochs=1,
        shuffle_dataset=False,
        num_generations=stage.num_generations,
        steps_per_generation=stage.steps_per_generation * stage.gradient_accumulation_steps,
        max_completion_length=stage.max_completion_length,
        temperature=stage.temperature,
        beta=stage.beta,
        loss_type=stage.loss_type,
        # TRL's own values, written out: with "dapo" Unsloth would otherwise mask completions that
        # were cut, which then cost nothing, and widen the upper clip to 0.28.
        mask_truncated_completions=False,
        epsilon_high=0.2,
        scale_rewards=stage.scale_rewards,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=MAX_WEIGHT,
        reward_weights=(
            None if is_agent else [stage.tool_reward_weight, stage.outcome_reward_weight]
        ),
        remove_unused_columns=False,
    )
    scorer: CompletionScorer | EpisodeScorer
    if is_agent:
        scorer, make_own = EpisodeScorer(db, tasks), make_episode_rewards
    else:
        scorer, make_own = CompletionScorer(tokenizer, db, tasks), make_reward_functions
    logger = RunLogger(config, "grpo")
    callbacks = [SamplingEntropy(), logger, SampleRollouts(scorer, logger)]
    if stage.eval_steps:
        callbacks.append(ValidationWatch(config, logger, tokenizer, validation_tasks, db))
    # The marker comes last: a checkpoint is whole only when everything about its step is written.
    callbacks += [Watchdog(config, logger), CheckpointMarker()]
    sampler = (EpisodeSampler if is_agent else DynamicSampler)(config, scorer, rows, tasks)
    score = _shared_prefix(model, config)
    trainer_class = partial(SharedPrefixTrainer, score=score) if score else GRPOTrainer
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=rows.select(order),
        processing_class=text_tokenizer(tokenizer), reward_funcs=(make_rewards or make_own)(scorer),
        callbacks=callbacks, rollout_func=sampler,
    )
    if uses_unsloth(config.model) and not score:
        limit_forward_rows(trainer, stage.per_device_train_batch_size)
    if engine_of(model).differs:
        weigh_tokens(trainer)
    return trainer


def _shared_prefix(model: Model, config: configs.RunConfig) -> Score | None:
    """Return what scores completions behind a shared prompt; print why and return None if it cannot."""
    if not config.grpo.shared_prefix:
        return None
    under_unsloth = uses_unsloth(config.model)
    try:
        if under_unsloth and world_size() > 1:
            raise ValueError(f"Unsloth needs one process, this run has {world_size()}")
        return prepare_shared_prefix(model, under_unsloth)
    except ValueError as error:
        PartialState().print(f"grpo.shared_prefix is not used: {error}; each completion reads its own prompt")
        return None


def run_grpo(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase,
    config: configs.RunConfig, validation_tasks: Sequence[Task] | None = None, resume: bool = False,
    make_rewards: MakeRewards | None = None,
) -> dict[str, float]:
    """Improve the adapter by GRPO.

    Args:
        model: Model with the adapter that SFT left, also when resuming: it is the reference
            policy; the trained weights then come from the checkpoint. Trained in place.
        validation_tasks: Tasks of the validation evaluations; may be empty when `grpo.eval_steps` is 0.
        resume: Go on from the newest whole checkpoint, if there is one.
        make_rewards: Makes other reward functions than the mode's own, for controls and tests.

    Returns:
        The trainer's closing figures (`train_runtime` in seconds, ...).

    Raises:
        RunError: There are too few tasks, or the disk is full.
    """
    if config.grpo.max_steps == 0:
        return {}
    if config.grpo.eval_steps and not validation_tasks:
        raise SettingsError("grpo.eval_steps is set but the validation split is empty; add tasks")
    if config.mode == "agent":
        tasks = leave_out_long(tokenizer, tasks, db, config)
    elif config.grpo.max_gold_probability < 1:
        tasks = leave_out_mastered(model, tokenizer, tasks, config)
    trainer = build_grpo_trainer(
        model, tokenizer, tasks, db, config, validation_tasks or [], make_rewards
    )
    figures = run_trainer(trainer, resume)
    drop_rows(rows_dir(config))
    if config.grpo.early_stopping_patience:
        restore_best(Path(config.output_dir), model, trainer.state.global_step)
    if REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)
    model.eval()
    return figures
