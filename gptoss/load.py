"""Load GPT-OSS, or any causal model, with a LoRA adapter; save and merge it; compare what was saved.

With a CUDA GPU and Unsloth installed the base weights are 4-bit and Unsloth trains them; anywhere
else plain transformers and PEFT do the same in 16 or 32 bit. `training/__init__.py` has imported
Unsloth before this module, so the imports below are already patched where they need to be.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from accelerate import PartialState
from common import versions
from configs import ModelStage, is_gpt_oss
from gptoss.cpu_attention import register_cpu_attention
from gptoss.engine import FastGenerate, attach_fast_generate
from gptoss.folded import FoldedGenerate, HeldPromptGenerate
from gptoss.memory import smaller_loading
from gptoss.merge import write_merged
from gptoss.model_types import Model, Tokenizer
from gptoss.nf4 import holds_fused_experts, pack_checkpoint
from gptoss.preflight import (
    ADAPTER_KEYS,
    ModelError,
    check_adapter,
    check_checkpoint,
    check_disk_space,
    check_hub,
    check_layers,
    count_parameters,
    holds_mxfp4_experts,
    hub_error,
    list_tensor_names,
    read_json_file,
)
from gptoss.vllm_engine import start_vllm
from prompting.chat_template import TemplateError
from prompting.harmony import STOP_TOKENS
from prompting.plan_format import plan_format

ATTENTION_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERT_MODULES = ["gate_proj", "up_proj", "down_proj"]
EXPERT_PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
WRONG_FILES = (ValueError, KeyError, TypeError)
"""What transformers and Unsloth raise over a model folder whose JSON is valid but wrong."""
SMALLEST_GPU_GIB = 14.0
"""GiB of GPU memory below which the 20B model in 4-bit (12.6 GiB) leaves no room to train."""
LARGEST_CPU_PARAMETERS = 2_000_000_000
"""Parameters above which loading without a GPU is refused: hours a step, if it fits at all."""


def goes_to_gpu(stage: ModelStage) -> bool:
    """Say whether the model goes to a CUDA GPU: one is there, and the settings let it."""
    return stage.device != "cpu" and torch.cuda.is_available()


def uses_unsloth(stage: ModelStage) -> bool:
    """Say whether `load_model` goes through Unsloth: a CUDA GPU is there and it is installed."""
    import importlib.util

    return goes_to_gpu(stage) and importlib.util.find_spec("unsloth") is not None


def load_model(
    stage: ModelStage, adapter_dir: str | Path | None = None, trainable: bool = True
) -> tuple[Model, Tokenizer]:
    """Load the base model, put the LoRA adapter on it, and load its tokenizer.

    Args:
        stage: Which model, and how the adapter reaches it.
        adapter_dir: Folder of a saved adapter to continue from; None starts a fresh one.
        trainable: False without `adapter_dir` loads the bare base model.

    Returns:
        The model and its tokenizer (left padding, stop tokens set).

    Raises:
        ModelError: The folder is missing or damaged, the hub cannot be reached, the hardware is
            too small, a package for 4-bit weights or a chat template is missing, or the adapter does
            not fit the settings.
    """
    if stage.num_threads:
        torch.set_num_threads(stage.num_threads)
    _check_hardware(stage)
    _check_4bit_packages(stage)
    asked = stage
    folder = Path(stage.model_name)
    if folder.is_dir():
        check_checkpoint(folder)
        read_json_file(folder / "config.json", "model_type")
        read_json_file(folder / "tokenizer.json", "model")
        if is_gpt_oss(stage.model_name):
            check_layers(folder)
        if uses_unsloth(stage) and stage.load_in_4bit and holds_fused_experts(folder):
            # Unsloth would fill the experts of this layout with random values at 4-bit.
            with PartialState().local_main_process_first():
                stage = replace(stage, model_name=str(pack_checkpoint(folder)))
    elif _looks_local(stage.model_name):
        raise ModelError(f"{folder}: no such folder; correct the path, or give a hub name")
    else:
        check_hub(stage.model_name)
    if adapter_dir is not None:
        check_adapter(Path(adapter_dir), stage)
    load = _load_unsloth if uses_unsloth(stage) else _load_transformers
    with memory_guard("loading the model", smaller_loading(stage, with_sampling=False)):
        try:
            model, tokenizer = load(stage, trainable or adapter_dir is not None)
        except OSError as error:
            raise _load_error(stage, error) from error
    if adapter_dir is not None:
        load_adapter(model, adapter_dir)
    if not trainable:
        model.requires_grad_(False)
    gpt_oss = model.config.model_type == "gpt_oss"
    if gpt_oss != is_gpt_oss(stage.model_name):
        raise ModelError(
            f"{stage.model_name}: is a {model.config.model_type}, which its name does not show; download "
            "it, and set model.model_name to its folder"
        )
    _set_stop_tokens(stage.model_name, model, tokenizer)
    if not gpt_oss:
        _attach_generate(model, stage, with_lora=trainable or adapter_dir is not None)
    elif stage.sampling != "plain":
        resident = stage.sampling == "fast-resident"
        try:
            with memory_guard("fast sampling", smaller_loading(stage, with_sampling=True)):
                attach_fast_generate(model, stage.sampling_rows, resident)
                if stage.sampling == "vllm":
                    # Beside it fast sampling goes on to stream chats, and to stand in.
                    model.engine = start_vllm(model, asked)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{error}; use --set model.sampling=plain") from error
    trained, total = count_trainable(model)
    reach = stage.lora_reach if gpt_oss else stage.lora_reach.replace("experts", "MLP")
    reach = reach if trained else "nothing is trained"
    print(f"{stage.model_name}: {trained:,} of {total:,} parameters trainable ({reach})")
    return model, tokenizer


def _looks_local(name: str) -> bool:
    """Tell a path from a hub name, which is `owner/name` or one word."""
    return name.startswith((".", "/", "~", "models/", "outputs/")) or name.count("/") > 1


def load_for_evaluation(name_or_dir: str, stage: ModelStage) -> tuple[Model, Tokenizer]:
    """Load a base model, a merged model, or a saved adapter on its base, for generation only.

    Args:
        name_or_dir: Hub name, model folder, or folder of a saved adapter.
        stage: Settings for everything that the folder does not say itself.

    Returns:
        The model in eval mode and its tokenizer; a ModelError as `load_model` raises.
    """
    if stage.device == "cuda":
        # Where a model was trained says nothing of where it is evaluated.
        stage = replace(stage, device="auto")
    folder = Path(name_or_dir)
    if not (folder / "adapter_config.json").is_file():
        model, tokenizer = load_model(_with_model(stage, name_or_dir), trainable=False)
        return model.eval(), tokenizer
    config = read_json_file(folder / "adapter_config.json", *ADAPTER_KEYS)
    # PEFT and Unsloth write the targets in different ways; the names of the weights are reliable.
    check_checkpoint(folder, "adapter_model.safetensors", "adapter_config.json")
    names = list_tensor_names(folder, "adapter_model.safetensors")
    reach = "attention+experts" if any(".mlp." in name for name in names) else "attention"
    base = config["base_model_name_or_path"]
    if _looks_local(base) and not Path(base).is_dir():
        base = stage.model_name  # the adapter was trained on another machine
    stage = replace(
        _with_model(stage, base), lora_rank=config["r"], lora_alpha=config["lora_alpha"],
        lora_reach=reach,
    )
    model, tokenizer = load_model(stage, adapter_dir=name_or_dir, trainable=False)
    return model.eval(), tokenizer


def _with_model(stage: ModelStage, name: str) -> ModelStage:
    """Return the settings for a model; what vLLM was set to sample from goes with its own model."""
    same = name == stage.model_name
    return replace(stage, model_name=name, vllm_model=stage.vllm_model if same else "")


def count_trainable(model: torch.nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable and of all logical parameters (4-bit ones unpacked)."""
    trained = total = 0
    for parameter in model.parameters():
        # A packed 4-bit weight stores two parameters a byte.
        count = parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
        total += count
        trained += count if parameter.requires_grad else 0
    return trained, total


