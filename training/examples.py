"""Examples for people: what the notebook shows of tasks, prompts, rewards and answers, in both modes."""

import inspect
from collections.abc import Sequence

import torch

import configs
from agent.conversation import Limits
from agent.examples import (
    describe_conversation,
    print_success_rates,
    rates_line,
    show_conversation,
)
from agent.policies import ScriptedPolicy, oracle, scripted_policy
from data_reader import Task, gold_completion, plan_prompt
from envs.retail import RetailDatabase
from gptoss.generation import generate_batch
from gptoss.model_types import Model, Tokenizer
from gptoss.policy import ModelPolicy
from prompting.dialogue import HarmonyFormat
from prompting.plan_format import plan_format
from scoring.episode import EpisodeScore, EpisodeWeights, score_episode
from scoring.explain import break_one_argument, explain_completion, group_advantages
from scoring.reward import Score, reward_parts, score_completion
from training.agent_evaluation import play_all, rollout_policy, start_conversation
from training.evaluation import HEADLINES, STAGE_NAMES, Evaluation
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


def example_prompts(
    tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase, config: configs.RunConfig
) -> list[str]:
    """Return the prompt of each task as the model reads it; in agent mode up to its first turn."""
    style = config.data.prompt_style
    if config.mode == "plan":
        plans = plan_format(tokenizer)
        return [plan_prompt(task, style, plans) for task in tasks]
    talks = [start_conversation(task, db, config, config.seed, config.seed) for task in tasks]
    return [HarmonyFormat(style=style).render(talk.messages, {}) for talk in talks]


def show_gold(task: Task, db: RetailDatabase, mode: str) -> None:
    """Print what gold does and earns: its calls, in agent mode the oracle's conversation."""
    if mode == "agent":
        show_conversation(task, db)
    else:
        print(explain_completion(task, gold_completion(task), db))


def show_mistakes(task: Task, db: RetailDatabase, mode: str) -> None:
    """Print two ways to go wrong and what they earn.

    In plan mode an argument with a wrong character, and prose. In agent mode an oracle that never
    asks for the yes, and an agent that only talks.
    """
    if mode == "agent":
        hasty = ScriptedPolicy(lambda talk: oracle(talk, asks=False))
        for policy in (hasty, scripted_policy("nothing")):
            show_conversation(task, db, policy=policy)
    else:
        for completion in (break_one_argument(task), "Of course, I have done that for you."):
            print(explain_completion(task, completion, db))


def reward_source(mode: str) -> str:
    """Return the source of what makes the reward's parts: plan mode's counts, agent mode's weights."""
    return inspect.getsource(EpisodeWeights if mode == "agent" else reward_parts)


def show_headline(evaluation: Evaluation) -> None:
    """Print the metric of a stage that decides: exact match, in agent mode success."""
    name = next(name for name in HEADLINES if name in evaluation.metrics)
    words = name.removesuffix("_rate").replace("_", " ")
    print(f"{words} {evaluation.metrics[name]['value']:.3f}")


def show_answer(evaluation: Evaluation, tasks: Sequence[Task]) -> None:
    """Print what could not be parsed, by kind, and the answer to the first of the evaluated tasks."""
    row = evaluation.completions[0]
    print("parse failures:", evaluation.parse_failures)
    print(f"example query: {tasks[0].query}")
    if "messages" in row:
        print(f"conversation:\n{describe_conversation(row['messages'])}\nended: {row['termination']}")
    else:
        print(f"answer: {row['raw']}")


def show_this_model(
    final: Evaluation, model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase
) -> None:
    """Print the rates of the trained model in agent mode, as `print_success_rates` does.

    Args:
        final: Its evaluation; holds the rates of a model that was trained in agent mode.
        tasks: Are played in four turns by a model that was trained on plans.
    """
    if isinstance(final.scores[0], EpisodeScore):
        print(rates_line("this model", final.metrics), f"  ({final.metrics['num_tasks']} tasks)")
    else:
        policy = ModelPolicy(model, tokenizer, max_new_tokens=64)
        print_success_rates(tasks, db, {"this model": policy}, limits=Limits(max_turns=4))


