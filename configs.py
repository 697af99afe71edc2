"""Frozen settings of every stage, the hardware presets, and `--set` overrides.

Each stage is a frozen dataclass whose `__post_init__` names the field that is wrong. Importing this
module imports neither torch nor TRL; `describe_device` asks for the GPU only when it is called.
"""

import argparse
import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import versions
from common.files import real_path
from common.threads import quiet_idle_threads
from common.user_error import UserError, brief

dataset_path = "dataset.jsonl"
"""Training tasks, 800 of them; "3.5k.jsonl" is the extended set. Path relative to the root."""

TINY_MODEL_PATH = "models/tiny-gpt-oss"
TINY_AGENT_MODEL_PATH = "models/tiny-gpt-oss-agent"
SCHEDULES = ("cosine", "linear", "constant_with_warmup", "constant")
PRESET_NAMES = ("auto", "cpu", "t4", "24gb", "80gb", "small-dense")
ANOTHER_MODEL = "small-dense"
"""The preset that "auto" takes for a model that is no GPT-OSS."""
MODES = ("plan", "agent")


class ConfigError(UserError, ValueError):
    """A setting is unknown, of the wrong type or out of its range."""


class _Settings:
    """The checks of a stage's fields; a class's own name says which stage it is."""

    def _check(self, name: str, is_right: bool, rule: str) -> None:
        if not is_right:
            stage = type(self).__name__.removesuffix("Stage").removesuffix("Config").lower()
            raise ConfigError(f"{stage}.{name} is {getattr(self, name)!r}; it must be {rule}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            self._check(name, getattr(self, name) > 0, "above 0")

    def _check_not_negative(self, *names: str) -> None:
        for name in names:
            self._check(name, getattr(self, name) >= 0, "0 or more")

    def _check_choice(self, name: str, choices: tuple) -> None:
        self._check(name, getattr(self, name) in choices, "one of " + ", ".join(map(repr, choices)))

    def check_finite(self) -> None:
        """Refuse NaN and infinity."""
        for name, value in vars(self).items():
            if isinstance(value, float):
                self._check(name, math.isfinite(value), "a finite number")


class _TrainingStage(_Settings):
    """What SFT and GRPO check alike."""

    def _check_training(self, *positive: str) -> None:
        self._check_positive(
            "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
            "learning_rate", "logging_steps", "save_steps", "max_grad_norm", *positive,
        )
        rule = "2 or more, so that one is whole while another is written"
        self._check("save_total_limit", self.save_total_limit >= 2, rule)
        self._check("max_steps", self.max_steps >= -1, "-1 or more")
        self._check_not_negative("warmup_steps")
        self._check_choice("lr_scheduler_type", SCHEDULES)


@dataclass(frozen=True)
class ModelStage(_Settings):
    """Which model is trained and how its LoRA adapter reaches it."""

    model_name: str = "unsloth/gpt-oss-20b"
    """Hub name or folder of any causal model; Unsloth maps this one to its pre-quantized twin."""
    max_seq_length: int = 2048
    """Tokens of prompt plus completion; the full prompt needs about 1,536 of them."""
    load_in_4bit: bool = True
    """NF4 weights: 20 B parameters in about 12 GiB. Ignored without CUDA."""
    dtype: str = "auto"
    """Compute type: "auto", "float32", "float16" or "bfloat16"; auto is float32 without CUDA."""
    device: str = "auto"
    """"auto", "cpu" or "cuda"; auto takes the GPU when there is one."""
    lora_rank: int = 16
    """Rank of the LoRA update; higher is more capacity and more memory."""
    lora_alpha: int = 32
    """LoRA scale numerator; the update is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout on the LoRA input, 0 to 1; 0 is what Unsloth's fused kernels take."""
    lora_reach: str = "attention+experts"
    """"attention" (8 M trainable at rank 16 on 20 B) or "attention+experts" (185 M); a model
    without experts has its MLP in their place."""
    offload_embedding: bool = True
    """Keep the embedding in CPU memory; saves about 1 GB of GPU memory."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass; saves memory, costs about a third in time."""
    experts_implementation: str = "auto"
    """"auto" or "eager"; eager is the fast one on a CPU (0.56 s against 0.79 s a step)."""
    num_threads: int = 0
    """CPU threads of torch, 0 leaves torch's choice. Fixed so that two runs agree bitwise."""
    sampling: str = "plain"
    """"plain" (transformers' generate), "fast" (gptoss/engine.py; of other models gptoss/folded.py),
    "fast-resident", which also keeps 16-bit copies of 4-bit experts (38 GiB more on 20 B, faster
    from 64 rows), or "vllm" (gptoss/vllm_engine.py), which falls back to "fast" where vLLM does not
    start."""
    sampling_rows: int = 128
    """Completions decoded at once; more are done in turns."""
    vllm_model: str = ""
    """What vLLM samples from, a hub name or folder in MXFP4 or 16 bit; empty is the model itself, and
    openai/gpt-oss-20b for a 4-bit checkpoint of it."""
    vllm_kv_gib: float = 10.0
    """GiB of vLLM's key-value cache: 128 sequences of 1,500 tokens; its weights take 13 GiB more."""

    def __post_init__(self) -> None:
        self._check_positive("max_seq_length", "lora_rank", "lora_alpha", "sampling_rows", "vllm_kv_gib")
        self._check_choice("sampling", ("plain", "fast", "fast-resident", "vllm"))
        self._check_choice("dtype", ("auto", "float32", "float16", "bfloat16"))
        self._check_choice("device", ("auto", "cpu", "cuda"))
        self._check_choice("lora_reach", ("attention", "attention+experts"))
        self._check_choice("experts_implementation", ("auto", "eager"))
        self._check("lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1)")
        self._check_not_negative("num_threads")
        self._check("model_name", bool(self.model_name), "a name or folder")

    def without_vllm(self) -> "ModelStage":
        """Return the settings for a few answers, which take less time than vLLM's start."""
        return replace(self, sampling="fast") if self.sampling == "vllm" else self


@dataclass(frozen=True)
class DataStage(_Settings):
    """Which tasks are trained and evaluated on, and how they are shown to the model."""

    dataset_path: str = dataset_path
    """JSONL file whose training users are trained on."""
    grpo_dataset_path: str = ""
    """JSONL file whose training users' tasks GRPO trains on; empty takes those that SFT trains on."""
    eval_dataset_path: str = "3.5k.jsonl"
    """JSONL file whose test users are evaluated on; may be the same file."""
    train_fraction: float = 0.7
    """Share of users whose tasks are trained on."""
    validation_fraction: float = 0.1
    """Share of users watched during training; the rest of the users is the test split."""
    split_seed: int = 0
    """Seed of the hash that sends a user to a split; the same in every file."""
    prompt_style: str = "full"
    """"full" (policy and tool signatures) or "brief" (one line, for the tiny model)."""
    skip_invalid_tasks: bool = False
    """Train on the valid rows of a faulty file instead of refusing it."""
    data_dir: str = ""
    """Folder of users.json, orders.json, products.json; empty is the store in envs/retail."""

    def __post_init__(self) -> None:
        self._check_choice("prompt_style", ("full", "brief"))
        for name in ("train_fraction", "validation_fraction"):
            self._check(name, 0 < getattr(self, name) < 1, "between 0 and 1")
        rule = "small enough that train_fraction + validation_fraction stay below 1"
        self._check("validation_fraction", self.train_fraction + self.validation_fraction < 1, rule)
        for name in ("dataset_path", "eval_dataset_path"):
            self._check(name, bool(getattr(self, name)), "a file path")

    @property
    def fractions(self) -> tuple[float, float, float]:
        """Shares of users in the train, validation and test split; they sum to 1."""
        test = round(1 - self.train_fraction - self.validation_fraction, 9)
        return (self.train_fraction, self.validation_fraction, test)


@dataclass(frozen=True)
class SftStage(_TrainingStage):
    """Supervised warm-up on gold tool calls."""

    num_train_epochs: float = 1.0
    """Passes over the training tasks; one is enough to learn the format."""
    max_steps: int = -1
    """Optimizer steps; -1 leaves it to num_train_epochs, 0 skips the stage."""
    per_device_train_batch_size: int = 2
    """Rows per forward pass and device."""
    gradient_accumulation_steps: int = 8
    """Forward passes per optimizer step; 2 x 8 is an effective batch of 16."""
    learning_rate: float = 2e-4
    """Peak of the schedule; the usual one for LoRA."""
    warmup_steps: int = 10
    """Optimizer steps from 0 to the peak."""
    lr_scheduler_type: str = "cosine"
    """Shape after the warm-up: "cosine", "linear" or "constant_with_warmup"."""
    weight_decay: float = 0.0
    """Decay of AdamW; none, as the adapter starts at zero."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    logging_steps: int = 5
    """Optimizer steps between two rows of metrics."""
    save_steps: int = 50
    """Optimizer steps between two checkpoints: what a crash can cost at most."""
    save_total_limit: int = 2
    """Checkpoints kept; two, so that one is whole while the next is written."""

    def __post_init__(self) -> None:
        self._check_training()


@dataclass(frozen=True)
class GrpoStage(_TrainingStage):
    """Group relative policy optimization with rewards that run the tools."""

    num_train_epochs: float = 3.0
    """Passes over the training tasks."""
    max_steps: int = -1
    """Optimizer steps; -1 leaves it to num_train_epochs, 0 skips the stage."""
    per_device_train_batch_size: int = 2
    """Completions per forward pass and device."""
    gradient_accumulation_steps: int = 8
    """Forward passes per optimizer step; 2 x 8 is an effective batch of 16 completions."""
    num_generations: int = 8
    """Completions per task (the group G) whose rewards are compared."""
    generation_batch_size: int = 0
    """Completions sampled by one generate call on each device; 0 is those of one step."""
    learning_rate: float = 5e-6
    """Peak of the schedule; forty times below SFT, as the gradient is noisy."""
    warmup_steps: int = 0
    """Optimizer steps from 0 to the peak."""
    lr_scheduler_type: str = "linear"
    """Shape after the warm-up: "cosine", "linear" or "constant_with_warmup"."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    max_completion_length: int = 512
    """Tokens a completion may have; longer ones are cut and fail to parse."""
    temperature: float = 0.7
    """Sampling temperature of the rollouts."""
    beta: float = 0.01
    """Weight of the KL to the reference policy, the adapter as SFT left it; 0 drops it."""
    loss_type: str = "dapo"
    """"dapo", "dr_grpo", "bnpo" or "grpo": how token losses are averaged."""
    scale_rewards: str = "group"
    """Divide advantages by the std of the "group", the "batch", or not at all ("none")."""
    tool_reward_weight: float = 1.0
    """Weight of `tool_reward`, the shaped reward over the calls."""
    outcome_reward_weight: float = 1.0
    """Weight of `outcome_reward`, 1.0 when the store ends as gold leaves it."""
    resample_rounds: int = 0
    """Dynamic sampling: times a zero-variance group is replaced by another task's; 0 trains as drawn."""
    max_gold_probability: float = 1.0
    """Plan mode: leave out tasks that the policy answers with gold more surely; 1 keeps all."""
    shared_prefix: bool = False
    """Read a group's prompt once when log-probabilities are computed."""
    group_by_length: bool = True
    """Lay out the tasks of a step by the length of their prompts: less is padded and decoded, but steps
    differ in difficulty. False mixes them. Without effect when `curriculum` is set."""
    curriculum: bool = False
    """Show tasks in order of the difficulty tag in the first epoch instead of shuffled."""
    eval_steps: int = 0
    """Optimizer steps between two validation evaluations; 0 makes none."""
    num_eval_tasks: int = 64
    """Tasks of one validation evaluation."""
    early_stopping_patience: int = 0
    """Validation evaluations without a better db match before stopping; 0 runs to the end."""
    max_kl: float = 0.0
    """KL guard: training stops above this KL to the reference; 0 is no guard."""
    logging_steps: int = 1
    """Optimizer steps between two rows of metrics."""
    save_steps: int = 20
    """Optimizer steps between two checkpoints; rounded up to whole generation batches."""
    save_total_limit: int = 2
    """Checkpoints kept; two, so that one is whole while the next is written."""

    def __post_init__(self) -> None:
        self._check_training("temperature", "max_completion_length", "num_eval_tasks")
        self._check("num_generations", self.num_generations >= 2, "2 or more, rewards are compared")
        self._check_not_negative(
            "beta", "tool_reward_weight", "outcome_reward_weight", "resample_rounds", "eval_steps",
            "early_stopping_patience", "max_kl", "generation_batch_size",
        )
        self._check("max_gold_probability", 0 < self.max_gold_probability <= 1, "in (0, 1]")
        self._check_choice("loss_type", ("dapo", "dr_grpo", "bnpo", "grpo"))
        self._check_choice("scale_rewards", ("group", "batch", "none"))
        total = self.tool_reward_weight + self.outcome_reward_weight
        self._check("tool_reward_weight", total > 0, "above 0 when outcome_reward_weight is 0")
        step, size = self.completions_per_step, self.generation_batch_size
        rule = f"a multiple of the {step} completions of one optimizer step"
        self._check("generation_batch_size", size % step == 0, rule)
        rule = f"a divisor of the {size or step} completions of one generate call"
        self._check("num_generations", (size or step) % self.num_generations == 0, rule)
        if self.early_stopping_patience:
            self._check("eval_steps", self.eval_steps > 0, "above 0 when early_stopping_patience is set")
        if self.max_kl:
            self._check("beta", self.beta > 0, "above 0 when max_kl is set")

    @property
    def completions_per_step(self) -> int:
        """Completions of one optimizer step on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def steps_per_generation(self) -> int:
        """Optimizer steps taken on the completions of one generate call (one device)."""
        return max(1, self.generation_batch_size // self.completions_per_step)


@dataclass(frozen=True)
class EvaluationStage(_Settings):
    """Greedy decoding of held-out tasks, the same ones at every stage."""

    num_tasks: int = 512
    """Held-out tasks at most; 0 takes all of them."""
    batch_size: int = 64
    """Prompts per generate call."""
    max_new_tokens: int = 512
    """Tokens a completion may have."""
    greedy: bool = True
    """Most likely token each time; False samples at `temperature`."""
    temperature: float = 0.7
    """Sampling temperature when `greedy` is False."""
    num_bootstrap: int = 1000
    """Resamples behind the 95 % intervals."""

    def __post_init__(self) -> None:
        self._check_positive("batch_size", "max_new_tokens", "num_bootstrap", "temperature")
        self._check_not_negative("num_tasks")


@dataclass(frozen=True)
class AgentStage(_Settings):
    """Conversations with a scripted customer; used when the run's `mode` is "agent"."""

    trajectories_path: str = ""
    """Conversations for SFT, from `task_generator.py trajectories`; empty has the oracle play the
    training tasks."""
    customers_per_task: int = 1
    """Conversations that the oracle plays for each training task, each with another customer."""
    max_turns: int = 20
    """Messages of the agent in one conversation; one more ends it."""
    max_turn_tokens: int = 256
    """Tokens of one message of the agent; longer ones are cut and end the conversation."""
    num_trials: int = 1
    """Evaluation episodes of each held-out task, each with another customer."""

    def __post_init__(self) -> None:
        self._check_positive("customers_per_task", "max_turns", "max_turn_tokens", "num_trials")


@dataclass(frozen=True)
class RunConfig(_Settings):
    """Everything one run needs, saved with it as config.json."""

    model: ModelStage = field(default_factory=ModelStage)
    data: DataStage = field(default_factory=DataStage)
    sft: SftStage = field(default_factory=SftStage)
    grpo: GrpoStage = field(default_factory=GrpoStage)
    evaluation: EvaluationStage = field(default_factory=EvaluationStage)
    agent: AgentStage = field(default_factory=AgentStage)
    mode: str = "plan"
    """"plan" (one answer of tool calls) or "agent" (a conversation with tools and a customer)."""
    output_dir: str = "outputs/tau_bench_rl"
    """Folder of the run; created when missing."""
    seed: int = 3407
    """Seed of adapters, data order and sampling."""
    preset: str = "24gb"
    """Name of the preset these settings started from."""
    show_progress: bool = True
    """Progress bars; off in notebooks, where each tick would be saved."""
    merge_model: bool = True
    """Write merged_model/ (adapter folded into the weights) at the end."""

    def __post_init__(self) -> None:
        self._check("output_dir", bool(self.output_dir), "a folder path")
        # NumPy takes 32 bits; processes and trials add their numbers to it.
        self._check("seed", 0 <= self.seed < 2**31, "from 0 to 2147483647")
        for stage in stages_of(self).values():
            stage.check_finite()
        self._check_choice("mode", MODES)
        limit = self.model.max_seq_length
        for stage, name in ((self.agent, "max_turn_tokens"), (self.grpo, "max_completion_length")):
            rule = f"below model.max_seq_length ({limit})"
            stage._check(name, getattr(stage, name) < limit, rule)

    def to_json(self) -> str:
        """Return the settings as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def describe_changes(config: RunConfig) -> str:
    """Return what differs from the fields' defaults, one line a stage."""
    lines = []
    owners = {"run": (config, RunConfig())}
    owners |= {name: (part, type(part)()) for name, part in stages_of(config).items()}
    for name, (part, default) in owners.items():
        changed = [
            f"{field.name}={getattr(part, field.name)!r}" for field in dataclasses.fields(part)
            if getattr(part, field.name) != getattr(default, field.name)
            and not dataclasses.is_dataclass(getattr(part, field.name))
        ]
        lines.append(f"{name}: {', '.join(changed) or 'as by default'}")
    return "\n".join(lines)


def stages_of(config: RunConfig) -> dict[str, _Settings]:
    """Return the stages of the settings by their field's name."""
    return {name: part for name, part in vars(config).items() if dataclasses.is_dataclass(part)}


def from_dict(settings: dict) -> RunConfig:
    """Return the settings that `RunConfig.to_json` wrote.

    Raises:
        ConfigError: A value is out of its range, or the fields are not those of this version.
    """
    stages = {f.name: f.default_factory for f in dataclasses.fields(RunConfig)
              if f.default_factory is not dataclasses.MISSING}
    try:
        settings = {"agent": {}} | settings  # runs from before agent mode was trained
        parts = {name: stage(**settings[name]) for name, stage in stages.items()}
        return RunConfig(**(settings | parts))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"settings of another version of this project: {error}") from error


