"""Measure memory, time and disk of training on large task files.

    python benchmarks/big_data.py [--num-tasks 10000] [--num-tasks 200000] [--num-tasks 1000000]

A file of each size is made by repeating the rows of 3.5k.jsonl under new task ids, in a temporary
folder. Each size then runs in a process of its own through the pipeline's functions, with the small
model that ships here: check and split the file, four steps of SFT, four steps of GRPO. Each stage
writes and tokenizes only the rows that it shows. Sizes up to 10,000 also prepare a whole epoch of
SFT (TRL tokenizes row by row, some hundred a second), and are measured again with tasks and rows in
lists, for comparison.
Memory is the process's own (anonymous) pages, sampled every 10 ms: pages of mapped files are the
system's cache and are given back when memory is short. Says nothing about learning.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS_PATH = ROOT / "benchmarks" / "results" / "big_data.json"
SOURCE_PATH = ROOT / "3.5k.jsonl"
DEFAULT_SIZES = (10_000, 200_000, 1_000_000)
LARGEST_IN_FULL = 10_000


def write_copies(path: Path, num_tasks: int) -> None:
    """Write a task file by repeating the source's rows under new task ids."""
    rows = [json.loads(line) for line in SOURCE_PATH.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_tasks):
            row = rows[number % len(rows)] | {"task_id": f"copy-{number}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


class Sampler(threading.Thread):
    """Samples the process's anonymous memory and the size of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.peak_mib = 0.0
        self.disk_mib = 0.0

    def run(self) -> None:
        """Sample until the process ends; the folder once a second."""
        tick = 0
        while True:
            self.peak_mib = max(self.peak_mib, anonymous_mib())
            if tick % 100 == 0:
                self.disk_mib = max(self.disk_mib, folder_mib(self.folder))
            tick += 1
            time.sleep(0.01)


def anonymous_mib() -> float:
    """Return the memory of this process that is no file's page, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux 4.5 or later")


def folder_mib(folder: Path) -> float:
    """Return the size of a folder's files in MiB; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total / 2**20


def run_phases(sampler: Sampler, phases: dict[str, Callable[[], object]]) -> dict:
    """Run functions one after the other.

    Returns:
        By name: seconds, and the peak of memory above what was held before the first, in MiB.
    """
    before = anonymous_mib()
    result: dict = {"before_mib": round(before, 1)}
    sampler.start()
    for name, phase in phases.items():
        sampler.peak_mib = sampler.disk_mib = 0.0
        started = time.monotonic()
        phase()
        result[name] = {
            "seconds": round(time.monotonic() - started, 1),
            "peak_growth_mib": round(sampler.peak_mib - before, 1),
            "disk_mib": round(sampler.disk_mib, 1),
        }
        print(f"  {name}: {result[name]}", file=sys.stderr, flush=True)
    return result


def measure(path: Path, folder: Path, in_full: bool) -> dict:
    """Train on a file with tasks and rows on disk, and return the figures.

    Args:
        path: Task file.
        folder: Run folder.
        in_full: Whether a whole epoch of SFT is prepared too.
    """
    import datasets

    import configs
    from gptoss.load import load_model
    from training import pipeline
    from training.grpo import build_grpo_trainer, run_grpo
    from training.rewards import make_reward_functions
    from training.sft import build_sft_trainer, run_sft
    from training.trainer import run_trainer

    datasets.disable_progress_bars()
    # Small batches, so that the memory of a step does not hide the memory of the data.
    settings = {
        "model.num_threads": 1, "data.dataset_path": str(path),
        "data.eval_dataset_path": str(path), "output_dir": str(folder), "sft.max_steps": 4,
        "sft.warmup_steps": 0, "sft.per_device_train_batch_size": 2, "grpo.max_steps": 4,
        "grpo.per_device_train_batch_size": 4, "grpo.num_generations": 4,
        "grpo.max_completion_length": 32, "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
        "evaluation.num_tasks": 8, "show_progress": False,
    }
    config = configs.with_overrides(configs.get_preset("cpu"), settings)
    model, tokenizer = load_model(config.model)
    # A first round on the source warms up imports and caches, so that growth means the large file.
    small = configs.with_overrides(
        config, {"data.dataset_path": str(SOURCE_PATH), "output_dir": str(folder / "warm_up")}
    )
    train, _, _, db = pipeline.load_tasks(small)
    run_sft(model, tokenizer, train[:64], small)
    run_grpo(model, tokenizer, train[:64], db, small)
    state: dict = {}

    def split() -> None:
        state["train"], _, _, state["db"] = pipeline.load_tasks(config)

    def prepare_sft() -> None:
        state["trainer"] = build_sft_trainer(model, tokenizer, state["train"], config)

    def prepare_epoch() -> None:
        build_sft_trainer(
            model, tokenizer, state["train"], configs.with_overrides(config, {"sft.max_steps": -1})
        )

    def prepare_grpo() -> None:
        state["trainer"] = build_grpo_trainer(
            model, tokenizer, state["train"], state["db"], config, [], make_reward_functions
        )

    phases: dict[str, Callable[[], object]] = {"check_and_split": split, "sft_rows": prepare_sft}
    phases["sft_four_steps"] = lambda: run_trainer(state["trainer"], resume=False)
    phases["grpo_rows"] = prepare_grpo
    phases["grpo_four_steps"] = lambda: run_trainer(state["trainer"], resume=False)
    if in_full:
        phases["sft_rows_of_an_epoch"] = prepare_epoch
    result = run_phases(Sampler(folder), phases)
    return result | {"num_train_tasks": len(state["train"])}


def measure_in_memory(path: Path, folder: Path) -> dict:
    """Read a file into lists and build the rows of SFT from them, and return the figures."""
    from data_reader import build_sft_dataset, read_tasks, split_tasks
    from envs.retail import RetailDatabase
    from task_tester import replay_gold

    db = RetailDatabase.load()
    build_sft_dataset(read_tasks(SOURCE_PATH)[:64], "brief")
    state: dict = {}

    def split() -> None:
        tasks = read_tasks(path)
        for task in tasks:
            replay_gold(task, db)
        state["train"] = split_tasks(tasks, db=db).train

    def build() -> None:
        state["rows"] = build_sft_dataset(state["train"], "brief")

    return run_phases(Sampler(folder), {"check_and_split": split, "sft_rows_only": build})


def measure_in_child(kind: str, path: Path, folder: Path) -> dict:
    """Measure in a fresh process and return its figures."""
    command = [sys.executable, __file__, "--child", kind, str(path), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Measure every size and write the results file; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-tasks", type=int, action="append", help="size; may be repeated")
    parser.add_argument("--output", type=Path, default=RESULTS_PATH, help="results file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, path, folder = arguments.child
        if kind == "in_memory":
            figures = measure_in_memory(Path(path), Path(folder))
        else:
            figures = measure(Path(path), Path(folder), in_full=kind == "in_full")
        print(json.dumps(figures))
        return 0
    version = platform.python_version()
    results: dict = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {version}",
        "note": "growth in MiB of anonymous memory above the process after a warm-up; 1 thread; "
        "seconds on a machine that did other work too",
        "sizes": {},
    }
    if arguments.output.exists():  # sizes that are not measured now stay
        results["sizes"] = json.loads(arguments.output.read_text(encoding="utf-8"))["sizes"]
    for num_tasks in arguments.num_tasks or DEFAULT_SIZES:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "tasks.jsonl"
            write_copies(path, num_tasks)
            print(f"{num_tasks} tasks", file=sys.stderr, flush=True)
            entry = {"file_mib": round(path.stat().st_size / 2**20, 1)}
            in_full = num_tasks <= LARGEST_IN_FULL
            kind = "in_full" if in_full else "few_steps"
            entry["on_disk"] = measure_in_child(kind, path, Path(name) / "run")
            if in_full:
                entry["in_memory"] = measure_in_child("in_memory", path, Path(name) / "lists")
            results["sizes"][str(num_tasks)] = entry
            results["sizes"] = dict(sorted(results["sizes"].items(), key=lambda one: int(one[0])))
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
