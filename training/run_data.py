"""The tasks of a run: read strictly, replayed on the store, split by user.

Left out on purpose: the audit's questions about wording and policy (`task_tester.py audit`).
"""

from collections.abc import Sequence

import configs
from data_reader import DatasetError, Splits, Task
from envs.retail import RetailDatabase
from training.evaluation import choose_tasks
from training.task_store import open_splits

DIFFICULTIES = ("easy", "medium", "hard")
"""Values of a task's tag `difficulty`, by which the curriculum sorts; a task without it is easy."""


def load_tasks(
    config: configs.RunConfig,
) -> tuple[Sequence[Task], Sequence[Task], Sequence[Task], RetailDatabase]:
    """Check the task files against the store, and split the tasks by user.

    Args:
        config: `data` and `evaluation.num_tasks` are used.

    Returns:
        Training, validation and test tasks, which stay on disk (but for a chosen sample of test
        tasks), and the store.

    Raises:
        DatasetError: A file is missing or faulty, or too small to be split, or a difficulty tag is
            unknown to the curriculum.
        DatabaseError: The store cannot be read.
    """
    data = config.data
    db = RetailDatabase.load(data.data_dir or None)

    def split(path: str) -> Splits:
        return open_splits(path, db, data.split_seed, data.fractions, data.skip_invalid_tasks)

    splits = split(data.dataset_path)
    same_file = data.eval_dataset_path == data.dataset_path
    held_out = splits if same_file else split(data.eval_dataset_path)
    test = choose_tasks(held_out.test, config.evaluation.num_tasks, data.split_seed)
    if config.grpo.curriculum:
        check_difficulties(splits.train, data.dataset_path)
    return splits.train, held_out.validation, test, db


def check_difficulties(tasks: Sequence[Task], path: str) -> None:
    """Refuse difficulty tags that the curriculum cannot sort by.

    Args:
        tasks: Training tasks.
        path: The file they stand in.

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