def read_settings(path: Path) -> RunConfig | None:
    """Return the settings in a run folder's config.json; None without the file, or where it records no run.

    Raises:
        ConfigError: The file is damaged, or its fields are not those of this version.
    """
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(facts, dict) or "settings" not in facts:
        return None
    try:
        return from_dict(facts["settings"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; use that version, or begin another run") from error


def is_gpt_oss(model_name: str) -> bool:
    """Say whether a model is a GPT-OSS: a folder by its config.json, a hub name by its words."""
    try:
        settings = json.loads((Path(model_name) / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return True  # a damaged file is reported when the model is loaded
    except OSError:
        return "gpt-oss" in model_name.lower()
    return not isinstance(settings, dict) or settings.get("model_type", "gpt_oss") == "gpt_oss"


def pick_preset(model_name: str | None = None) -> tuple[str, str]:
    """Choose a preset by the model, and for GPT-OSS by what the first GPU can do and by its memory.

    Returns:
        The preset's name and one sentence that says why.
    """
    if model_name and not is_gpt_oss(model_name):
        return ANOTHER_MODEL, f"{model_name} is no GPT-OSS, and a small model fits anywhere"
    quiet_idle_threads()
    import torch

    if not torch.cuda.is_available():
        unused = versions.why_gpu_is_unused()
        why = f"{unused}; until then" if unused else "no CUDA GPU is visible, so"
        return "cpu", f"{why} the small model that ships here is trained"
    properties = torch.cuda.get_device_properties(0)
    gib = properties.total_memory / 2**30
    count = torch.cuda.device_count()
    found = f"{properties.name} has {gib:.1f} GiB"
    if count > 1:
        found = f"the first of {count} GPUs, {found} (docs/MULTI_GPU.md tells how to use them all)"
    if properties.major < 7:
        capability = f"{properties.major}.{properties.minor}"
        return "cpu", f"{found}, but compute capability {capability} is too old for Triton (7.0)"
    if gib < 14:
        return "cpu", f"{found}, too little for 20 B parameters in 4-bit (about 14 GiB)"
    if gib < 21:
        return "t4", f"{found}: short completions and an attention-only adapter fit"
    if properties.major < 8:
        return "t4", f"{found} but no bfloat16, which fast sampling and the larger presets need"
    if gib < 70:
        return "24gb", f"{found}: the 20B model in 4-bit with an adapter on the experts fits"
    return "80gb", f"{found}: room for large generate calls, which set the pace of GRPO"


def describe_device(model_name: str | None = None) -> str:
    """Say in one line what hardware there is and which preset "auto" takes for a model."""
    name, reason = pick_preset(model_name)
    return f"preset auto is {name} here: {reason}"


_CPU = RunConfig(
    model=ModelStage(
        model_name=TINY_MODEL_PATH, max_seq_length=1024, load_in_4bit=False, dtype="float32",
        device="cpu", offload_embedding=False,
        gradient_checkpointing=False, experts_implementation="eager", num_threads=2,
        sampling="fast",
    ),
    # GRPO on tasks that SFT has not seen: on SFT's own it gained nothing (docs/TRAINING_METHODOLOGY.md).
    data=DataStage(
        dataset_path="3.5k.jsonl", grpo_dataset_path="dataset.jsonl", prompt_style="brief",
    ),
    sft=SftStage(
        num_train_epochs=2.0, per_device_train_batch_size=8, gradient_accumulation_steps=1,
        learning_rate=2e-3, warmup_steps=10, logging_steps=20, save_steps=50,
    ),
    grpo=GrpoStage(
        max_steps=24, per_device_train_batch_size=16, gradient_accumulation_steps=4,
        learning_rate=2e-4, warmup_steps=2, beta=0.0, max_completion_length=300, temperature=1.0,
        num_generations=8, eval_steps=12, num_eval_tasks=200, early_stopping_patience=3,
        save_steps=10, max_gold_probability=0.95, shared_prefix=True,
    ),
    evaluation=EvaluationStage(num_tasks=512, batch_size=128, max_new_tokens=300),
    preset="cpu",
)

# beta is 0 on GPUs: Unsloth takes the base model as the reference, not the adapter as SFT left it,
# so the KL term would pull SFT's gain back; it also took half of a step (docs/GPU.md).
_VALIDATION = {"eval_steps": 48, "num_eval_tasks": 128, "early_stopping_patience": 6}
_PRESETS = {
    "cpu": _CPU,
    "t4": RunConfig(
        model=ModelStage(lora_reach="attention", dtype="float16"),
        sft=SftStage(per_device_train_batch_size=1, gradient_accumulation_steps=16),
        # Reading 16 prompts in one generate call overflowed 14 GiB by a few hundred MiB.
        grpo=GrpoStage(
            per_device_train_batch_size=1, gradient_accumulation_steps=8,
            max_completion_length=384, save_steps=10, beta=0.0,
        ),
        evaluation=EvaluationStage(num_tasks=128, batch_size=8, max_new_tokens=384),
        preset="t4",
    ),
    "24gb": RunConfig(
        model=ModelStage(sampling="fast", sampling_rows=64),
        # Under a cap of 22 GiB this peaks at 20.1 GiB in SFT and 20.0 in GRPO (docs/GPU.md).
        grpo=GrpoStage(
            generation_batch_size=64, save_steps=12, beta=0.0, resample_rounds=1, shared_prefix=True,
            **_VALIDATION,
        ),
        evaluation=EvaluationStage(num_tasks=256, batch_size=64),
        preset="24gb",
    ),
    "80gb": RunConfig(
        model=ModelStage(
            offload_embedding=False, gradient_checkpointing=True, sampling="vllm",
        ),
        sft=SftStage(per_device_train_batch_size=8, gradient_accumulation_steps=2),
        grpo=GrpoStage(
            per_device_train_batch_size=16, gradient_accumulation_steps=1, generation_batch_size=128,
            beta=0.0, resample_rounds=1, shared_prefix=True, **_VALIDATION,
        ),
        evaluation=EvaluationStage(num_tasks=0, batch_size=128),
        preset="80gb",
    ),
    # For models of 0.1 to 2 B parameters on a GPU of 24 GB, and on a CPU with patience. They learn
    # the tools from the prompt and from many tasks. Gradient checkpointing keeps a row at 0.1 GB.
    # GRPO: the logits are the largest tensor, about 16 bytes a word of the vocabulary and token of a
    # completion, so 5 GB for 32 completions of 200 tokens over SmolLM2's 49,152 words (a guess from
    # the tensors that are kept; not measured). 80 GB should take 128 rows a pass: set
    # per_device_train_batch_size=128 and gradient_accumulation_steps=1. One generate call a step
    # (generation_batch_size 0) saves a pass over all completions that TRL makes otherwise.
    "small-dense": RunConfig(
        model=ModelStage(
            model_name="HuggingFaceTB/SmolLM2-135M-Instruct", max_seq_length=3072,
            load_in_4bit=False, lora_rank=32, lora_alpha=64, offload_embedding=False, sampling="fast",
        ),
        data=DataStage(dataset_path="3.5k.jsonl"),
        sft=SftStage(
            num_train_epochs=3, per_device_train_batch_size=4, gradient_accumulation_steps=4,
            learning_rate=1e-3, warmup_steps=20,
        ),
        grpo=GrpoStage(
            per_device_train_batch_size=32, gradient_accumulation_steps=4, learning_rate=5e-5,
            warmup_steps=4, beta=0.0, temperature=1.0, max_completion_length=384, save_steps=8,
            resample_rounds=1, eval_steps=20, num_eval_tasks=128, early_stopping_patience=6,
            shared_prefix=True, group_by_length=False,
        ),
        evaluation=EvaluationStage(num_tasks=512, batch_size=128, max_new_tokens=384),
        preset="small-dense",
    ),
}


_AGENT_GPU = {
    # The prompt takes 1,141 tokens, a conversation of the oracle 2,400 more in the mean.
    "model.max_seq_length": 8192, "sft.per_device_train_batch_size": 1,
    "sft.gradient_accumulation_steps": 16, "grpo.per_device_train_batch_size": 1,
    "grpo.gradient_accumulation_steps": 16, "grpo.generation_batch_size": 0,
    "grpo.shared_prefix": False, "grpo.group_by_length": False, "evaluation.batch_size": 32,
    "agent.max_turn_tokens": 512,
}
_AGENT_CPU = {
    # Of the oracle's 2,495 conversations for training 1,118 fit into 1,024 tokens, 1,963 into these.
    "model.model_name": TINY_AGENT_MODEL_PATH, "model.max_seq_length": 2048,
    "sft.per_device_train_batch_size": 4, "sft.gradient_accumulation_steps": 2, "sft.max_steps": 500,
    "agent.max_turn_tokens": 200, "grpo.max_completion_length": 200, "grpo.shared_prefix": False,
    "grpo.group_by_length": False,
    "grpo.max_steps": 10, "grpo.eval_steps": 5, "grpo.per_device_train_batch_size": 4,
    "grpo.gradient_accumulation_steps": 4, "grpo.num_eval_tasks": 32, "grpo.resample_rounds": 1,
    "evaluation.num_tasks": 128,
}
"""What agent mode changes of the preset cpu; `_AGENT_GPU` of all others."""


def get_preset(name: str, mode: str = "plan", model_name: str | None = None) -> RunConfig:
    """Return the settings of a preset; `RunConfig.preset` is the name after "auto" was resolved.

    >>> get_preset("cpu").preset
    'cpu'

    Args:
        name: One of `PRESET_NAMES`; "auto" picks by the model and the memory of the GPU.
        mode: "plan" or "agent".
        model_name: The model that "auto" picks for; None is the preset's own.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in PRESET_NAMES:
        raise ConfigError(f"unknown preset {name!r}; choose one of " + ", ".join(PRESET_NAMES))
    name = pick_preset(model_name)[0] if name == "auto" else name
    if mode == "plan":
        return _PRESETS[name]
    return with_overrides(_PRESETS[name], {"mode": mode} | (_AGENT_CPU if name == "cpu" else _AGENT_GPU))


def config_of_model(model: str) -> RunConfig:
    """Return the settings that a saved model, an adapter or a model of the hub is evaluated with.

    Those of the run that the folder lies in; else the small model's when it is the one that ships here,
    else those of the preset "auto".
    """
    recorded = read_settings(Path(model).parent / "config.json")
    if recorded:
        return recorded
    root = Path(__file__).resolve().parent
    for path, mode in ((TINY_MODEL_PATH, "plan"), (TINY_AGENT_MODEL_PATH, "agent")):
        if real_path(model) == real_path(root / path):
            return get_preset("cpu", mode)
    try:
        adapter = json.loads((Path(model) / "adapter_config.json").read_text(encoding="utf-8"))
        base = adapter.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None  # no adapter, or a damaged one, which is reported when it is loaded
    config = get_preset("auto", model_name=base or model)
    return replace(config, model=replace(config.model, model_name=base or model))


def _convert(path: str, text: object, wanted: type) -> object:
    """Turn the text of an override into the field's type."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path}={brief(str(text))}: is no text in UTF-8; choose another") from None
    if isinstance(text, wanted) and not (isinstance(text, bool) and wanted is not bool):
        return text
    words = str(text)
    try:
        if wanted is bool:
            return {"true": True, "1": True, "false": False, "0": False}[words.lower()]
        if wanted is int:
            return int(words)
        if wanted is float:
            return float(words)
    except (KeyError, ValueError):
        raise ConfigError(f"{path}={brief(words)}: expected {wanted.__name__}") from None
    return words


def add_run_arguments(parser: argparse.ArgumentParser, output_dir: str) -> None:
    """Add the options that `config_from_arguments` reads, but `--mode`.

    `output_dir` is the folder that is written without `--output-dir`, for the help.
    """
    parser.add_argument(
        "--preset", default="auto", metavar="P",
        help="auto (default, by the model and the GPU's memory), " + ", ".join(PRESET_NAMES[1:]),
    )
    parser.add_argument("--dataset", metavar="F", help="JSONL tasks to train and to evaluate on")
    parser.add_argument("--output-dir", metavar="D", help=f"folder to write ({output_dir})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", dest="overrides",
        help="change one setting of configs.py; may be repeated",
    )


def config_from_arguments(arguments: argparse.Namespace) -> RunConfig:
    """Return the settings that `--preset`, `--mode`, `--dataset`, `--output-dir` and `--set` ask for.

    Raises:
        ConfigError: The preset or a field is unknown, or a value does not fit.
    """
    for option, given in (("--dataset", arguments.dataset), ("--output-dir", arguments.output_dir)):
        if given is not None and not given.strip():
            raise ConfigError(f"{option}: is empty; name a path, or leave the option out")
    overrides: dict[str, object] = {"output_dir": arguments.output_dir}
    for name in ("data.dataset_path", "data.eval_dataset_path"):
        overrides[name] = arguments.dataset
    if arguments.dataset is not None:
        overrides["data.grpo_dataset_path"] = ""
    for text in arguments.overrides:
        path, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--set {text}: write STAGE.FIELD=VALUE")
        overrides[path] = value
    preset = get_preset(arguments.preset, arguments.mode, overrides.get("model.model_name"))
    return with_overrides(preset, overrides)


def with_overrides(config: RunConfig, overrides: dict[str, object]) -> RunConfig:
    """Return a copy of the settings with some fields changed; every check runs once all are in place.

    Args:
        overrides: Dotted field name to value, e.g. {"grpo.learning_rate": "1e-5"}; text is
            converted to the field's type, None keeps the field as it is.

    Raises:
        ConfigError: A field is unknown, a value has the wrong type or is out of range.
    """
    changes: dict[str, dict[str, object]] = {}
    stages = stages_of(config)
    for path, value in overrides.items():
        if value is None:
            continue
        stage_name, _, name = path.rpartition(".")
        if stage_name and stage_name not in stages:
            raise ConfigError(f"unknown stage in {path!r}; choose one of " + ", ".join(stages))
        owner = stages[stage_name] if stage_name else config
        hints = typing.get_type_hints(type(owner))
        known = [n for n in hints if stage_name or n not in (*stages, "preset")]
        if name not in known:
            raise ConfigError(f"unknown field {path!r}; choose one of " + ", ".join(known))
        changes.setdefault(stage_name, {})[name] = _convert(path, value, hints[name])
    top = changes.pop("", {})
    parts = {name: replace(stages[name], **fields) for name, fields in changes.items()}
    return replace(config, **parts, **top)
