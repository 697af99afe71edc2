"""Measure the task generator: seconds and memory growth, for one core.

    python benchmarks/generator_speed.py [--num-tasks 3500] [--num-tasks 100000]

Each size runs in a process of its own, which starts with the store loaded and a hundred tasks made,
so that growth means what further tasks add. Says nothing about the quality of the tasks.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from task_generator import write_tasks  # noqa: E402
from tasks.generate.pipeline import TaskStream  # noqa: E402

RESULTS_PATH = ROOT / "benchmarks" / "results" / "generator_speed.json"
NUM_WARM_UP = 100


def peak_mib() -> float:
    """Return the most memory this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_tasks: int) -> dict:
    """Generate a file once and return its figures.

    Args:
        num_tasks: Tasks in the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        output_path = Path(folder) / "tasks.jsonl"
        write_tasks(TaskStream(NUM_WARM_UP, seed=0), output_path)
        before = peak_mib()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        write_tasks(TaskStream(num_tasks, seed=7), output_path)
        return {
            "num_tasks": num_tasks,
            "seconds": round(time.perf_counter() - begin, 2),
            "cpu_seconds": round(time.process_time() - begin_cpu, 2),
            "memory_growth_mib": round(peak_mib() - before, 1),
            "file_mib": round(output_path.stat().st_size / 2**20, 1),
        }


def main() -> None:
    """Measure each size and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-tasks", type=int, action="append", help="may be given twice")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only)))
        return
    runs = []
    for num_tasks in arguments.num_tasks or [3_500, 100_000]:
        command = [sys.executable, __file__, "--only", str(num_tasks)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout))
        print(runs[-1], flush=True)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_average_15_min": round(os.getloadavg()[2], 1),
        "runs": runs,
    }
    RESULTS_PATH.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
