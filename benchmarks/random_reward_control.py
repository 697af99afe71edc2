"""GRPO with random rewards, from the SFT checkpoint of a finished run: the gain must not appear.

    python benchmarks/random_reward_control.py --run outputs/tau_bench_rl

Same tasks, seed, steps and sampling as the run; only the rewards are drawn by chance, spread like a
coin. A gain that came from training on its own samples, or from a lenient evaluation, would show up
here as well. Says nothing about why a real gain appears.
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from common.files import is_complete, read_json, write_json_atomic  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import Evaluation, compare_evaluations  # noqa: E402
from training.rewards import (  # noqa: E402
    CompletionScorer,
    RewardFunction,
    make_reward_functions,
)

SHOWN = ("exact_match_rate", "db_match_rate", "mean_reward", "json_parse_success")


def make_random_rewards(seed: int) -> Any:
    """Return a maker of reward functions that toss a coin for each completion.

    Args:
        seed: Seed of the coin.

    Returns:
        A function like `training.rewards.make_reward_functions`.
    """
    coin = random.Random(seed)

    def make(scorer: CompletionScorer) -> list[RewardFunction]:
        watch, _ = make_reward_functions(scorer)

        def tool_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
            """Toss a coin; the true scores are logged all the same."""
            watch(completion_ids=completion_ids, **kwargs)
            return [float(coin.random() < 0.5) for _ in completion_ids]

        def outcome_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            """Toss a coin."""
            return [float(coin.random() < 0.5) for _ in completion_ids]

        return [tool_reward, outcome_reward]

    return make


def train_and_evaluate(
    run: pipeline.Run, label: str, make_rewards: Any
) -> tuple[Evaluation, Evaluation]:
    """Train from the run's SFT adapter; return the evaluations before and after."""
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    before = pipeline.evaluate_stage(run, model, tokenizer, "sft")
    pipeline.train_grpo(run, model, tokenizer, make_rewards=make_rewards)
    return before, pipeline.evaluate_stage(run, model, tokenizer, label)


def take_over(source: Path, config: configs.RunConfig) -> pipeline.Run:
    """Open a new run folder that begins with another run's SFT adapter and its evaluation."""
    run = pipeline.prepare_run(config)
    adapter = source / "sft" / "adapter"
    if not is_complete(adapter):
        sys.exit(f"error: {adapter}: no finished SFT adapter; run train_script.py first")
    (run.folder / "sft").mkdir(exist_ok=True)
    (run.folder / "sft" / "adapter").symlink_to(adapter.resolve())
    return run


def main() -> None:
    """Run the control and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "outputs" / "tau_bench_rl")
    parser.add_argument("--run-dir", default="outputs/random_reward_control")
    parser.add_argument("--steps", type=int, help="GRPO steps (those of the run)")
    default = ROOT / "benchmarks" / "results" / "random_reward_control.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    config = configs.read_settings(arguments.run / "config.json")
    if config is None:
        sys.exit(f"error: {arguments.run}: holds no run; run train_script.py first")
    # Without early stopping: it would hide the harm by keeping the adapter that SFT left.
    stage = replace(config.grpo, early_stopping_patience=0, resample_rounds=0)
    if arguments.steps:
        stage = replace(stage, max_steps=arguments.steps)
    config = replace(
        config, output_dir=arguments.run_dir, grpo=stage, show_progress=False, merge_model=False
    )
    run = take_over(arguments.run, config)
    before, after = train_and_evaluate(run, "sft_grpo", make_random_rewards(config.seed))
    real = read_json(arguments.run / "evaluation.json", {}).get("sft_grpo", {})
    difference = compare_evaluations(
        before, after, config.evaluation.num_bootstrap, config.data.split_seed
    )
    figures = {
        "command": " ".join(["python", *sys.argv]),
        "grpo_steps": stage.max_steps,
        "seed": config.seed,
        "num_tasks": before.metrics["num_tasks"],
        "sft": {name: before.metrics[name] for name in SHOWN},
        "sft_grpo_random_rewards": {name: after.metrics[name] for name in SHOWN},
        "sft_grpo_real_rewards": {name: real[name] for name in SHOWN if name in real},
        "random_minus_sft_paired": difference,
    }
    write_json_atomic(arguments.output, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
