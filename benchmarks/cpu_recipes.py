"""One way to go on from an SFT adapter, on held-out tasks: GRPO, GRPO with random rewards, or more SFT.

    python benchmarks/cpu_recipes.py --run outputs/tau_bench_rl --output-dir outputs/recipes/rate_4e-4 \\
        --set grpo.learning_rate=4e-4 --set grpo.max_steps=100

Compares recipes on the same tasks, one call each; recipe.json in the output folder holds the settings,
the seconds, and the difference from the SFT adapter task by task. Random rewards are drawn like a
coin: a gain that came from training on its own samples, or from a lenient evaluation, would show up
there as well. `benchmarks/results/cpu_recipes.json` is put together from such calls.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from common.files import is_complete, write_json_atomic  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import compare_evaluations  # noqa: E402
from training.rewards import (  # noqa: E402
    CompletionScorer,
    RewardFunction,
    make_reward_functions,
)
from training.sft import run_sft  # noqa: E402

SHOWN = ("exact_match_rate", "db_match_rate")
KINDS = ("grpo", "random", "more-sft")


def make_random_rewards(seed: int) -> Callable[[CompletionScorer], list[RewardFunction]]:
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


def begin_from(source: Path, config: configs.RunConfig) -> pipeline.Run:
    """Open a run folder that begins with another run's SFT adapter."""
    adapter = source / "sft" / "adapter"
    if not is_complete(adapter):
        sys.exit(f"error: {adapter}: no finished SFT adapter; run train_script.py first")
    run = pipeline.prepare_run(config)
    (run.folder / "sft").mkdir(exist_ok=True)
    (run.folder / "sft" / "adapter").symlink_to(adapter.resolve())
    return run


def measure(source: Path, kind: str, config: configs.RunConfig) -> dict[str, Any]:
    """Go on from a run's SFT adapter, and compare on the held-out tasks.

    Args:
        source: Folder of a run whose SFT is done.
        kind: One of `KINDS`; "more-sft" trains `sft.max_steps` on the tasks of SFT.
        config: The settings, with the folder for this recipe.

    Returns:
        Rates before and after, the paired differences, and the seconds of training.
    """
    run = begin_from(source, config)
    model, tokenizer = pipeline.load_run_model(run)
    pipeline.train_sft(run, model, tokenizer)
    before = pipeline.evaluate_stage(run, model, tokenizer, "sft")
    begun = time.monotonic()
    if kind == "more-sft":
        more = replace(config, seed=config.seed + 1, output_dir=str(run.folder / "more"))
        run_sft(model, tokenizer, run.train, more)
    else:
        rewards = make_random_rewards(config.seed) if kind == "random" else None
        pipeline.train_grpo(run, model, tokenizer, make_rewards=rewards)
    seconds = round(time.monotonic() - begun, 1)
    after = pipeline.evaluate_stage(run, model, tokenizer, "sft_grpo")
    difference = compare_evaluations(
        before, after, config.evaluation.num_bootstrap, config.data.split_seed
    )
    found = {
        "kind": kind, "seed": config.seed, "num_tasks": before.metrics["num_tasks"],
        "train_seconds": seconds,
        "sft": {name: before.metrics[name] for name in SHOWN},
        "after": {name: after.metrics[name] for name in SHOWN},
        "difference": {name: difference[name] for name in SHOWN},
    }
    write_json_atomic(run.folder / "recipe.json", found | {"settings": json.loads(config.to_json())})
    return found


def main() -> None:
    """Measure one recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "outputs" / "tau_bench_rl")
    parser.add_argument("--kind", choices=KINDS, default="grpo")
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    arguments = parser.parse_args()
    config = configs.read_settings(arguments.run / "config.json")
    if config is None:
        sys.exit(f"error: {arguments.run}: holds no run; run train_script.py first")
    # Without early stopping: it would hide harm by keeping the adapter that SFT left.
    config = configs.with_overrides(config, {
        "output_dir": arguments.output_dir, "show_progress": False, "merge_model": False,
        "grpo.early_stopping_patience": 0, **dict(text.split("=", 1) for text in arguments.set),
    })
    print(json.dumps(measure(arguments.run, arguments.kind, config), indent=2))


if __name__ == "__main__":
    main()