def choose_examples(tasks: Sequence[Task]) -> dict[str, Task]:
    """Return the first held-out task of each kind; of tasks without tags, the first six."""
    chosen = {}
    for kind, intent in KINDS.items():
        found = (task for task in tasks if task.tags.get("wishes") == [intent])
        if task := next(found, None):
            chosen[kind] = task
    return chosen or {f"request {n}": task for n, task in enumerate(tasks[: len(KINDS)], start=1)}


def show_examples(evaluations: Sequence[Evaluation], tasks: Sequence[Task], db: RetailDatabase) -> None:
    """Print each request, each stage's verdict, and what the last stage did; only evaluated tasks count.

    A request is right when every call was accepted and the store ended as gold leaves it, a
    conversation when it is a success.
    """
    places = {row["task_id"]: place for place, row in enumerate(evaluations[-1].completions)}
    chosen = choose_examples([task for task in tasks if task.task_id in places])
    verdicts = {
        kind: [
            "right" if _is_right(evaluation.scores[places[task.task_id]]) else "wrong"
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
        if "messages" in row:
            print(f"\n{kind} ({verdicts[kind][-1]}):\n{describe_conversation(row['messages'])}")
            print(f"ended: {row['termination']}")
            continue
        print(f"\n{kind} ({verdicts[kind][-1]}): {task.query}")
        print(explain_completion(task, row["completion"], db))


def _is_right(score: Score | EpisodeScore) -> bool:
    return score.success if isinstance(score, EpisodeScore) else score.outcome == 1.0


def show_group(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[Task], db: RetailDatabase, config: configs.RunConfig
) -> None:
    """Sample one group as GRPO does and print each completion's reward and advantage.

    In agent mode the completions are conversations with the same customer, of which the best is
    printed too.

    Args:
        tasks: Candidates; the first whose rewards differ is shown, the last one otherwise.
    """
    sample = _sample_conversations if config.mode == "agent" else _sample_plans
    torch.manual_seed(config.seed)
    for task in tasks:
        rewards, shown, best = sample(model, tokenizer, task, db, config)
        if max(rewards) > min(rewards):
            break
    print(f"customer: {task.query}\n\nreward  advantage  completion")
    for reward, advantage, text in zip(rewards, group_advantages(rewards), shown, strict=True):
        print(f"{reward:6.2f}  {advantage:+9.3f}  {text}")
    if best:
        print(f"\nthe best one:\n{best}")


def _sample_plans(
    model: Model, tokenizer: Tokenizer, task: Task, db: RetailDatabase, config: configs.RunConfig
) -> tuple[list[float], list[str], str]:
    stage, plans = config.grpo, plan_format(tokenizer)
    prompts = [plan_prompt(task, config.data.prompt_style, plans)] * stage.num_generations
    texts = generate_batch(model, tokenizer, prompts, stage.max_completion_length, stage.temperature)
    finals = [plans.final_text(text) for text in texts]
    return [weighted_reward(stage, score_completion(task, final, db)) for final in finals], finals, ""


def _sample_conversations(
    model: Model, tokenizer: Tokenizer, task: Task, db: RetailDatabase, config: configs.RunConfig
) -> tuple[list[float], list[str], str]:
    stage = config.grpo
    policy = rollout_policy(model, tokenizer, config, stage.temperature, stage.num_generations)
    talks = [
        start_conversation(task, db, config, config.seed, config.seed + number)
        for number in range(stage.num_generations)
    ]
    play_all(talks, policy)
    rewards = [score_episode(task, talk.messages, db, talk.termination).reward for talk in talks]
    shown = [f"{talk.num_turns} turns, {talk.num_calls} calls, {talk.termination}" for talk in talks]
    best = talks[rewards.index(max(rewards))]
    return rewards, shown, describe_conversation(best.messages)