def memory_needed_gib(stage: ModelStage) -> float:
    """Return the GiB of GPU memory below which a model is not loaded, by its number of weights."""
    parameters = count_parameters(stage.model_name)
    if parameters < LARGEST_CPU_PARAMETERS:
        return 0.0
    if stage.load_in_4bit and is_gpt_oss(stage.model_name):
        return SMALLEST_GPU_GIB
    return parameters * (0.6 if stage.load_in_4bit else 2) / 2**30 + 4


def _why_no_gpu() -> str:
    """Say why the model does not go to a GPU, where it does not."""
    if torch.cuda.is_available():
        return "model.device is cpu"
    return versions.why_gpu_is_unused() or "none is visible"


def _check_hardware(stage: ModelStage) -> None:
    """Refuse a model that this machine cannot train."""
    if stage.device == "cuda" and not goes_to_gpu(stage):
        raise ModelError(f"model.device=cuda needs a CUDA GPU and {_why_no_gpu()}")
    parameters = count_parameters(stage.model_name)
    if parameters < LARGEST_CPU_PARAMETERS:
        return
    size = f"{stage.model_name} ({parameters / 1e9:.0f} B parameters)"
    if not goes_to_gpu(stage):
        raise ModelError(
            f"{size} needs a CUDA GPU and {_why_no_gpu()}; use the preset cpu (the small model that "
            "ships here), or a machine with a GPU of 16 GB or more"
        )
    memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    needed = memory_needed_gib(stage)
    if memory_gib < needed:
        remedy = "the preset cpu" if stage.load_in_4bit else "model.load_in_4bit=true"
        raise ModelError(
            f"{size} needs {needed:.0f} GiB of GPU memory, {torch.cuda.get_device_name(0)} has "
            f"{memory_gib:.1f}; use {remedy} or a larger GPU"
        )


