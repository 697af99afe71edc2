"""Keep GPU memory within bounds: rows of Unsloth's passes, and the setting to try when it ran out.

Nothing lowers a setting by itself: a run whose batch changed in secret would be another run.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator

import torch

from configs import PRESET_NAMES, GrpoStage, ModelStage, RunConfig, SftStage, with_overrides

SHORTEST_COMPLETION = 256
"""Tokens below which gold completions would be cut (95 % of them have at most 180)."""
FEWEST_ROWS = 8
"""Completions decoded at once below which the weights are most of the memory."""
NOT_COMPARED = {"output_dir", "show_progress", "merge_model", "preset"}
"""Settings that say nothing about the steps of a run."""
FREE_ON_RESUME = (
    "model.sampling", "model.sampling_rows", "model.gradient_checkpointing",
    "model.offload_embedding", "model.vllm_model", "model.vllm_kv_gib", "evaluation.batch_size",
)
"""Settings that change how much memory is taken, and neither the steps nor the weights."""
LARGER_GPU = "a GPU with more memory"
SMALLER_PRESET = dict(zip(PRESET_NAMES[2:], PRESET_NAMES[1:]))


@contextlib.contextmanager
def report_peak(doing: str) -> Iterator[None]:
    """Print the peak of GPU memory of what is done inside, such as "SFT"; nothing without a GPU."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    yield
    used, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    print(f"{doing}: peak of GPU memory {used / 2**30:.1f} GiB, {held / 2**30:.1f} reserved")


def free_memory() -> None:
    """Give back what dropped models held; their parts refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def next_smaller(config: RunConfig, doing: str) -> dict[str, object]:
    """Return the next setting that takes less GPU memory in "SFT", "GRPO" or "evaluation".

    Returns:
        Overrides for `configs.with_overrides`, valid as they are, the one that costs the least first;
        empty when only a smaller preset or a larger GPU is left.
    """
    model = config.model
    if model.sampling == "vllm":
        return {"model.sampling": "fast"}
    if doing == "SFT":
        return _smaller_batch("sft", config.sft) or _smaller_model(model)
    if model.sampling == "fast-resident":
        return {"model.sampling": "fast"}
    if doing == "evaluation":
        if config.evaluation.batch_size > 1:
            return {"evaluation.batch_size": config.evaluation.batch_size // 2}
        return _smaller_model(model)
    return (
        _smaller_generate_call(config.grpo)
        or _fewer_rows(model)
        or _smaller_batch("grpo", config.grpo)
        or _smaller_model(model)
        or _shorter_completions(config.grpo)
    )


def smaller_setting(config: RunConfig, doing: str) -> str:
    """Say what to try after running out of memory, see `next_smaller`, as options of the command line.

    Such as "--set grpo.generation_batch_size=32 --resume", without "--resume" where it makes another
    run; at the end of the ladder the next smaller preset by name.
    """
    changes = next_smaller(config, doing)
    if changes:
        smaller = with_overrides(config, changes)
        goes_on = all(keeps_the_steps(name, config, smaller) for name in changes)
        return _options(changes) + (" --resume" if goes_on else "")
    preset = SMALLER_PRESET.get(config.preset)
    if preset == "cpu":
        return f"{LARGER_GPU}, or --preset cpu (the small model that ships here)"
    return f"--preset {preset}, or {LARGER_GPU}" if preset else LARGER_GPU


def changed_fields(before: RunConfig, after: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the settings that shape a run and differ, as dotted name to (before, after)."""
    old, new = _flatten(before), _flatten(after)
    return {name: (old[name], new[name]) for name in sorted(old) if old[name] != new[name]}


def _flatten(config: RunConfig) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{field}": inner for field, inner in value.items()}
        elif name not in NOT_COMPARED:
            flat[name] = value
    return flat


def keeps_the_steps(name: str, before: RunConfig, after: RunConfig) -> bool:
    """Tell whether a run can resume with another value of a setting, its steps unchanged."""
    if name == "grpo.generation_batch_size":
        # Checkpoints lie between two generate calls: smaller ones must end there too.
        return before.grpo.steps_per_generation % after.grpo.steps_per_generation == 0
    stage, _, field = name.partition(".")
    if field in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        rows = [
            part.per_device_train_batch_size * part.gradient_accumulation_steps
            for part in (getattr(before, stage), getattr(after, stage))
        ]
        return rows[0] == rows[1]
    return name in FREE_ON_RESUME


def smaller_loading(model: ModelStage, with_sampling: bool) -> str:
    """Say what to try when the model alone does not fit, or fast sampling not beside it."""
    slower = {"vllm": "fast", "fast-resident": "fast", "fast": "plain"}.get(model.sampling)
    if with_sampling and slower:
        return _options({"model.sampling": slower})
    changes = _smaller_model(model)
    return _options(changes) if changes else f"a smaller preset, or {LARGER_GPU}"


def _options(changes: dict[str, object]) -> str:
    texts = {name: str(v).lower() if isinstance(v, bool) else v for name, v in changes.items()}
    return " ".join(f"--set {name}={text}" for name, text in texts.items())


def _smaller_generate_call(stage: GrpoStage) -> dict[str, object]:
    """At most half as many completions a call: whole steps and groups, and a part of the old call.

    Because of the last, a run can resume with it: its checkpoints lie where a call ends.
    """
    step, whole = stage.completions_per_step, stage.generation_batch_size
    for size in range(whole // 2 // step * step, 0, -step):
        if size % stage.num_generations == 0 and whole % size == 0:
            return {"grpo.generation_batch_size": size}
    return {}


def _fewer_rows(model: ModelStage) -> dict[str, object]:
    if model.sampling == "plain" or model.sampling_rows <= FEWEST_ROWS:
        return {}
    return {"model.sampling_rows": max(FEWEST_ROWS, model.sampling_rows // 2)}


def _smaller_batch(name: str, stage: SftStage | GrpoStage) -> dict[str, object]:
    """Half as many rows a pass and twice the passes: the same optimizer step in less memory."""
    rows = stage.per_device_train_batch_size
    if rows == 1:
        return {}
    # An odd number of rows has no half; one at a time is as many rows a step.
    factor = 2 if rows % 2 == 0 else rows
    return {
        f"{name}.per_device_train_batch_size": rows // factor,
        f"{name}.gradient_accumulation_steps": stage.gradient_accumulation_steps * factor,
    }


def _smaller_model(model: ModelStage) -> dict[str, object]:
    for name, value in (
        ("load_in_4bit", True), ("gradient_checkpointing", True), ("offload_embedding", True),
        ("lora_reach", "attention"),
    ):
        if getattr(model, name) != value:
            return {f"model.{name}": value}
    return {}


def _shorter_completions(stage: GrpoStage) -> dict[str, object]:
    longest = stage.max_completion_length
    if longest <= SHORTEST_COMPLETION:
        return {}
    return {"grpo.max_completion_length": max(SHORTEST_COMPLETION, longest // 2)}
