"""What holds for the whole suite: one thread a worker, and the longest files first."""

import os

# Set before torch is imported. `make test` runs two workers: with two threads each, on two cores,
# they wait for one another and a training step takes three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST_FIRST = (
    "test_provoked_failures.py", "test_notebook.py", "test_docs_commands.py", "test_sweep.py",
    "test_resume.py", "test_audit.py", "test_accelerate_configs.py", "test_fuzz.py",
)
"""Files that take a minute or so; begun last, one of them would keep one worker busy alone."""


def pytest_collection_modifyitems(items):
    """Move the longest files to the front; within a file the order stays."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
