"""Kill a run with -9 at a checkpoint of each stage, start it again, and see that it ends whole.

    python benchmarks/kill_and_resume.py --model MODEL --preset 80gb --output benchmarks/results/gpu_resume.json

The run is `train_script.py` with a few short steps. That a resumed run equals the one left alone is
shown on a CPU (tests/test_resume.py); a GPU draws and rounds differently each time, so here every
step must be there once, and every file that a whole run leaves.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402  (nothing of training/: it would take a GPU's memory for itself)


def device_name() -> str:
    """Return the first GPU's name, or that there is none."""
    if shutil.which("nvidia-smi") is None:
        return "CPU"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return lines[0] if lines else "CPU"


def whole_checkpoints(folder: Path) -> list[str]:
    """Return the checkpoints that were marked whole, oldest first."""
    found = [path.parent.name for path in folder.glob("checkpoint-*/complete.json")]
    return sorted(found, key=lambda name: int(name.rpartition("-")[2]))


def settings_of(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the settings of the run: three SFT steps, and as many generate calls of GRPO."""
    changes: dict[str, object] = {
        "sft.max_steps": 3, "sft.save_steps": 1, "sft.logging_steps": 1, "grpo.save_steps": 1,
        "grpo.max_completion_length": arguments.completion_tokens,
        "evaluation.max_new_tokens": arguments.completion_tokens, "evaluation.num_tasks": 8,
        "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
        "show_progress": "false", "merge_model": "false",
    }
    if arguments.model:
        changes["model.model_name"] = arguments.model
    changes |= dict(text.split("=", 1) for text in arguments.set)
    config = configs.with_overrides(configs.get_preset(arguments.preset), changes)
    # A checkpoint of GRPO lies after each generate call.
    return changes | {"grpo.max_steps": 3 * config.grpo.steps_per_generation}


def run(words: list[str], log_path: Path, kill_at: Path | None, timeout_s: float) -> dict:
    """Run the script, and kill it once a folder holds a whole checkpoint.

    Args:
        words: Of its command line.
        log_path: Takes what it prints.
        kill_at: The folder; None lets it come to its end.
        timeout_s: After this it is killed in any case.

    Returns:
        `exit_code` (-9 when it was killed) and `seconds`.
    """
    begin = time.monotonic()
    with open(log_path, "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train_script.py"), *words], stdout=log,
            stderr=subprocess.STDOUT, cwd=ROOT,
        )
        while process.poll() is None:
            reached = kill_at is not None and whole_checkpoints(kill_at)
            if reached or time.monotonic() - begin > timeout_s:
                process.kill()
            time.sleep(0.05)
    return {"exit_code": process.returncode, "seconds": round(time.monotonic() - begin, 1)}


def steps_of(path: Path) -> dict[str, list[int]]:
    """Return the optimizer steps of each stage that metrics.csv has a loss of."""
    steps: dict[str, list[int]] = {"sft": [], "grpo": []}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["loss"]:
                steps[row["stage"]].append(int(row["step"]))
    return steps


def main() -> None:
    """Kill in SFT, kill in GRPO, finish, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or hub name (the preset's)")
    parser.add_argument("--preset", default="80gb", choices=("cpu", "t4", "24gb", "80gb"))
    parser.add_argument("--output", type=Path, required=True, help="JSON file of figures")
    parser.add_argument("--run-dir", type=Path, default=Path("outputs/kill_and_resume"))
    parser.add_argument("--completion-tokens", type=int, default=48)
    parser.add_argument("--timeout-s", type=float, default=900, help="limit of each start (900)")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    arguments = parser.parse_args()
    folder = arguments.run_dir
    if folder.exists():
        sys.exit(f"error: {folder}: exists; choose another --run-dir")
    folder.mkdir(parents=True)
    settings, log_path = settings_of(arguments), folder / "log.txt"
    words = ["--preset", arguments.preset, "--output-dir", str(folder), "--resume"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    figures: dict = {
        "device": device_name(), "command": " ".join(sys.argv), "starts": [],
    }
    for place in (folder / "sft", folder, None):
        start = run(words, log_path, place, arguments.timeout_s)
        start["checkpoints"] = whole_checkpoints(place or folder)
        figures["starts"].append(start)
        print(start, flush=True)
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if figures["starts"][-1]["exit_code"]:
        sys.exit(f"error: the last start did not come to its end, see {log_path}")
    figures["steps"] = steps_of(folder / "metrics.csv")
    figures["stages_evaluated"] = list(json.loads((folder / "evaluation.json").read_text()))
    grpo_steps = list(range(1, settings["grpo.max_steps"] + 1))
    figures["whole"] = (
        [start["exit_code"] for start in figures["starts"]] == [-9, -9, 0]
        # A start that was killed at its time limit has none.
        and all(start["checkpoints"] for start in figures["starts"])
        and figures["steps"] == {"sft": [1, 2, 3], "grpo": grpo_steps}
        and figures["stages_evaluated"] == ["base", "sft", "sft_grpo"]
        and (folder / "final_model" / "complete.json").exists()
    )
    arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    sys.exit(not figures["whole"])


if __name__ == "__main__":
    main()
