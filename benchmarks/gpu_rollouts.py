"""GRPO on a GPU: transformers' generate with 16 completions a call, against the preset's engine.

    python benchmarks/gpu_rollouts.py --model MODEL --output benchmarks/results/gpu_rollouts.json

Both run in one process on the same model and tasks, through the same trainer. With random weights
no completion ends before `--completion-tokens`, so the length of completions is equal and fixed, and
no answer earns anything: a made-up spread is added to the executed reward so that there are
advantages, and gradients, to update by. `seconds_per_step` is one optimizer step on 16 completions,
its share of sampling and scoring included: medians over the passes, and the last round of sampling,
so compilation is left out. The part "update" times the trainer alone, on made-up completions, with a
group's prompt read once and with each completion. Each part's figures are written as soon as they are
known; `--parts` measures some of them, and keeps what the file holds of the others.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import configs  # noqa: E402
import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
from benchmarks.gpu_pipeline import GIB, Meter, device_name  # noqa: E402
from benchmarks.logprobs import compare_logprobs, sample_batch, within_tolerance  # noqa: E402
from common.files import read_json  # noqa: E402
from data_reader import Task, plan_prompt  # noqa: E402
from gptoss.engine import FastGenerate, detach_fast_generate  # noqa: E402
from gptoss.generation import Completion, Engine, ModelEngine, engine_of  # noqa: E402
from training import pipeline  # noqa: E402
from training.grpo import REFERENCE_ADAPTER, build_grpo_trainer  # noqa: E402
from training.rewards import (  # noqa: E402
    CompletionScorer,
    RewardFunction,
    make_reward_functions,
)

FULL_RUN_COMPLETIONS = 800 * 3 * 8
"""800 tasks, 3 epochs, 8 completions a task."""
PARTS = ("generate", "ours", "logprobs", "baseline", "update")


class MadeUpEngine:
    """Makes up completions in no time, so that what takes time is the trainer."""

    differs = False
    mean_entropy = None

    def complete(
        self, prompts: list[list[int]], max_new_tokens: int, *_: Any
    ) -> list[Completion]:
        """Return completions of `max_new_tokens` tokens that a seed draws."""
        draws = torch.Generator().manual_seed(len(prompts))
        rows = torch.randint(1000, 100_000, (len(prompts), max_new_tokens), generator=draws)
        return [Completion(row, [-1.0] * max_new_tokens) for row in rows.tolist()]


class TimedEngine:
    """An engine that records seconds and tokens of each call, the adapter's refresh included."""

    def __init__(self, engine: Engine) -> None:
        """Wrap an engine."""
        self._engine = engine
        self.differs = engine.differs
        self.calls: list[dict[str, float]] = []

    @property
    def mean_entropy(self) -> float | None:
        """The engine's."""
        return self._engine.mean_entropy

    def complete(self, prompts: Any, *settings: Any) -> list[Completion]:
        """Sample, timed to the end of the GPU's work."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        found = self._engine.complete(prompts, *settings)
        torch.cuda.synchronize()
        self.calls.append({
            "rows": len(found), "tokens": sum(len(one.ids) for one in found),
            "seconds": round(time.perf_counter() - begin, 2),
        })
        return found


def time_sampling(
    engine: Engine, tokenizer: Any, tasks: list[Task], num_generations: int, num_tokens: int
) -> dict[str, Any]:
    """Time a call on groups of equal prompts, as GRPO makes them; two calls warm up first.

    Args:
        engine: What to call.
        tokenizer: Makes the prompts.
        tasks: One group each.
        num_generations: Completions per task.
        num_tokens: Tokens per completion.

    Returns:
        Rows, tokens, seconds, tokens_per_s, the peak of torch's memory and what the device held.
    """
    rows = [
        tokenizer(plan_prompt(task, "full"), add_special_tokens=False)["input_ids"]
        for task in tasks for _ in range(num_generations)
    ]
    timed = TimedEngine(engine)
    torch.cuda.reset_peak_memory_stats()
    for count in (2, num_tokens, num_tokens):
        timed.complete(rows, count, 0.7)
    figures = timed.calls[-1]
    return {
        **figures, "tokens_per_s": round(figures["tokens"] / figures["seconds"], 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2), "device_gib": device_gib(),
    }


def device_gib() -> float:
    """Return the GiB that are taken on the device."""
    free, total = torch.cuda.mem_get_info()
    return round((total - free) / GIB, 2)


def measure_grpo(
    run: pipeline.Run, model: Any, tokenizer: Any, config: configs.RunConfig, engine: Engine
) -> dict[str, Any]:
    """Run a few GRPO steps and take the medians of their parts.

    Args:
        run: Tasks and store.
        model: Model with LoRA.
        tokenizer: Its tokenizer.
        config: The settings; its steps reach into a second round of sampling.
        engine: What shall sample.

    Returns:
        tokens_per_s, seconds_per_step, peak_gib, and the figures behind them.
    """
    timed = model.engine = TimedEngine(engine)
    torch.cuda.reset_peak_memory_stats()
    trainer = build_grpo_trainer(
        model, tokenizer, run.train, run.db, config, run.validation, make_spread_rewards
    )
    updates, preparations, ends = [], [], []
    prepare = trainer._generate_and_score_completions
    step = trainer.training_step
    stage = config.grpo

    def timed_prepare(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = prepare(*args, **kwargs)
        torch.cuda.synchronize()
        preparations.append(time.perf_counter() - begin)
        print(f"sampled, scored: {preparations[-1]:.2f} s {timed.calls[-1]}", flush=True)
        return result

    def timed_step(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.synchronize()
        begin, rounds = time.perf_counter(), len(preparations)
        result = step(*args, **kwargs)
        torch.cuda.synchronize()
        ends.append(time.perf_counter())
        seconds = ends[-1] - begin - sum(preparations[rounds:])
        updates.append(seconds)
        print(f"pass {len(updates)}: {seconds:.2f} s", flush=True)
        return result

    trainer._generate_and_score_completions = timed_prepare
    trainer.training_step = timed_step
    begin = time.perf_counter()
    trainer.train()
    drop_reference(model)
    update = statistics.median(updates) * stage.gradient_accumulation_steps
    sampling = timed.calls[-1]
    scoring = preparations[-1] - sampling["seconds"]
    share = stage.steps_per_generation
    logged = trainer.state.log_history
    return {
        "tokens_per_s": round(sampling["tokens"] / max(sampling["seconds"], 0.01), 1),
        "seconds_per_step": round(update + preparations[-1] / share, 2),
        "first_step_seconds": round(ends[stage.gradient_accumulation_steps - 1] - begin, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "device_gib": device_gib(),
        "completions_per_call": sampling["rows"],
        "update_seconds_per_step": round(update, 2),
        "sampling_seconds_per_step": round(sampling["seconds"] / share, 2),
        "logprob_and_reward_seconds_per_step": round(scoring / share, 2),
        "completion_tokens": stage.max_completion_length,
        "per_device_train_batch_size": stage.per_device_train_batch_size,
        "generate_calls": timed.calls,
        "update_passes_s": [round(seconds, 2) for seconds in updates],
        "grad_norms": column(logged, "grad_norm"),
        "sampler_kl": column(logged, "sampling/kl"),
        "sampler_logprob_difference": column(logged, "sampling/sampling_logp_difference/mean"),
    }


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    """Return one figure of every logged row that has it."""
    return [round(float(row[name]), 4) for row in rows if name in row]


def drop_reference(model: Any) -> None:
    """Delete the adapter that a trainer kept as reference: the next one makes its own."""
    if REFERENCE_ADAPTER in model.peft_config:
        model.delete_adapter(REFERENCE_ADAPTER)


def make_spread_rewards(scorer: CompletionScorer) -> list[RewardFunction]:
    """Return the executed rewards, the first one with a spread by token ids added."""
    executed, outcome_reward = make_reward_functions(scorer)

    def tool_reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        rewards = executed(completion_ids=completion_ids, **kwargs)
        return [r + ids[0] % 7 / 7 for r, ids in zip(rewards, completion_ids, strict=True)]

    return [tool_reward, outcome_reward]


def main() -> None:
    """Measure fast sampling and the baseline, and compare log-probabilities."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or hub name (the preset's)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="80gb", choices=("24gb", "80gb"))
    parser.add_argument("--completion-tokens", type=int, default=192)
    parser.add_argument("--parts", help=f"some of {','.join(PARTS)} (all but update)")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    arguments = parser.parse_args()
    overrides: dict[str, object] = {
        "show_progress": False, "output_dir": "outputs/gpu_rollouts",
        "grpo.max_completion_length": arguments.completion_tokens,
        # Looks at held-out tasks are generate calls too, and not part of a step.
        "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
        # The made-up spread is not seen by resampling, which would replace every group.
        "grpo.resample_rounds": 0,
    }
    if arguments.model:
        overrides["model.model_name"] = arguments.model
    overrides |= dict(text.split("=", 1) for text in arguments.set)
    config = configs.with_overrides(configs.get_preset(arguments.preset), overrides)
    parts = arguments.parts.split(",") if arguments.parts else PARTS[:-1]
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"error: --parts {','.join(unknown)}: choose among {','.join(PARTS)}")
    facts = {
        "device": device_name(), "preset": arguments.preset,
        "versions": pipeline.package_versions(), "command": " ".join(sys.argv),
    }
    if arguments.parts:
        facts = read_json(arguments.output, {}) | facts
    meter = Meter(arguments.output, facts)
    run = pipeline.prepare_run(config)
    with meter.part("load"):
        model, tokenizer = pipeline.load_run_model(run)
    torch.manual_seed(0)
    with torch.no_grad():
        # An adapter as after some training: B starts at zero, which would hide its cost.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.005)
    fast, engine = model.generate, engine_of(model)
    meter.note("engine", type(engine).__name__)
    model.eval()
    stage = config.grpo

    def time_it(name: str, timed: Engine, num_tasks: int) -> None:
        tasks = run.train[:num_tasks]
        meter.note(name, time_sampling(timed, tokenizer, tasks, 8, arguments.completion_tokens))

    if "generate" in parts:
        if engine.differs:
            time_it("vllm_generate", engine, 16)
        time_it("fast_generate", ModelEngine(model), 16)
        model.generate = FastGenerate(model, resident=True)
        time_it("fast_resident_generate", ModelEngine(model), 16)
        model.generate = fast
        gc.collect()  # its parts refer to each other
        torch.cuda.empty_cache()
        detach_fast_generate(model)
        time_it("plain_generate", ModelEngine(model), 2)
        model.generate = fast
    if "ours" in parts:
        # One step more than two rounds of sampling: in the second one vLLM still compiles a kernel.
        ours = configs.with_overrides(config, {"grpo.max_steps": 2 * stage.steps_per_generation + 1})
        figures = measure_grpo(run, model, tokenizer, ours, engine)
        meter.note("ours", figures)
        meter.note("first_step_seconds", figures["first_step_seconds"])
        hours = FULL_RUN_COMPLETIONS / stage.completions_per_step / 3600
        meter.note("full_grpo_hours", round(figures["seconds_per_step"] * hours, 2))
    if "update" in parts:
        for name, shared in (("update_shared_prefix", True), ("update_padded", False)):
            alone = configs.with_overrides(config, {
                "grpo.shared_prefix": shared, "grpo.generation_batch_size": 32, "grpo.max_steps": 3,
            })
            meter.note(name, measure_grpo(run, model, tokenizer, alone, MadeUpEngine()))
    model.engine = None
    if "logprobs" in parts:
        trainer = build_grpo_trainer(
            model, tokenizer, run.train, run.db, config, run.validation, make_spread_rewards
        )
        logprobs = compare_logprobs(model, fast, trainer, sample_batch(trainer))
        drop_reference(model)
        meter.note("logprob_max_abs_diff", logprobs["update_to_plain"]["max"])
        meter.note("logprobs", logprobs)
        meter.note("logprobs_within_tolerance", within_tolerance(logprobs))
    if "baseline" in parts:
        detach_fast_generate(model)
        seeds = configs.with_overrides(config, {
            "grpo.max_steps": 2, "grpo.per_device_train_batch_size": 2,
            "grpo.gradient_accumulation_steps": 8, "grpo.generation_batch_size": 0,
            "grpo.shared_prefix": False,
        })
        figures = measure_grpo(run, model, tokenizer, seeds, ModelEngine(model))
        meter.note("baseline", figures)
        hours = FULL_RUN_COMPLETIONS / seeds.grpo.completions_per_step / 3600
        meter.note("baseline_full_grpo_hours", round(figures["seconds_per_step"] * hours, 2))
    print(json.dumps(meter.figures, indent=2))


if __name__ == "__main__":
    main()
