"""Examples for people: a group of completions with its advantages, six requests at every stage."""

from collections.abc import Sequence

import torch

import configs
from data_reader import Task, plan_prompt
from envs.retail import RetailDatabase
from gptoss.generation import generate_batch
from gptoss.model_types import Model, Tokenizer
from prompting.plan_format import plan_format
from scoring.explain import explain_completion, group_advantages
from scoring.reward import score_completion
from training.evaluation import STAGE_NAMES, Evaluation
from training.rewards import weighted_reward

KINDS = {
    "cancellation": "cancel",
    "return": "return",
    "exchange": "exchange",
    "new address": "change_address",
    "refusal": "refuse_cancel",
    "question": "ask_product",
}
"""What a request is called here, and the one intent that the tags of such a task name."""


def choose_examples(tasks: Sequence[Task]) -> dict[str, Task]:
    """Return the first task of each kind; of tasks without tags, the first six.

    Args:
        tasks: Held-out tasks, in the order of their file.
    """
    chosen = {}
    for kind, intent in KINDS.items():
        found = (task for task in tasks if task.tags.get("wishes") == [intent])
        if task := next(found, None):
            chosen[kind] = task
    return chosen or {f"request {n}": task for n, task in enumerate(tasks[: len(KINDS)], start=1)}


def show_examples(evaluations: Sequence[Evaluation], tasks: Sequence[Task], db: RetailDatabase) -> None:
    """Print each request, each stage's verdict, and what the last stage's calls did.

    A request is right when every call was accepted and the store ended as gold leaves it.

    Args:
        tasks: Held-out tasks; those that were not evaluated are passed over.
    """
    places = {row["task_id"]: place for place, row in enumerate(evaluations[-1].completions)}
    chosen = choose_examples([task for task in tasks if task.task_id in places])
    verdicts = {
        kind: [
            "right" if evaluation.scores[places[task.task_id]].outcome == 1.0 else "wrong"
            for evaluation in evaluations
        ]
        for kind, task in chosen.items()
    }
    names = [STAGE_NAMES.get(evaluation.label, evaluation.label) for evaluation in evaluations]
    print(f"{'request':<14}" + "".join(f"{name:>10}" for name in names))
    for kind, row in verdicts.items():
        print(f"{kind:<14}" + "".join(f"{verdict:>10}" for verdict in row))
    for kind, task in chosen.items():
        row = evaluations[-1].completions[places[task.task_id]]
        print(f"\n{kind} ({verdicts[kind][-1]}): {task.query}")
        print(explain_completion(task, row["completion"], db))


def show_group(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase, config: configs.RunConfig
) -> None:
    """Sample one group as GRPO does and print each completion's reward and advantage.

    Args:
        tasks: Candidates; the first whose rewards differ is shown, the last one otherwise.
        config: `grpo.num_generations`, `grpo.temperature`, the lengths and the seed are used.
    """
    stage, plans = config.grpo, plan_format(tokenizer)
    torch.manual_seed(config.seed)
    for task in tasks:
        prompts = [plan_prompt(task, config.data.prompt_style, plans)] * stage.num_generations
        texts = generate_batch(
            model, tokenizer, prompts, stage.max_completion_length, stage.temperature
        )
        finals = [plans.final_text(text) for text in texts]
        scores = [score_completion(task, final, db) for final in finals]
        rewards = [weighted_reward(stage, score) for score in scores]
        if max(rewards) > min(rewards):
            break
    print(f"customer: {task.query}\n\nreward  advantage  completion")
    for reward, advantage, final in zip(rewards, group_advantages(rewards), finals, strict=True):
        print(f"{reward:6.2f}  {advantage:+9.3f}  {final}")
