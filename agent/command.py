"""`task_tester.py evaluate --mode agent`: its options, and the agent and customer that they name.

Left out: what is measured (`agent/evaluation.py`) and everything that needs torch, which is imported
when a local model plays.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from agent.conversation import Customer, Policy
from agent.customer_hash import customers_hash
from agent.customers import ScriptedCustomer
from agent.endpoint import EndpointCustomer, EndpointPolicy
from agent.evaluation import PART_NAME, Plan, evaluate_agent
from agent.policies import scripted_policy
from common.files import read_json, write_json_atomic
from common.outputs import check_files, record
from common.user_error import UserError
from data_reader import Task, task_to_json
from envs.retail import RetailDatabase
from scoring.metrics import metric_line
from scoring.trials import summarize_trials
from tasks.llm.client import ChatClient, LlmConfig, LlmUsage

USAGE_NAME = "usage.json"
"""What endpoints were asked: requests, retries, tokens, cost."""
TAU2 = "tau2"
"""What stands for the official tau2-bench in the place of a task file."""
SCRIPTED = ("oracle", "nothing", "all-tools", "transfer")


class CommandError(UserError, ValueError):
    """A command that cannot be run as it was given; the message is one line."""


_RANGES = {
    "num_trials": (1, 1_000), "concurrency": (1, 1_024), "max_new_tokens": (1, 131_072),
    "seed": (0, 2**32 - 1), "temperature": (0, 10), "timeout": (0.1, 86_400), "rpm": (0, 1_000_000),
    "price": (0, 1_000_000), "max_cost": (0, 1_000_000_000),
}
"""Smallest and largest value of the options that are numbers; a thread plays each conversation."""


def add_agent_options(parser: argparse.ArgumentParser, positive: Callable[[str], int]) -> None:
    """Add the options of agent mode to `evaluate`.

    Args:
        positive: Type of options that are whole numbers above 0.
    """
    group = parser.add_argument_group(
        "agent mode", "Conversations with a customer. Keys are read from OPENAI_API_KEY. A killed "
        "evaluation goes on when the same command is given again.",
    )
    group.add_argument("--policy", choices=SCRIPTED, help="a scripted agent in place of a model")
    group.add_argument(
        "--endpoint", metavar="URL", help="OpenAI-compatible endpoint that serves --model"
    )
    group.add_argument(
        "--customer", choices=("scripted", "endpoint"), default="scripted",
        help="who plays the customer (default: scripted)",
    )
    group.add_argument(
        "--customer-endpoint", metavar="URL", help="default: OPENAI_BASE_URL, else --endpoint"
    )
    group.add_argument(
        "--customer-model", metavar="NAME", help="default: TASK_LLM_MODEL, else --model"
    )
    group.add_argument(
        "--concurrency", type=positive, default=8, metavar="N",
        help="conversations at once (default: 8)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    group.add_argument(
        "--temperature", type=float, metavar="T",
        help="default: the endpoint's own; a local model takes the likeliest token, and 1.0 where "
        "there are more trials than one",
    )
    group.add_argument(
        "--reasoning", choices=("low", "medium", "high"), default="low",
        help="reasoning effort of a local model (default: low)",
    )
    group.add_argument(
        "--max-new-tokens", type=positive, default=512, metavar="N",
        help="tokens of a local model's turn (default: 512)",
    )
    group.add_argument(
        "--rpm", type=float, default=0.0, metavar="N",
        help="requests per minute to an endpoint (default: no limit)",
    )
    group.add_argument("--timeout", type=float, default=120.0, metavar="S", help="default: 120 s")
    group.add_argument(
        "--price", type=float, nargs=2, default=(0.0, 0.0), metavar=("IN", "OUT"),
        help="US dollars per million tokens read and written, for the cost count",
    )
    group.add_argument("--max-cost", type=float, metavar="USD", help="ask no more beyond it")


def run_agent_evaluation(
    args: argparse.Namespace, tasks: Sequence[Task], db: RetailDatabase,
    load_policy: Callable[[argparse.Namespace], Policy],
) -> dict[str, Any]:
    """Play the tasks as the options say, write the files, print the metrics and return them.

    Args:
        load_policy: Loads the local model that `--model` names.

    Raises:
        RunError: As `evaluate_agent`.
        LlmError: As `evaluate_agent`, or a setting of an endpoint is wrong.
    """
    clients: dict[str, ChatClient] = {}
    make_customer: Callable[[Task, int], Customer] = ScriptedCustomer
    if args.customer == "endpoint":
        customer_client = clients["customer"] = _client(args, *_customer_endpoint(args))

        def make_customer(task: Task, seed: int) -> Customer:
            return EndpointCustomer(task, customer_client)

    if args.policy:
        policy = scripted_policy(args.policy)
    elif args.endpoint:
        clients["policy"] = _client(args, args.endpoint, args.model)
        policy = EndpointPolicy(clients["policy"])
    else:
        policy = load_policy(args)
    lanes = args.concurrency if args.endpoint else 1
    plan = Plan(
        tasks, args.num_trials, args.seed, lanes=lanes, lane_size=args.concurrency // lanes,
        step_threads=args.concurrency if "customer" in clients and lanes == 1 else 1,
    )
    usage_path = args.output / USAGE_NAME
    goes_on = (args.output / PART_NAME).exists()
    earlier = read_json(usage_path, {}) if goes_on else {}
    try:
        metrics = evaluate_agent(plan, db, policy, make_customer, _settings(args, tasks), args.output)
    finally:
        usages = {name: client.usage for name, client in clients.items()}
        for name, usage in usages.items():
            print(f"{name}: {usage}", file=sys.stderr)
        if any(usage.num_requests for usage in usages.values()):
            write_json_atomic(usage_path, add_usages(earlier, usages))
            record("evaluate", [usage_path])
    _print_metrics(metrics)
    return metrics


def add_usages(earlier: Any, usages: Mapping[str, LlmUsage]) -> dict[str, dict[str, float]]:
    """Return what endpoints were asked, in all starts of an evaluation.

    Args:
        earlier: The content of `usage.json` of the starts before; what is no count there is dropped.
        usages: This start's, by who was asked.
    """
    found = {}
    for name, usage in usages.items():
        before = earlier.get(name) if isinstance(earlier, dict) else None
        before = before if isinstance(before, dict) else {}
        counts = {key: value for key, value in before.items() if type(value) in (int, float)}
        found[name] = {key: counts.get(key, 0) + value for key, value in asdict(usage).items()}
    return found


def run_tau2_evaluation(
    args: argparse.Namespace, load_policy: Callable[..., Policy]
) -> None:
    """Play the official tau2-bench as the options say; its customers are always an endpoint's.

    Args:
        load_policy: Loads the local model that `--model` names, shown the tools of its argument.

    Raises:
        CommandError: Options do not go together.
        OutputError: The folder holds what is no evaluation's.
        Tau2Error: As `evaluate_tau2`.
    """
    from agent.tau2 import (
        FINISHED_NAME,
        RESULTS_NAME,
        SETTINGS_NAME,
        Tau2Endpoint,
        evaluate_tau2,
        score_of_simulation,
        tau2_tools,
        usage_of_simulations,
    )

    written = [args.output / name for name in (RESULTS_NAME, USAGE_NAME, "evaluation.json")]
    # What goes on after a kill is compared by `evaluate_tau2`; what is finished must be its own.
    is_begun = (args.output / SETTINGS_NAME).exists()
    began = [] if is_begun else [args.output / name for name in (FINISHED_NAME, SETTINGS_NAME)]
    check_files("evaluate", [*written, *began], whole_folder=True)
    url, model = _customer_endpoint(args)
    if args.endpoint:
        policy: Any = Tau2Endpoint(args.model, args.endpoint, args.temperature, args.timeout)
    else:
        policy = scripted_policy(args.policy) if args.policy else load_policy(args, tau2_tools())
    results = evaluate_tau2(
        policy, args.output, Tau2Endpoint(model, url, timeout_s=args.timeout),
        name=args.policy or args.model, num_trials=args.num_trials, limit=args.limit,
        concurrency=args.concurrency, seed=args.seed,
    )
    metrics = summarize_trials(map(score_of_simulation, results.simulations))
    # tau2's evaluator does not judge the policy's rules apart.
    metrics.pop("violation_rate")
    write_json_atomic(args.output / USAGE_NAME, usage_of_simulations(results.simulations))
    write_json_atomic(args.output / "evaluation.json", metrics)
    record("evaluate", written)
    _print_metrics(metrics)
    print(f"{args.output / RESULTS_NAME}: for `tau2 view` and `tau2 submit`")


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that `evaluate` cannot work with, by a CommandError with the option and its range."""
    for name, (low, high) in _RANGES.items():
        given = getattr(args, name)
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if value is not None and not low <= value <= high:
                option = "--" + name.replace("_", "-")
                raise CommandError(f"{option} {str(value)[:40]}: must be from {low} to {high}")
    if 0 < args.rpm < 0.01:
        raise CommandError(f"--rpm {args.rpm}: must be 0, for no limit, or at least 0.01")