def _check_4bit_packages(stage: ModelStage) -> None:
    """Refuse 4-bit weights where a package for them is missing: plain transformers has 16 bit."""
    if not stage.load_in_4bit or not goes_to_gpu(stage):
        return
    if missing := versions.find_missing(versions.GPU_ONLY, gpu=True):
        raise ModelError(f"model.load_in_4bit is true and {missing}")


def _dtype(stage: ModelStage) -> torch.dtype:
    if stage.dtype != "auto":
        return getattr(torch, stage.dtype)
    if not goes_to_gpu(stage):
        return torch.float32
    # Older GPUs emulate bfloat16, far slower than they compute in float16.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def _load_unsloth(stage: ModelStage, with_lora: bool) -> tuple[Model, Tokenizer]:
    from unsloth import FastLanguageModel

    with _load_errors(stage):
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=stage.model_name, max_seq_length=stage.max_seq_length,
            load_in_4bit=stage.load_in_4bit, dtype=_dtype(stage),
            offload_embedding=stage.offload_embedding, local_files_only=Path(stage.model_name).is_dir(),
        )
    if with_lora:
        experts = EXPERT_MODULES if stage.lora_reach == "attention+experts" else []
        model = FastLanguageModel.get_peft_model(
            model, r=stage.lora_rank, lora_alpha=stage.lora_alpha, lora_dropout=stage.lora_dropout,
            target_modules=ATTENTION_MODULES + experts,
            use_gradient_checkpointing="unsloth" if stage.gradient_checkpointing else False,
            random_state=3407,
        )
    else:
        FastLanguageModel.for_inference(model)
    return model, tokenizer


def _load_transformers(stage: ModelStage, with_lora: bool) -> tuple[Model, Tokenizer]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

    gpt_oss, kwargs = is_gpt_oss(stage.model_name), {}
    if gpt_oss:
        # Its attention sinks have no sdpa.
        kwargs["attn_implementation"] = "eager" if goes_to_gpu(stage) else register_cpu_attention()
        if stage.experts_implementation != "auto":
            kwargs["experts_implementation"] = stage.experts_implementation
    if holds_mxfp4_experts(Path(stage.model_name)):
        kwargs["quantization_config"] = Mxfp4Config(dequantize=True)
    with _load_errors(stage):
        tokenizer = AutoTokenizer.from_pretrained(stage.model_name)
        model, found = AutoModelForCausalLM.from_pretrained(
            stage.model_name, dtype=_dtype(stage), output_loading_info=True, **kwargs
        )
    if missing := sorted(found["missing_keys"]):
        # transformers would fill them with random values.
        raise ModelError(
            f"{stage.model_name}: lacks {len(missing)} tensors, such as {missing[0]}; copy the "
            "checkpoint again"
        )
    # The dtype once more: experts come out of MXFP4 in bfloat16, which holds them exactly.
    model = model.to("cuda" if goes_to_gpu(stage) else "cpu", _dtype(stage))
    if with_lora:
        experts = gpt_oss and stage.lora_reach == "attention+experts"
        if experts and stage.lora_dropout:
            raise ModelError(
                f"model.lora_dropout is {stage.lora_dropout}; PEFT takes only 0 with "
                "model.lora_reach=attention+experts"
            )
        config = LoraConfig(
            r=stage.lora_rank, lora_alpha=stage.lora_alpha, lora_dropout=stage.lora_dropout,
            target_modules=ATTENTION_MODULES if gpt_oss else list_linear_layers(model, stage),
            target_parameters=EXPERT_PARAMETERS if experts else None, task_type="CAUSAL_LM",
            exclude_modules=list_layers_beside_text(model),
        )
        model = get_peft_model(model, config)
        if stage.gradient_checkpointing:
            model.enable_input_require_grads()
    return model, tokenizer


