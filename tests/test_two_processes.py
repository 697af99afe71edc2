"""Two processes that share the batches of a run end where one process ends.

The same seed and the same batch in all: the rows of each optimizer step and the sampled completions
are the same, so the adapters differ by the order in which float32 sums are taken, and by nothing
else.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import rank_run
import resume_run
import torch
from safetensors.torch import load_file

import configs
from common.files import is_complete

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]

TOLERANCE = 1e-4
"""Largest difference of two adapters, as a share of the norm of what training changed.

Float32 rounds by 6e-8 and each of the few steps carries the rounding of the one before, so about
1e-6 is to be expected (found: 4e-7 after SFT, 8e-7 after GRPO); a row or a completion that is
another one gives more than 1e-2.
"""
ADAPTERS = ("sft/adapter", "final_model")
STAGES = ("base", "sft", "sft_grpo")


def make_config(folder: Path, world_size: int, name: str) -> configs.RunConfig:
    """Return the settings of a run whose batches of all processes are 8 rows and 8 completions."""
    return resume_run.resume_config(
        folder, output_dir=str(folder / name),
        sft__max_steps=3, sft__per_device_train_batch_size=8 // world_size,
        grpo__max_steps=3, grpo__per_device_train_batch_size=4 // world_size,
        grpo__gradient_accumulation_steps=2, grpo__generation_batch_size=0,
    )


def finish(process_ids: list[int], log_dir: Path) -> None:
    """Wait for the processes of a run; all must end well."""
    codes = [os.waitpid(process_id, 0)[1] for process_id in process_ids]
    printed = "\n".join(path.read_text() for path in sorted(log_dir.glob("*.txt")))
    assert not any(codes), printed


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder, and by number of processes: run folder, and what each process noted."""
    folder = tmp_path_factory.mktemp("processes")
    found = {"folder": folder}
    for world_size in (1, 2):
        name = f"run-{world_size}"
        log_dir = folder / f"logs-{world_size}"
        config = make_config(folder, world_size, name)
        finish(rank_run.start_ranks(config, log_dir, world_size), log_dir)
        notes = [
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in sorted(log_dir.glob("rank-*.jsonl"))
        ]
        assert len(notes) == world_size
        found[world_size] = SimpleNamespace(folder=folder / name, notes=notes)
    return found


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of two adapters."""
    return torch.cat([(left[name] - right[name]).flatten() for name in left]).norm().item()


def rollouts(notes: list[dict]) -> list[tuple]:
    """Return the completions that a process sampled for GRPO: step, task and token ids."""
    return sorted((row["step"], row["task"], row["ids"]) for row in notes if "ids" in row)


@pytest.mark.parametrize("stage", ADAPTERS)
def test_adapters_agree_up_to_rounding(runs, stage):
    one, two = (
        load_file(runs[n].folder / stage / "adapter_model.safetensors") for n in (1, 2)
    )
    before = load_file(runs[1].folder / "sft" / "adapter" / "adapter_model.safetensors")
    if stage == "sft/adapter":  # B starts at zero, and A hardly moves
        before = {name: value if "lora_A" in name else 0 * value for name, value in before.items()}
    moved = distance(one, before)
    assert moved > 0.1
    assert distance(one, two) < TOLERANCE * moved


def test_each_process_samples_its_share_of_the_same_completions(runs):
    (whole,), shares = ([rollouts(notes) for notes in runs[n].notes] for n in (1, 2))
    assert len(whole) == 3 * 8 and [len(share) for share in shares] == [3 * 4, 3 * 4]
    assert sorted(shares[0] + shares[1]) == whole
    assert len({tuple(ids) for _, _, ids in whole}) > 12, "every completion is the same one"


def test_each_process_evaluates_its_share_of_the_same_tasks(runs):
    def count(notes: list[dict]) -> Counter:
        return Counter(prompt for row in notes for prompt in row.get("evaluated", ()))

    (whole,), shares = ([count(notes) for notes in runs[n].notes] for n in (1, 2))
    # Six held-out tasks at three stages; three validation tasks at steps 0, 2 and 3, one batch.
    assert whole.total() == 3 * 6 + 3 * 3
    assert shares[0] + shares[1] == whole
    assert [share.total() for share in shares] == [3 * 3 + 3 * 3, 3 * 3]


def test_evaluation_is_identical(runs):
    for name in ("evaluation.json", "completions.jsonl", "evaluation_details.json"):
        one, two = ((runs[n].folder / name).read_text(encoding="utf-8") for n in (1, 2))
        assert one == two, name
    assert tuple(json.loads((runs[1].folder / "evaluation.json").read_text())) == STAGES


def test_only_the_first_process_writes(runs):
    def others(folder: Path) -> set[str]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        # 0o600 is what safetensors gives its files, whichever process writes them.
        modes = {path: path.stat().st_mode & 0o777 for path in files}
        assert any(mode == 0o644 for mode in modes.values())
        return {path.name for path, mode in modes.items() if mode == 0o666 & ~rank_run.OTHERS_UMASK}

    # The state of its own random generators is the one thing that only it can save.
    assert others(runs[2].folder) == {"rng_state_1.pth"}
    assert others(runs[1].folder) == set()


def test_killed_and_resumed_processes_end_bitwise_equal(runs, tmp_path):
    folder, run = runs["folder"], runs["folder"] / "run-killed"
    config = make_config(folder, 2, run.name)
    for checkpoint in (run / "sft" / "checkpoint-1", run / "checkpoint-1"):
        process_ids = rank_run.start_ranks(config, tmp_path, 2)
        until = time.monotonic() + 120
        while not is_complete(checkpoint):
            assert time.monotonic() < until, "no checkpoint came"
            time.sleep(0.01)
        for process_id in process_ids:
            resume_run.kill(process_id)
        assert not is_complete(run / "final_model")
    finish(rank_run.start_ranks(config, tmp_path, 2), tmp_path)
    assert resume_run.digests(run) == resume_run.digests(runs[2].folder)
