"""Seconds of a GRPO batch in agent mode: model, environment, customer, and the update.

    python benchmarks/agent_training.py --adapter outputs/agent/sft/adapter

Plays `--episodes` conversations of training tasks at once, each turn one call of the engine for all,
then one update over them, and writes benchmarks/results/agent_training.json. At the end the loss of the
last rows is computed once more with their mask and once with every token masked: its gradient must then
be 0, whoever computes the loss.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import training  # noqa: E402, F401, I001  (Unsloth, before anything that it patches)
import torch  # noqa: E402

import configs  # noqa: E402
from agent.conversation import Conversation  # noqa: E402
from agent.customers import ScriptedCustomer  # noqa: E402
from gptoss.decoder import Prefix  # noqa: E402
from gptoss.load import load_adapter, load_model  # noqa: E402
from training.conversations import RolloutPolicy  # noqa: E402
from training.grpo import build_grpo_trainer  # noqa: E402
from training.pipeline import prepare_run  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "agent_training.json"


class Clock:
    """Adds up the seconds of methods, by the wall clock and of the process's CPU time."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def watch(self, owner: type, name: str, part: str) -> None:
        """Time a method of a class from now on."""
        method: Callable = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin, cpu = time.perf_counter(), time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - begin
                self.seconds[f"{part}_cpu"] += time.process_time() - cpu
                self.calls[part] += 1

        setattr(owner, name, timed)


class KeptInputs:
    """Stands before a trainer's loss and keeps what it was given last."""

    def __init__(self, trainer: Any) -> None:
        """Take the place of the trainer's `compute_loss`."""
        self._trainer, self._loss = trainer, trainer.compute_loss
        self.inputs: dict[str, Any] = {}
        trainer.compute_loss = self

    def __call__(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss."""
        self.inputs = dict(inputs)
        return self._loss(model, inputs, *args, **kwargs)

    def gradient_norm(self, masks_all: bool) -> float:
        """Return the norm of the adapter's gradient, with advantages of 1 and -1 in turns."""
        model, inputs = self._trainer.model, dict(self.inputs)
        signs = [1.0, -1.0] * len(inputs["advantages"])
        inputs["advantages"] = torch.tensor(
            signs[: len(inputs["advantages"])], device=model.device
        )
        if masks_all:
            inputs["tool_mask"] = torch.zeros_like(inputs["tool_mask"])
        # Unsloth's own switch also turns checkpointing on; without it 24 layers take more than 110 GiB.
        getattr(model, "for_training", model.train)()
        model.zero_grad()
        self._loss(model, inputs).backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return float(torch.stack([gradient.float().norm() for gradient in gradients]).norm())


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", type=Path, help="adapter of SFT in agent mode (default: none)")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--episodes", type=int, default=32, help="of one update (default: 32)")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE")
    parser.add_argument(
        "--read-all", action="store_true", help="read conversations whole at every turn, to compare"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    if args.read_all:
        Prefix.is_of = lambda prefix, ids: False
    pairs = dict(text.split("=", 1) for text in args.overrides)
    rows = configs.get_preset(args.preset, "agent").grpo.per_device_train_batch_size
    with tempfile.TemporaryDirectory() as folder:
        config = configs.with_overrides(configs.get_preset(args.preset, "agent"), {
            "output_dir": folder, "show_progress": False, "grpo.max_steps": 1,
            "grpo.gradient_accumulation_steps": args.episodes // rows, "grpo.eval_steps": 0,
            "grpo.early_stopping_patience": 0, "grpo.resample_rounds": 0, **pairs,
        })
        run = prepare_run(config)
        model, tokenizer = load_model(config.model)
        if args.adapter:
            load_adapter(model, args.adapter)
        trainer = build_grpo_trainer(model, tokenizer, run.train, run.db, config, [])
        kept, clock = KeptInputs(trainer), Clock()
        clock.watch(RolloutPolicy, "reply", "model")
        clock.watch(Conversation, "step", "step")
        clock.watch(ScriptedCustomer, "open", "customer")
        clock.watch(ScriptedCustomer, "reply", "customer")
        clock.watch(type(trainer), "_generate_and_score_completions", "prepare")
        begin, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        clock.seconds["all"] = time.perf_counter() - begin
        clock.seconds["all_cpu"] = time.process_time() - cpu
        logged = trainer.state.log_history[0]
        norms = {name: kept.gradient_norm(name == "all_masked") for name in ("own_mask", "all_masked")}
    seconds = clock.seconds
    for kind in ("", "_cpu"):
        # A step of a conversation holds the customer's answer; the opening comes before it.
        seconds[f"environment{kind}"] = max(0.0, seconds[f"step{kind}"] - seconds[f"customer{kind}"])
        seconds[f"update{kind}"] = seconds[f"all{kind}"] - seconds[f"prepare{kind}"]
    parts = ("model", "environment", "customer", "update", "all")
    names = ("episodes/tokens", "episodes/environment_share", "episodes/turns", "episodes/success")
    result = {
        "episodes": args.episodes, "engine_calls": clock.calls["model"], "turns": clock.calls["step"],
        "seconds": {part: round(seconds[part], 3) for part in parts},
        "cpu_seconds": {part: round(seconds[f"{part}_cpu"], 3) for part in parts},
        "gradient_norm": norms,
        "peak_gib": (
            round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None
        ),
        "logged": {name: round(logged[name], 4) for name in names},
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "preset": args.preset, "set": pairs, "adapter": bool(args.adapter),
        "read_all": args.read_all,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
