"""The store, its tools and the scripted customer as an environment of the `verifiers` package.

    vf-eval agent.verifiers_env --api-base-url http://127.0.0.1:8000/v1 --model NAME \\
        --env-args '{"tasks": "dataset.jsonl"}' --disable-env-server

verifiers 0.1 (`pip install verifiers==0.1.14`) finds `load_environment` here; nothing else of the
project imports this module. Rewards and verdicts are `scoring.episode`'s.
"""

from collections.abc import Iterable
from typing import Any

import verifiers as vf
from datasets import Dataset

from agent.conversation import Conversation, Limits, Message
from agent.customers import ScriptedCustomer
from agent.evaluation import Plan
from data_reader import Task, read_tasks
from envs.retail import RetailDatabase
from prompting.agent import agent_instructions, agent_tools
from scoring.episode import EpisodeScore, score_episode

_TALK = "retail_conversation"


class RetailEnv(vf.MultiTurnEnv):
    """Conversations about tasks, a row for each task and each of its customers."""

    def __init__(
        self, tasks: Iterable[Task], db: RetailDatabase, limits: Limits, seed: int = 0,
        num_customers: int = 1,
    ) -> None:
        self._db, self._limits = db, limits
        self._episodes = list(Plan(list(tasks), num_customers, seed).episodes())
        rubric = vf.Rubric(funcs=[episode_reward])
        for metric in (success, violations):
            rubric.add_metric(metric)
        functions = (tool["function"] for tool in agent_tools())
        names = ("name", "description", "parameters")
        tools = [{name: function[name] for name in names} for function in functions]
        super().__init__(dataset=self._rows(), rubric=rubric, tool_defs=tools, max_turns=-1)

    def _start(self, number: int) -> Conversation:
        task, _, seed = self._episodes[number]
        return Conversation(task, self._db, ScriptedCustomer(task, seed), self._limits, seed)

    def _rows(self) -> Dataset:
        system = {"role": "system", "content": agent_instructions()}
        return Dataset.from_list([
            {"prompt": [system, *self._start(number).messages], "answer": "",
             "info": {"episode": number, "task_id": task.task_id, "trial": trial}}
            for number, (task, trial, _) in enumerate(self._episodes)
        ])

    async def setup_state(self, state: vf.State) -> None:
        """Begin the row's conversation anew; its opening is in the prompt."""
        state[_TALK] = self._start(state["info"]["episode"])

    async def env_response(self, messages: vf.Messages, state: vf.State, **_: Any) -> list[Message]:
        """Play the model's last message; return results or the customer's words."""
        talk: Conversation = state[_TALK]
        answers = talk.step(_openai_form(messages[-1]))
        if talk.done:
            state["final_env_response"] = answers
        return answers


def _openai_form(message: Any) -> Message:
    calls = [
        {"id": call["id"], "type": "function",
         "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in message.get("tool_calls") or ()
    ]
    return {"role": "assistant", "content": message.get("content"), "tool_calls": calls}


def _score(state: vf.State) -> EpisodeScore:
    talk: Conversation = state[_TALK]
    return score_episode(talk.task, talk.messages, talk.db, talk.termination)


async def episode_reward(state: vf.State) -> float:
    """Return the reward: 1.2 for a clean success, -0.5 at worst."""
    return _score(state).reward


async def success(state: vf.State) -> float:
    """Return 1.0 when the task was done, else 0.0."""
    return float(_score(state).success)


async def violations(state: vf.State) -> float:
    """Return how many rules of the policy were broken."""
    return float(len(_score(state).violations))


def load_environment(
    tasks: str = "dataset.jsonl", data_dir: str | None = None, seed: int = 0,
    num_customers: int = 1, max_turns: int = 40,
) -> RetailEnv:
    """Return the environment; verifiers calls it with `--env-args`.

    Args:
        tasks: Task file.
        data_dir: Folder of a store; None is the project's.
        seed: Seed of the customers.
        num_customers: Rows of each task, each with another customer.
        max_turns: Messages of the agent in one conversation.

    Raises:
        DatasetError: The task file cannot be read.
        DatabaseError: The store cannot be read.
    """
    db = RetailDatabase.load(data_dir)
    return RetailEnv(read_tasks(tasks), db, Limits(max_turns=max_turns), seed, num_customers)
