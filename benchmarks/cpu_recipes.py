"""One way to go on from an SFT adapter, on held-out tasks: GRPO, GRPO with random rewards, or more SFT.

    python benchmarks/cpu_recipes.py --run outputs/tau_bench_rl --output-dir outputs/recipes/rate_4e-4 \\
        --set grpo.learning_rate=4e-4 --set grpo.max_steps=100

Compares recipes on the same tasks, one call each; recipe.json in the output folder holds the settings,
the seconds, and the difference from the SFT adapter task by task. What the controls are good for is
in `controls.py`. `benchmarks/results/cpu_recipes.json` is put together from such calls.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from benchmarks.controls import KINDS, finished_adapter, go_on, provenance  # noqa: E402
from common.files import write_json_atomic  # noqa: E402
from gptoss.load import load_adapter  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import compare_evaluations  # noqa: E402

SHOWN = ("exact_match_rate", "db_match_rate")


def measure(source: Path, kind: str, config: configs.RunConfig) -> dict[str, Any]:
    """Go on from a run's SFT adapter, and compare on the held-out tasks.

    Args:
        source: Folder of a run whose SFT is done.
        kind: One of `controls.KINDS`; "more-sft" trains `sft.max_steps` on the tasks of SFT.
        config: The settings, with the folder for this recipe.

    Returns:
        Rates before and after, the paired differences, and the seconds of training.
    """
    adapter = finished_adapter(source / "sft" / "adapter", "run train_script.py first")
    # More SFT draws other batches than SFT did.
    run = pipeline.prepare_run(replace(config, seed=config.seed + (kind == "more-sft")))
    model, tokenizer = pipeline.load_run_model(run)
    load_adapter(model, adapter)
    before = pipeline.evaluate_stage(run, model, tokenizer, "sft")
    begun = time.monotonic()
    go_on(run, model, tokenizer, kind)
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
    whole = found | provenance(model) | {"settings": json.loads(config.to_json())}
    write_json_atomic(run.folder / "recipe.json", whole)
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