def _attach_generate(model: Model, stage: ModelStage, with_lora: bool) -> None:
    """Let a model that is no GPT-OSS sample faster; under Unsloth it keeps Unsloth's way."""
    if stage.sampling not in ("plain", "fast"):
        print(f"model.sampling={stage.sampling} is for GPT-OSS; transformers' generate is used")
    if uses_unsloth(stage):
        return
    if stage.sampling == "fast":
        model.generate = HeldPromptGenerate(model)
    elif with_lora:
        model.generate = FoldedGenerate(model)


def list_linear_layers(model: Model, stage: ModelStage) -> list[str]:
    """Return the names of the linear layers that an adapter reaches in another model than GPT-OSS.

    Those of the attention, and without `lora_reach="attention"` those of the MLP, but not the head.
    """
    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
        and ("attn" in name or "attention" in name or stage.lora_reach != "attention")
    }
    if not names:
        raise ModelError(f"{stage.model_name}: has no linear layer for an adapter; use another model")
    return sorted(names)


def list_layers_beside_text(model: Model) -> list[str] | None:
    """Return the linear layers that text does not pass, such as a vision tower's; None without any."""
    if model.config.get_text_config() is model.config:
        return None
    text = set(model.get_decoder().modules())
    return [
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module not in text
    ]


@contextlib.contextmanager
def _load_errors(stage: ModelStage) -> Iterator[None]:
    """Turn what the loading call itself raises into one line, but for too little memory."""
    try:
        yield
    except (RuntimeError, *WRONG_FILES) as error:
        if lacks_memory(error):
            raise
        raise _load_error(stage, error) from error


def _load_error(stage: ModelStage, error: Exception) -> ModelError:
    """Turn a loader's error into one line with a remedy."""
    first_line = str(error).strip().split("\n")[0].rstrip(".")
    is_folder = Path(stage.model_name).is_dir()
    if is_folder or isinstance(error, WRONG_FILES):
        # Named by its type: the text of a KeyError is the key alone.
        remedy = (
            "check its JSON files or copy the checkpoint again" if is_folder
            else "compare the installed versions with requirements.txt"
        )
        return ModelError(
            f"{stage.model_name}: cannot be loaded: {type(error).__name__}: {first_line}; {remedy}"
        )
    return hub_error(stage.model_name, first_line)


