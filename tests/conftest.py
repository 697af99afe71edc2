"""What holds for the whole suite: one thread a worker, the longest files first, shared fixtures."""

import gc
import os

import pytest

# Set before torch is imported. `make test` runs two workers: with two threads each, on two cores,
# they wait for one another and a training step takes three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST_FIRST = (
    "test_docs_commands.py", "test_outputs.py", "test_provoked_failures.py", "test_notebook.py",
    "test_resume.py", "test_agent_training.py", "test_accelerate_configs.py", "test_task_generator.py",
    "test_other_models.py", "test_policies.py", "test_sweep.py", "test_user_inputs.py",
    "test_two_processes.py", "test_first_hour.py", "test_audit.py", "test_agent_evaluation.py",
    "test_tiny_model.py", "test_callbacks.py", "test_docs.py",
)
"""Files that take a minute or so, by their time: begun last, one would keep one worker busy alone."""


def pytest_collection_modifyitems(items):
    """Move the longest files to the front; within a file the order stays."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def freeze_what_is_imported():
    """Take what is imported out of garbage collections, which trainers call several times a run.

    They took a quarter of a short run's time, and a collection in a fork copies the memory it visits.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def db():
    """The shipped store; episodes write to overlays of their own, so it serves every test."""
    from envs.retail import RetailDatabase

    return RetailDatabase.load()


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Settings that load a random two-layer model in float32."""
    from tiny_random import make_model_dir

    from configs import ModelStage

    folder = make_model_dir(tmp_path_factory.mktemp("base"))
    return ModelStage(
        model_name=str(folder), load_in_4bit=False, dtype="float32", device="cpu", lora_rank=4,
        lora_alpha=8, gradient_checkpointing=False, experts_implementation="eager",
    )
