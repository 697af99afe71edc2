"""GRPO on a GPU: transformers' generate with 16 completions a call, against fast sampling.

    python benchmarks/gpu_rollouts.py --model MODEL --output benchmarks/results/gpu_rollouts.json

Both run in one process on the same model and tasks, through the same trainer. With random weights
no completion ends before `--completion-tokens`, so the length of completions is equal and fixed, and
no answer earns anything: a made-up spread is added to the executed reward so that there are
advantages, and gradients, to update by. Each part's figures are written as soon as they are known,
and `--parts` measures some of them anew in a file that holds the others. `seconds_per_step` is one optimizer step on 16 completions,
its share of sampling and scoring included: medians over the passes, and the last round of sampling,
so compilation is left out.
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import training  # noqa: E402, F401  (Unsloth, before anything that it patches)
import torch  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402

import configs  # noqa: E402
from benchmarks.gpu_pipeline import GIB, Meter, device_name  # noqa: E402
from data_reader import Task  # noqa: E402
from training import pipeline  # noqa: E402
from training.decoder import Decoder  # noqa: E402
from training.evaluation import plan_prompt  # noqa: E402
from training.grpo import REFERENCE_ADAPTER, build_grpo_trainer  # noqa: E402
from training.rewards import (  # noqa: E402
    CompletionScorer, RewardFunction, make_reward_functions,
)
from training.rollouts import FastGenerate, detach_fast_generate  # noqa: E402

FULL_RUN_COMPLETIONS = 800 * 3 * 8
"""800 tasks, 3 epochs, 8 completions a task."""
PARTS = ("generate", "ours", "logprobs", "baseline")
TOLERANCE_FACTOR = 1.5
"""The update and the sampler may be this many times as far from float32 in the mean as the model's
own plain forward is: in bfloat16 nearly tied experts are chosen by rounding."""


class TimedGenerate:
    """A `generate` that records seconds and tokens of each call."""

    def __init__(self, generate: Any) -> None:
        """Wrap a `generate`."""
        self._generate = generate
        self.calls: list[dict[str, float]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Generate, timed to the end of the GPU's work."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        output = self._generate(*args, **kwargs)
        torch.cuda.synchronize()
        rows, width = output.shape
        tokens = rows * (width - kwargs["input_ids"].shape[1])
        self.calls.append({
            "rows": rows, "tokens": tokens, "seconds": round(time.perf_counter() - begin, 2)
        })
        return output


def time_generate(
    generate: Any, tokenizer: Any, tasks: list[Task], num_generations: int, num_tokens: int
) -> dict[str, Any]:
    """Time one call on groups of equal prompts, as GRPO makes them; a short call warms up first.

    Args:
        generate: What to call.
        tokenizer: Makes the prompts.
        tasks: One group each.
        num_generations: Completions per task.
        num_tokens: Tokens per completion.

    Returns:
        Rows, tokens, seconds, tokens_per_s and the peak of memory.
    """
    rows = [
        tokenizer(plan_prompt(task, "full"), add_special_tokens=False)["input_ids"]
        for task in tasks for _ in range(num_generations)
    ]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device="cuda")
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device="cuda")
    timed = TimedGenerate(generate)
    torch.cuda.reset_peak_memory_stats()
    for count in (2, num_tokens):
        timed(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count,
            do_sample=True, temperature=0.7, pad_token_id=pad,
        )
    figures = timed.calls[-1]
    return {
        **figures, "tokens_per_s": round(figures["tokens"] / figures["seconds"], 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
    }


def measure_grpo(
    run: pipeline.Run, model: Any, tokenizer: Any, config: configs.RunConfig, generate: Any
) -> dict[str, Any]:
    """Run a few GRPO steps and take the medians of their parts.

    Args:
        run: Tasks and store.
        model: Model with LoRA.
        tokenizer: Its tokenizer.
        config: The settings; its steps reach into a second round of sampling.
        generate: What the trainer shall call.

    Returns:
        tokens_per_s, seconds_per_step, peak_gib, and the figures behind them.
    """
    timed = TimedGenerate(generate)
    model.generate = timed
    torch.cuda.reset_peak_memory_stats()
    trainer = build_grpo_trainer(
        model, tokenizer, run.train, run.db, config, run.validation, make_spread_rewards
    )
    updates, preparations = [], []
    prepare = trainer._generate_and_score_completions
    step = trainer.training_step

    def timed_prepare(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = prepare(*args, **kwargs)
        torch.cuda.synchronize()
        preparations.append(time.perf_counter() - begin)
        return result

    def timed_step(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.synchronize()
        begin, rounds = time.perf_counter(), len(preparations)
        result = step(*args, **kwargs)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin - sum(preparations[rounds:])
        updates.append(seconds)
        print(f"pass {len(updates)}: {seconds:.2f} s", flush=True)
        return result

    trainer._generate_and_score_completions = timed_prepare
    trainer.training_step = timed_step
    trainer.train()
    drop_reference(model)
    stage = config.grpo
    update = statistics.median(updates) * stage.gradient_accumulation_steps
    sampling = timed.calls[-1]
    scoring = preparations[-1] - sampling["seconds"]
    share = stage.steps_per_generation
    norms = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    return {
        "tokens_per_s": round(sampling["tokens"] / sampling["seconds"], 1),
        "seconds_per_step": round(update + preparations[-1] / share, 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "completions_per_call": sampling["rows"],
        "update_seconds_per_step": round(update, 2),
        "sampling_seconds_per_step": round(sampling["seconds"] / share, 2),
        "logprob_and_reward_seconds_per_step": round(scoring / share, 2),
        "completion_tokens": stage.max_completion_length,
        "per_device_train_batch_size": stage.per_device_train_batch_size,
        "generate_calls": timed.calls,
        "update_passes_s": [round(seconds, 2) for seconds in updates],
        "grad_norms": [round(float(norm), 4) for norm in norms],
    }


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


def differences(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> dict[str, float]:
    """Return the largest, the 99th percentile and the mean absolute difference of two lists."""
    gap = (torch.cat(ours) - torch.cat(theirs)).abs().float()
    return {
        "max": round(gap.max().item(), 4), "p99": round(gap.quantile(0.99).item(), 4),
        "mean": round(gap.mean().item(), 5),
    }


class _Sampled(Exception):
    """The first batch of completions is there."""


def sample_batch(
    run: pipeline.Run, model: Any, tokenizer: Any, config: configs.RunConfig
) -> tuple[Any, dict[str, Any]]:
    """Let a trainer sample once, without an update.

    Args:
        run: Tasks and store.
        model: Model with LoRA.
        tokenizer: Its tokenizer.
        config: The settings.

    Returns:
        The trainer, and what it made of its first generate call.
    """
    trainer = build_grpo_trainer(
        model, tokenizer, run.train, run.db, config, run.validation, make_spread_rewards
    )
    prepare = trainer._generate_and_score_completions
    batch: dict[str, Any] = {}

    def prepare_once(*args: Any, **kwargs: Any) -> None:
        batch.update(prepare(*args, **kwargs))
        raise _Sampled

    trainer._generate_and_score_completions = prepare_once
    with contextlib.suppress(_Sampled):
        trainer.train()
    drop_reference(model)
    return trainer, batch


@torch.no_grad()
def compare_logprobs(
    model: Any, fast: FastGenerate, trainer: Any, batch: dict[str, Any], rows: int = 4
) -> dict[str, Any]:
    """Compare log-probabilities of sampled tokens: update, sampler, plain forward, and float32.

    Args:
        model: The model.
        fast: Fast sampling over it.
        trainer: The trainer, whose own function gives what the update uses.
        batch: What the trainer made of one generate call.
        rows: Completions to compare.

    Returns:
        Differences, all at the sampling temperature and over the completions' tokens:
        `update_to_plain`, `sampler_to_plain`, `sampler_to_update`; `plain_to_plain_padded`, the
        plain forward once a row and once two rows at a time; and `update_to_exact`,
        `sampler_to_exact`, `plain_to_exact`, where exact is the same weights in float32.
    """
    prompts = [ids[mask.bool()] for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"])]
    completions = [
        ids[mask.bool()] for ids, mask in zip(batch["completion_ids"], batch["completion_mask"])
    ]
    prompts, completions = prompts[:rows], completions[:rows]
    sequences = [torch.cat(pair) for pair in zip(prompts, completions, strict=True)]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)[:rows]
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)[:rows]
    width = batch["completion_ids"].shape[1]
    found = trainer._get_per_token_logps_and_entropies(model, ids, mask, width, batch_size=rows)[0]
    # Unsloth moves each row's padding behind it and keeps as many columns more as the longest has.
    slack = found.shape[1] - width
    padding = (mask[:, : -width] == 0).sum(1).tolist()
    begins = [slack - count if slack else 0 for count in padding]
    update = [
        row[begin : begin + len(c)]
        for row, begin, c in zip(found, begins, completions, strict=True)
    ]

    def chosen(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        scaled = (logits.float() / trainer.temperature).log_softmax(-1)
        return scaled.gather(1, tokens[:, None])[:, 0]

    was_training = model.training
    model.eval()
    # Unsloth's forward leaves the logits out unless it is told otherwise.
    os.environ["UNSLOTH_RETURN_LOGITS"], os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1", "0"
    autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda)
    with autocast, torch.compiler.set_stance("force_eager"):
        plain = [
            chosen(model(input_ids=s[None]).logits[0, -len(c) - 1 : -1], c)
            for s, c in zip(sequences, completions, strict=True)
        ]
        half = rows // 2
        padded = [
            chosen(logits[len(p) - 1 :][: len(c)], c)
            for begin in (0, half)
            for logits, p, c in zip(
                model(input_ids=pad_sequence(sequences[begin : begin + half], True)).logits,
                prompts[begin : begin + half], completions[begin : begin + half],
            )
        ]
    os.environ["UNSLOTH_RETURN_LOGITS"] = "0"
    model.train(was_training)
    sampler = forced_logprobs(fast.decoder, prompts, completions, trainer.temperature)
    torch.set_float32_matmul_precision("highest")
    exact_decoder = Decoder(model, dtype=torch.float32)
    exact = forced_logprobs(exact_decoder, prompts, completions, trainer.temperature)
    return {
        "tokens": sum(map(len, completions)),
        "update_to_plain": differences(update, plain),
        "sampler_to_plain": differences(sampler, plain),
        "sampler_to_update": differences(sampler, update),
        "plain_to_plain_padded": differences(plain, padded),
        "update_to_exact": differences(update, exact),
        "sampler_to_exact": differences(sampler, exact),
        "plain_to_exact": differences(plain, exact),
    }


def within_tolerance(logprobs: dict[str, Any]) -> bool:
    """Say whether update and sampler are as close to float32 as the plain forward is."""
    limit = TOLERANCE_FACTOR * logprobs["plain_to_exact"]["mean"]
    return all(logprobs[f"{name}_to_exact"]["mean"] <= limit for name in ("update", "sampler"))


def forced_logprobs(
    decoder: Decoder, prompts: list[torch.Tensor], completions: list[torch.Tensor],
    temperature: float,
) -> list[torch.Tensor]:
    """Return the log-probabilities by which a decoder would have sampled given completions.

    Args:
        decoder: What computes the logits, a token at a time.
        prompts: Token ids, one tensor per row.
        completions: Token ids, one tensor per row.
        temperature: Sampling temperature.

    Returns:
        One float32 tensor per row, as long as its completion.
    """
    decoder.refresh()
    rows = torch.arange(len(prompts), device=decoder.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=decoder.device)
    targets = pad_sequence(completions, True)
    longest = int(lengths.max()) + targets.shape[1]
    cache = decoder.new_cache(len(prompts), -(-longest // 64) * 64)
    logits = decoder.prefill(pad_sequence(prompts, True), lengths, cache, rows, rows)
    columns = []
    for position, tokens in enumerate(targets.T):
        scaled = (logits / temperature).log_softmax(-1)
        columns.append(scaled.gather(1, tokens[:, None])[:, 0])
        logits = decoder.step(tokens, lengths + position, cache)
    decoder.free_scratch()
    found = torch.stack(columns, dim=1)
    return [row[: len(c)] for row, c in zip(found, completions, strict=True)]


def main() -> None:
    """Measure fast sampling and the baseline, and compare log-probabilities."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or hub name (the preset's)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="80gb", choices=("24gb", "80gb"))
    parser.add_argument("--completion-tokens", type=int, default=192)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure (all of it)")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    arguments = parser.parse_args()
    overrides: dict[str, object] = {
        "show_progress": False, "output_dir": "outputs/gpu_rollouts",
        "grpo.max_completion_length": arguments.completion_tokens,
        # Looks at held-out tasks are generate calls too, and not part of a step.
        "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
    }
    if arguments.model:
        overrides["model.model_name"] = arguments.model
    overrides |= dict(text.split("=", 1) for text in arguments.set)
    config = configs.with_overrides(configs.get_preset(arguments.preset), overrides)
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"error: --parts {','.join(unknown)}: choose among {','.join(PARTS)}")
    facts = {
        "device": device_name(), "preset": arguments.preset,
        "versions": pipeline.package_versions(), "command": " ".join(sys.argv),
    }
    if arguments.output.exists():
        facts = json.loads(arguments.output.read_text(encoding="utf-8")) | facts
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
    fast = model.generate
    detach_fast_generate(model)
    plain = model.generate
    model.eval()
    stage = config.grpo
    if "generate" in parts:
        meter.note("fast_generate", time_generate(
            fast, tokenizer, run.train[:16], 8, arguments.completion_tokens
        ))
        resident = FastGenerate(model, resident=True)
        meter.note("fast_resident_generate", time_generate(
            resident, tokenizer, run.train[:16], 8, arguments.completion_tokens
        ))
        del resident
        gc.collect()  # its parts refer to each other
        torch.cuda.empty_cache()
        meter.note("plain_generate", time_generate(
            plain, tokenizer, run.train[:2], 8, arguments.completion_tokens
        ))
    if "ours" in parts:
        # One step more than one round of sampling: the second round meets compiled code.
        ours = configs.with_overrides(config, {"grpo.max_steps": stage.steps_per_generation + 1})
        figures = measure_grpo(run, model, tokenizer, ours, fast)
        meter.note("ours", figures)
        hours = FULL_RUN_COMPLETIONS / stage.completions_per_step / 3600
        meter.note("full_grpo_hours", round(figures["seconds_per_step"] * hours, 2))
    if "logprobs" in parts:
        model.generate = fast
        trainer, batch = sample_batch(run, model, tokenizer, config)
        logprobs = compare_logprobs(model, fast, trainer, batch)
        meter.note("logprob_max_abs_diff", logprobs["update_to_plain"]["max"])
        meter.note("logprobs", logprobs)
        meter.note("logprobs_within_tolerance", within_tolerance(logprobs))
    if "baseline" in parts:
        seeds = configs.with_overrides(config, {
            "grpo.max_steps": 2, "grpo.per_device_train_batch_size": 2,
            "grpo.gradient_accumulation_steps": 8, "grpo.generation_batch_size": 0,
        })
        figures = measure_grpo(run, model, tokenizer, seeds, plain)
        meter.note("baseline", figures)
        hours = FULL_RUN_COMPLETIONS / seeds.grpo.completions_per_step / 3600
        meter.note("baseline_full_grpo_hours", round(figures["seconds_per_step"] * hours, 2))
    print(json.dumps(meter.figures, indent=2))


if __name__ == "__main__":
    main()