def _set_stop_tokens(name: str, model: Model, tokenizer: Tokenizer) -> None:
    """Make generation end where a message ends, and pad on the left."""
    config, harmony = model.generation_config, model.config.model_type == "gpt_oss"
    if harmony:
        ids = tokenizer.convert_tokens_to_ids(list(STOP_TOKENS))
    else:
        try:
            end = plan_format(tokenizer).end_token
        except TemplateError as error:
            raise ModelError(f"{name}: {error}") from error
        known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ids = [tokenizer.convert_tokens_to_ids(end), *known, tokenizer.eos_token_id]
        ids = list(dict.fromkeys(i for i in ids if i is not None))
        # Some tokenizers name another token than the one that ends an answer; TRL goes by it.
        tokenizer.eos_token = end
        tokenizer.clean_up_tokenization_spaces = False  # it would change the answers' spaces
    if harmony and (None in ids or len(set(ids)) != len(STOP_TOKENS)):
        raise ModelError(
            f"the tokenizer lacks {' or '.join(STOP_TOKENS)}: it is not a GPT-OSS (harmony) model"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = "<|endoftext|>" if harmony else tokenizer.eos_token
    config.eos_token_id = ids
    config.pad_token_id = tokenizer.pad_token_id
    if not harmony:
        model.config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = tokenizer.pad_token_id
        model.config.bos_token_id = config.bos_token_id = tokenizer.bos_token_id
    # Sampling settings come from the stages; a checkpoint's own would override them silently.
    config.temperature = config.top_p = config.top_k = None
    config.max_length = None


def load_adapter(model: Model, adapter_dir: str | Path) -> None:
    """Put a saved adapter's weights into the model's own adapter, all of them or an error.

    Args:
        model: A model with a LoRA adapter; a reference policy's adapter beside it stays as it is.

    Raises:
        ModelError: A tensor is missing, unknown to the model, or of another shape.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(adapter_dir), device="cpu")
    try:
        result = set_peft_model_state_dict(model, weights)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"{adapter_dir}: adapter does not fit the model: {line}") from error
    # To PEFT every weight of the base model and of the other adapters is missing, too.
    missing = [key for key in result.missing_keys if "lora_" in key and ".default." in key]
    unused = list(result.unexpected_keys)
    if missing or unused:
        name = (missing or unused)[0]
        raise ModelError(
            f"{adapter_dir}: adapter does not fit: {len(missing)} tensors missing, {len(unused)} "
            f"unused (first: {name}); set model.lora_reach as it was trained"
        )


def save_adapter(model: Model, tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write the adapter and the tokenizer into a folder."""
    model.save_pretrained(str(folder), selected_adapters=["default"])
    tokenizer.save_pretrained(str(folder))
    return Path(folder)


def check_merge_space(model: Model, folder: Path, stage: ModelStage) -> None:
    """Refuse a merge that the disk has no room for, by a ModelError with the sizes."""
    bytes_each = merged_dtype(stage).itemsize
    check_disk_space(
        folder, count_trainable(model)[1] * bytes_each * 1.02, "the merged model",
        "choose another --output-dir, or use --set merge_model=false",
    )


def merged_dtype(stage: ModelStage) -> torch.dtype:
    """Return the type of a merged model's weights: bfloat16 from a GPU, float32 from a CPU."""
    return torch.bfloat16 if goes_to_gpu(stage) else torch.float32


def merge_and_save(model: Model, tokenizer: Tokenizer, folder: str | Path, stage: ModelStage) -> Path:
    """Fold the adapter into 16-bit weights (32-bit on a CPU) and write a complete model.

    The result loads with plain transformers, without PEFT, Unsloth or bitsandbytes. The model is left as
    it is; files of an earlier merge are replaced.

    Raises:
        ModelError: The disk has too little room.
    """
    folder = Path(folder)
    check_merge_space(model, folder, stage)
    write_merged(model, folder, merged_dtype(stage))
    tokenizer.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def logits_on(model: Model, tokenizer: Tokenizer, prompts: list[str]) -> torch.Tensor:
    """Return the next-token logits of each prompt, float32 on the CPU, `[len(prompts), vocabulary]`.

    For comparing a model with its reloaded self; by fast sampling's forward where that is attached, else by
    the model's own. Special tokens are written out in the prompts.
    """
    texts = (tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts)
    rows = [torch.tensor(ids) for ids in texts]
    if isinstance(model.generate, FastGenerate):
        return torch.stack([model.generate.next_logits(ids).cpu() for ids in rows])
    was_training = model.training
    model.eval()
    # What Unsloth compiled for training fails on its own guards here (StopIteration), and one row
    # is not worth compiling for.
    with torch.compiler.set_stance("force_eager"):
        found = [model(input_ids=ids.to(model.device)[None]).logits[0, -1] for ids in rows]
    model.train(was_training)
    return torch.stack([logits.float().cpu() for logits in found])


def compare_logits(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """Compare two results of `logits_on`.

    Returns:
        `max_abs_diff` of the log-probabilities and `same_top_token`, the share of prompts whose
        likeliest token is the same (1.0: all of them).
    """
    difference = (before.log_softmax(-1) - after.log_softmax(-1)).abs().max().item()
    same = (before.argmax(-1) == after.argmax(-1)).float().mean().item()
    return {"max_abs_diff": difference, "same_top_token": same}


def lacks_memory(error: Exception) -> bool:
    """Say whether an error comes from too little GPU memory.

    Kernels outside of torch's allocator say so in a plain RuntimeError, bitsandbytes and Unsloth
    in a ValueError when the model does not fit beside what is on the GPU already.
    """
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or ("out of memory" in text and "cuda" in text)
        or "does not fit in gpu memory" in text
        or "dispatched on the cpu or the disk" in text
    )


@contextlib.contextmanager
def memory_guard(doing: str, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error, `doing` something, into a ModelError that names the remedy to try."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not lacks_memory(error):
            raise
        peak = torch.cuda.max_memory_allocated() / 2**30
        raise ModelError(f"{doing} ran out of GPU memory at {peak:.1f} GiB; try {remedy}") from error
