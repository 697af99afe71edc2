"""What agent mode learns with the `cpu` preset: base, SFT, SFT+GRPO, and two controls.

    python benchmarks/agent_learning.py --seed 1 --run-dir outputs/agent_learning
    python benchmarks/agent_learning.py --seed 1 --run-dir outputs/agent_learning --control random
    python benchmarks/agent_learning.py --seed 1 --run-dir outputs/agent_learning --control more-sft

The controls want the first command's run: `random` is GRPO from its SFT adapter with rewards drawn at
random, `more-sft` is SFT for as long as its SFT and GRPO took together. All use the same held-out tasks.
Each writes `agent_learning_<what>_<seed>.json` into the run folder: rates with intervals, seconds by
stage, and paired differences against SFT. `learning.py --mode agent` makes single rows; this script stays
because the published rows of agent mode are its own: early stopping as in the preset, and SFT's schedule
begun anew over the whole time.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import training  # noqa: E402, F401, I001  (Unsloth, before anything that it patches)

import configs  # noqa: E402
from benchmarks.controls import finished_adapter, go_on, provenance  # noqa: E402
from common.files import read_json, write_json_atomic  # noqa: E402
from gptoss.load import load_adapter  # noqa: E402
from training import pipeline  # noqa: E402
from training.evaluation import compare_evaluations  # noqa: E402


class Stages:
    """The steps of a run, timed."""

    def __init__(self, config: configs.RunConfig) -> None:
        """Open the run and load its model."""
        self.seconds: dict[str, float] = {}
        self.evaluations: dict[str, Any] = {}
        self.run = pipeline.prepare_run(config)
        self.model, self.tokenizer = pipeline.load_run_model(self.run)

    def do(self, name: str, step: Any, *args: Any, **kwargs: Any) -> Any:
        """Do a step of `pipeline`."""
        begin = time.perf_counter()
        result = step(self.run, self.model, self.tokenizer, *args, **kwargs)
        self.seconds[name] = round(time.perf_counter() - begin, 1)
        print(f"{name}: {self.seconds[name]} s", flush=True)
        return result

    def evaluate(self, stage: str) -> None:
        """Evaluate the model as it is now."""
        self.evaluations[stage] = self.do(f"evaluate {stage}", pipeline.evaluate_stage, stage)

    def report(self, before: Any, after: Any) -> dict[str, Any]:
        """Return rates, seconds and the paired difference of two evaluations."""
        config = self.run.config
        return {
            **provenance(self.model),
            "rates": {name: found.metrics for name, found in self.evaluations.items()},
            "difference": compare_evaluations(
                before, after, config.evaluation.num_bootstrap, config.data.split_seed
            ),
            "seconds": self.seconds, "settings": json.loads(config.to_json()),
        }


def steps_of_more_sft(first: dict[str, Any]) -> int:
    """Return the SFT steps that take as long as SFT and GRPO of the first command's result did."""
    seconds = first["seconds"]
    return round(first["settings"]["sft"]["max_steps"] * (1 + seconds["GRPO"] / seconds["SFT"]))


def main() -> None:
    """Train, evaluate and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--control", choices=("random", "more-sft"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE")
    args = parser.parse_args()
    what = args.control or "main"
    pairs = dict(text.split("=", 1) for text in args.overrides)
    first = args.run_dir / f"main_{args.seed}"
    if args.control:
        adapter = finished_adapter(first / "sft" / "adapter", "run the same command without --control first")
    if args.control == "more-sft":
        result = read_json(args.run_dir / f"agent_learning_main_{args.seed}.json", {})
        pairs["sft.max_steps"] = str(steps_of_more_sft(result))
    stages = Stages(configs.with_overrides(configs.get_preset("cpu", "agent"), {
        "seed": args.seed, "output_dir": str(args.run_dir / f"{what}_{args.seed}"),
        "show_progress": False, "merge_model": False, **pairs,
    }))
    folder = stages.run.folder
    if what == "main":
        stages.evaluate("base")
        stages.do("SFT", pipeline.train_sft)
        stages.evaluate("sft")
        stages.do("GRPO", pipeline.train_grpo)
        stages.evaluate("sft_grpo")
        before, after = stages.evaluations["sft"], stages.evaluations["sft_grpo"]
    else:
        # SFT's evaluation is read from the first run: the tasks are the same.
        for name in ("evaluation.json", "trajectories.jsonl", "evaluation_details.json"):
            shutil.copy(first / name, folder / name)
        kept = {"sft": read_json(folder / "evaluation.json", {})["sft"]}
        write_json_atomic(folder / "evaluation.json", kept)
        load_adapter(stages.model, adapter)
        stages.evaluate("sft")
        before = stages.evaluations["sft"]
        if what == "more-sft":
            # Not on top of SFT: one schedule over the whole time.
            stages.model, stages.tokenizer = pipeline.load_run_model(stages.run)
        stages.do("GRPO" if what == "random" else "SFT", go_on, what)
        stages.evaluate("sft_grpo")
        after = stages.evaluations["sft_grpo"]
    report = stages.report(before, after)
    write_json_atomic(args.run_dir / f"agent_learning_{what}_{args.seed}.json", report)
    print({n: found.metrics["success_rate"] for n, found in stages.evaluations.items()})
    print("difference:", report["difference"]["success_rate"])


if __name__ == "__main__":
    main()
