"""Run the whole pipeline on a GPU with few steps and record seconds and peak memory of each part.

    python benchmarks/gpu_pipeline.py --preset 80gb --output benchmarks/results/gpu_pipeline.json

Every figure is written as soon as it is known, so a run that is cut short loses nothing before it.
Random weights of the right shape measure time and memory as trained ones do; their completions
never end, so they are as long as `--completion-tokens` allows. Says nothing about quality.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from gptoss.load import compare_logits, count_trainable, load_model, logits_on  # noqa: E402
from training import pipeline  # noqa: E402

GIB = 2**30
CHECK_PROMPTS = ["<|start|>user<|message|>Cancel #W1234567.<|end|><|start|>assistant", "Hello"]


class Meter:
    """Writes seconds and peak memory of named parts into a JSON file."""

    def __init__(self, path: Path, facts: dict) -> None:
        """Start with facts about the run."""
        self.path, self.figures = path, facts
        self.write()

    def write(self) -> None:
        """Write what is known so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.figures, indent=2) + "\n", encoding="utf-8")

    def note(self, name: str, value: object) -> None:
        """Record one figure."""
        self.figures[name] = value
        self.write()
        print(f"{name}: {value}", flush=True)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Record a part's seconds and its peak of memory, allocated and reserved."""
        torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        yield
        torch.cuda.synchronize()
        self.note(name, {
            "seconds": round(time.perf_counter() - begin, 1),
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        })


def device_name() -> str:
    """Return the GPU's name and memory."""
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / GIB:.1f} GiB"


def cap_memory(limit_gib: float) -> None:
    """Hold this process to part of the GPU, and let libraries that ask see a GPU of that size."""
    total = torch.cuda.get_device_properties(0).total_memory
    limit = int(limit_gib * GIB)
    torch.cuda.set_per_process_memory_fraction(limit / total)
    # PyTorch's cap does not show in mem_get_info, by which Unsloth sizes its passes.
    torch.cuda.mem_get_info = lambda device=None: (limit - torch.cuda.memory_reserved(), limit)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="80gb", choices=("t4", "24gb", "80gb"))
    parser.add_argument("--model", help="model folder or hub name (the preset's)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of figures")
    parser.add_argument("--run-dir", default="outputs/gpu_pipeline", help="run folder")
    parser.add_argument("--memory-gib", type=float, help="cap on this process's GPU memory")
    parser.add_argument("--sft-steps", type=int, default=3)
    parser.add_argument("--grpo-steps", type=int, default=2)
    parser.add_argument("--eval-tasks", type=int, default=16, help="0 skips evaluation")
    parser.add_argument("--completion-tokens", type=int, default=192)
    parser.add_argument("--merge", action="store_true", help="write and check merged_model/")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    return parser.parse_args()


def make_config(arguments: argparse.Namespace) -> configs.RunConfig:
    """Return the preset's settings, cut short as the command line says."""
    overrides: dict[str, object] = {
        "output_dir": arguments.run_dir, "show_progress": False,
        "sft.max_steps": arguments.sft_steps, "grpo.max_steps": arguments.grpo_steps,
        "grpo.max_completion_length": arguments.completion_tokens,
        "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
        "evaluation.num_tasks": max(1, arguments.eval_tasks),
        "evaluation.max_new_tokens": arguments.completion_tokens,
    }
    if arguments.model:
        overrides["model.model_name"] = arguments.model
    overrides |= dict(text.split("=", 1) for text in arguments.set)
    return configs.with_overrides(configs.get_preset(arguments.preset), overrides)


def check_saved(meter: Meter, config: configs.RunConfig, model: object, tokenizer: object,
                folders: tuple[Path, Path | None]) -> None:
    """Reload what was saved and compare its logits with those of the model in memory."""
    model.eval()
    before = logits_on(model, tokenizer, CHECK_PROMPTS)
    adapter_dir, merged_dir = folders
    with meter.part("reload"):
        again, _ = load_model(config.model, adapter_dir=adapter_dir, trainable=False)
        again.eval()
    meter.note("reload_check", compare_logits(before, logits_on(again, tokenizer, CHECK_PROMPTS)))
    del again
    torch.cuda.empty_cache()
    if merged_dir is None:
        return
    with meter.part("reload_merged"):
        settings = configs.with_overrides(config, {
            "model.model_name": str(merged_dir), "model.load_in_4bit": False,
            "model.offload_embedding": False,
        })
        merged, _ = load_model(settings.model, trainable=False)
        merged.eval()
    meter.note("merged_check", compare_logits(before, logits_on(merged, tokenizer, CHECK_PROMPTS)))


def main() -> None:
    """Run the parts in order."""
    arguments = parse_arguments()
    if arguments.memory_gib:
        cap_memory(arguments.memory_gib)
    config = make_config(arguments)
    meter = Meter(arguments.output, {
        "device": device_name(), "preset": arguments.preset,
        "memory_cap_gib": arguments.memory_gib, "versions": pipeline.package_versions(),
        "command": " ".join(sys.argv), "settings": json.loads(config.to_json()),
    })
    run = pipeline.prepare_run(config)
    with meter.part("load"):
        model, tokenizer = pipeline.load_run_model(run)
    meter.note("trainable", count_trainable(model)[0])
    if arguments.eval_tasks:
        with meter.part("evaluate"):
            pipeline.evaluate_stage(run, model, tokenizer, "base")
    with meter.part("sft"):
        pipeline.train_sft(run, model, tokenizer)
    with meter.part("grpo"):
        adapter_dir = pipeline.train_grpo(run, model, tokenizer)
    if arguments.merge:
        with meter.part("merge"):
            merged_dir = pipeline.save_merged(run, model, tokenizer)
        check_saved(meter, config, model, tokenizer, (adapter_dir, merged_dir))
    meter.note("done", True)


if __name__ == "__main__":
    main()
