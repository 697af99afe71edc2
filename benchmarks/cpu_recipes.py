"""GRPO recipes of the small model compared, each from the same SFT adapter, on other held-out tasks.

    python benchmarks/cpu_recipes.py --run outputs/tau_bench_rl --tasks held_out.jsonl --recipe rate_4e-4

Says which recipe gains most for the same number of completions. Each call trains one recipe with two threads and
writes `<output-dir>/<recipe>.json`: settings, seconds of each step, and every held-out task's verdict before
and after, so that recipes are compared task by task (`--table` does it).
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import training  # noqa: E402, F401, I001  (Unsloth, before anything that it patches)
import numpy as np  # noqa: E402

import configs  # noqa: E402
from benchmarks.random_reward_control import make_random_rewards, take_over  # noqa: E402
from common.files import write_json_atomic  # noqa: E402
from data_reader import read_tasks  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import complete_tasks, score_texts  # noqa: E402
from training.rewards import make_reward_functions  # noqa: E402



def main() -> None:
    """Train one recipe and write its verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "outputs" / "tau_bench_rl")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--changes", default="{}")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    arguments = parser.parse_args()
    name = arguments.recipe
    changes = json.loads(arguments.changes)
    steps = int(arguments.steps * changes.pop("max_steps", 1))
    exact = changes.pop("exact", None)
    random_rewards = changes.pop("random", None)
    more_sft = changes.pop("more_sft", None)
    config = configs.read_settings(arguments.run / "config.json")
    folder = arguments.output_dir / name
    config = configs.with_overrides(config, {
        "output_dir": str(folder), "show_progress": False, "merge_model": False,
        "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
        **{name if "." in name else f"grpo.{name}": value for name, value in changes.items()},
        "grpo.max_steps": steps, **dict(part.split("=", 1) for part in arguments.set),
    })
    if more_sft:
        config = configs.with_overrides(config, {"seed": config.seed + 1, "output_dir": str(folder / "more")})
    tasks = read_tasks(arguments.tasks)
    run = take_over(arguments.run, dataclasses.replace(config, output_dir=str(folder)))
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    figures = {"recipe": name, "changes": changes, "seed": config.seed, "steps": steps, "curve": []}

    def evaluate(step: int) -> None:
        texts = complete_tasks(model, tokenizer, tasks, config, None)
        scores = score_texts(tasks, texts, run.db, config, name).scores
        figures["curve"].append({
            "step": step, "seconds": round(time.monotonic() - start, 1),
            "exact": "".join("01"[score.exact_match] for score in scores),
            "db": "".join("01"[score.db_match] for score in scores),
        })
        write_json_atomic(arguments.output_dir / f"{name}.json", figures)
        print(name, step, *(round(np.mean([c == "1" for c in figures["curve"][-1][k]]), 4)
                            for k in ("exact", "db")), flush=True)

    start = time.monotonic()
    if more_sft:
        from training.sft import run_sft

        # As long as GRPO takes: --set sft.max_steps; the rate of a fresh epoch would undo the first.
        run_sft(model, tokenizer, run.grpo_train if config.data.grpo_dataset_path else run.train, config)
    elif steps:
        rewards = make_reward_functions
        if exact:
            def rewards(scorer):
                watch, outcome = make_reward_functions(scorer)

                def outcome_reward(completion_ids, task, **given):
                    scores = scorer.score(task, completion_ids)
                    return [exact * score.exact_match + (1 - exact) * score.outcome for score in scores]
                return [watch, outcome_reward]
        if random_rewards:
            rewards = make_random_rewards(config.seed)
        pipeline.train_grpo(run, model, tokenizer, make_rewards=rewards)
    figures["train_seconds"] = round(time.monotonic() - start, 1)
    evaluate(steps)


if __name__ == "__main__":
    main()
