"""The tasks of a run: read strictly, replayed on the store, split by user, known by their content."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import configs
from agent.customer_hash import customers_hash
from agent.trajectories import read_conversations
from common.files import RunError
from data_reader import DatasetError, Splits, Task
from envs.retail import RetailDatabase
from training.evaluation import choose_tasks
from training.task_store import CHUNK_BYTES, open_splits

Content = dict[str, dict[str, str]]
"""`sha256` and `size` of each part of a run's data."""

CUSTOMERS = "the scripted customers"
"""A part of agent mode's data that is code."""

DIFFICULTIES = ("easy", "medium", "hard")
"""Values of a task's tag `difficulty`, by which the curriculum sorts; a task without it is easy."""


def load_tasks(
    config: configs.RunConfig,
) -> tuple[Sequence[Task], Sequence[Task], Sequence[Task], RetailDatabase]:
    """Check the task files against the store, and split the tasks by user.

    Returns:
        Training, validation and test tasks, which stay on disk (but for a chosen sample of test
        tasks), and the store.

    Raises:
        DatasetError: A file is missing, invalid or too small to be split.
        DatabaseError: The store cannot be read.
    """
    data = config.data
    db = RetailDatabase.load(data.data_dir or None)

    def split(path: str, *min_tasks: int) -> Splits:
        skip = data.skip_invalid_tasks
        return open_splits(path, db, data.split_seed, data.fractions, skip, min_tasks)

    if config.agent.trajectories_path:
        for _ in read_conversations(Path(config.agent.trajectories_path)):
            pass  # a damaged row is named before time is spent
    # Of two files each needs only the customers that it is read for.
    if data.eval_dataset_path == data.dataset_path:
        splits = held_out = split(data.dataset_path, 1, 1, 1)
    else:
        splits, held_out = split(data.dataset_path, 1, 0, 0), split(data.eval_dataset_path, 0, 1, 1)
    test = choose_tasks(held_out.test, config.evaluation.num_tasks, data.split_seed)
    return splits.train, held_out.validation, test, db


def load_grpo_tasks(
    config: configs.RunConfig, train: Sequence[Task], db: RetailDatabase
) -> Sequence[Task]:
    """Return the tasks of GRPO: those of the training users in `data.grpo_dataset_path`, else SFT's, `train`.

    Raises:
        DatasetError: As `load_tasks`, or a difficulty tag is unknown to the curriculum.
    """
    data = config.data
    if path := data.grpo_dataset_path:
        train = open_splits(
            path, db, data.split_seed, data.fractions, data.skip_invalid_tasks, (1, 0, 0)
        ).train
    if config.grpo.curriculum:
        check_difficulties(train, path or data.dataset_path)
    return train


def describe_content(config: configs.RunConfig, db: RetailDatabase) -> Content:
    """Return hash and size of what identifies a run's data.

    It is each task file, by path, the store and, in agent mode, the customers.
    """
    data, found = config.data, {}
    paths = (data.dataset_path, data.grpo_dataset_path, data.eval_dataset_path,
             config.agent.trajectories_path)
    for path in dict.fromkeys(filter(None, paths)):
        digest, lines = hashlib.sha256(), 0
        with Path(path).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                lines += chunk.count(b"\n")
        found[path] = {"sha256": digest.hexdigest(), "size": f"{lines} lines"}
    digest, records = hashlib.sha256(), [*db.users.items(), *db.orders.items(), *db.products.items()]
    for record in records:
        digest.update(json.dumps(record).encode())
    store = f"store {data.data_dir}" if data.data_dir else "the project's store"
    found[store] = {"sha256": digest.hexdigest(), "size": f"{len(records)} records"}
    if config.mode == "agent":
        found[CUSTOMERS] = {"sha256": customers_hash(), "size": "their code"}
    return found


def check_content(folder: Path, before: Content, now: Content) -> None:
    """Refuse to resume a run on other data than it began with; say what it did not record.

    Args:
        before: What `describe_content` returned then; a part that an earlier version did not record
            is missing.

    Raises:
        RunError: Names each part that changed.
    """
    changed = {
        name: f"{name} ({part['size']} then, {now[name]['size']} now)"
        if part["size"] != now[name]["size"] else f"{name} (other content in {part['size']})"
        for name, part in before.items() if part != now[name]
    }
    if changed:
        commit = ", at the commit in its config.json (git_hash)," if CUSTOMERS in changed else ""
        raise RunError(
            f"{folder}: was started with other data: {', '.join(changed.values())} changed; resume "
            f"with the same data{commit} or choose another --output-dir"
        )
    if unknown := now.keys() - before.keys():
        print(f"{folder}: does not record {', '.join(sorted(unknown))}; resumed without a comparison")


def check_difficulties(tasks: Sequence[Task], path: str) -> None:
    """Refuse difficulty tags that the curriculum cannot sort by.

    Raises:
        DatasetError: Names the first such line.
    """
    for task in tasks:
        tag = task.tags.get("difficulty", DIFFICULTIES[0])
        if tag not in DIFFICULTIES:
            raise DatasetError([
                f"{path}:{task.line}: tags.difficulty is {tag!r}; write "
                f"{', '.join(DIFFICULTIES)}, or set grpo.curriculum=false"
            ])