def check_agent_options(args: argparse.Namespace) -> None:
    """Refuse options of `evaluate --mode agent` that do not go together; the CommandError says what to do."""
    check_numbers(args)
    if args.policy and (args.model or args.endpoint):
        raise CommandError("--policy: goes with neither --model nor --endpoint; give one of them")
    if not args.policy and not args.model:
        needed = "--model NAME" if args.endpoint else "--model, --endpoint with --model, or --policy"
        raise CommandError(f"nothing to evaluate: give {needed}")
    for option in ("endpoint", "customer_endpoint"):
        _check_url("--" + option.replace("_", "-"), getattr(args, option))
    is_scripted = args.customer == "scripted" and str(args.tasks) != TAU2
    if is_scripted and (args.customer_endpoint or args.customer_model):
        raise CommandError("--customer-endpoint, --customer-model: need --customer endpoint")
    if str(args.tasks) == TAU2 and (args.rpm or any(args.price) or args.max_cost is not None):
        raise CommandError(
            "--rpm, --price, --max-cost: do not reach tau2-bench, which asks endpoints itself; leave "
            "them out"
        )


def _check_url(option: str, url: str | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise CommandError(f"{option} {url}: no URL; write it as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise CommandError(f"{option}: holds a key or a password; put it into OPENAI_API_KEY")


def _client(args: argparse.Namespace, url: str, model: str) -> ChatClient:
    return ChatClient(LlmConfig.from_environment(
        base_url=url, model=model, timeout_s=args.timeout, requests_per_minute=args.rpm,
        num_workers=args.concurrency, temperature=args.temperature, input_price=args.price[0],
        output_price=args.price[1], max_cost=args.max_cost,
    ))


def _customer_endpoint(args: argparse.Namespace) -> tuple[str, str]:
    """Return URL and model name of the endpoint that plays the customer."""
    url = args.customer_endpoint or os.environ.get("OPENAI_BASE_URL") or args.endpoint
    served = args.model if args.endpoint else None
    model = args.customer_model or os.environ.get("TASK_LLM_MODEL") or served
    if not url or not model:
        missing = "--customer-model" if url else "--customer-endpoint"
        raise CommandError(f"the customer is an endpoint's: give {missing}")
    return url, model


def _settings(args: argparse.Namespace, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return what tells this evaluation from another; no key is among it."""
    names = (
        "model", "endpoint", "policy", "customer", "customer_endpoint", "customer_model",
        "num_trials", "seed", "temperature", "reasoning", "max_new_tokens",
    )
    digest = hashlib.sha256("\n".join(map(task_to_json, tasks)).encode()).hexdigest()
    store = str(args.data_dir.resolve()) if args.data_dir else None
    customers = customers_hash() if args.customer == "scripted" else None
    return {
        "tasks_sha256": digest, "data_dir": store, "customers_sha256": customers,
        **{name: getattr(args, name) for name in names},
    }


def _print_metrics(metrics: dict[str, Any]) -> None:
    flat = {k: v for k, v in metrics.items() if k != "pass_hat_k"}
    flat |= {f"pass^{k}": found for k, found in metrics.get("pass_hat_k", {}).items()}
    for name, found in flat.items():
        if isinstance(found, dict) and "low" in found:
            print(metric_line(name, found))
        elif isinstance(found, int):
            print(f"{name:22}{found:8}")
