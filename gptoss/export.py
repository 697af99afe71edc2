"""Write a trained model for serving, and compare what was written with the model in memory.

Formats: `16bit`, as `merged_model/` is written in a run; `mxfp4`, the layout of the released
`openai/gpt-oss-20b`, a third of the size; `gguf`, that folder and a `model.gguf` beside it, made by
llama.cpp's own converter. The first two load with transformers and vLLM. `adapter` is the adapter
alone, for vLLM to serve on its base: Unsloth's own layout, one LoRA per expert, vLLM does not read.
Left out on purpose: Unsloth's `save_method="mxfp4"` and the `save_pretrained_gguf` built on it. They
copy the packed experts of the base model and so leave out what an adapter changed in them.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from common.files import build_folder, real_path, write_text_atomic
from common.outputs import check_folder, record
from common.run_folder import is_run
from configs import ModelStage, config_of_model, is_gpt_oss
from data_reader import Task, plan_prompt
from gptoss import mxfp4
from gptoss.load import (
    compare_logits,
    count_trainable,
    load_for_evaluation,
    logits_on,
    memory_guard,
    merged_dtype,
)
from gptoss.memory import LARGER_GPU, free_memory
from gptoss.merge import write_merged
from gptoss.model_card import model_card
from gptoss.model_types import Model, Tokenizer
from gptoss.nf4 import holds_fused_experts
from gptoss.preflight import ModelError, check_checkpoint, check_disk_space
from gptoss.vllm_engine import write_adapter
from gptoss.weights import KINDS, Experts, find_causal_lm, find_core
from prompting.plan_format import HARMONY, PlanFormat, plan_format

FORMATS = ("16bit", "mxfp4", "gguf", "adapter")
CONVERTER = "convert_hf_to_gguf.py"
"""llama.cpp's program that reads a folder in the released model's layout."""
_BEGUN = '{"tool_calls":[{"name":"'
CHECKS = (
    ("Hi, I need to cancel my order #W2611340, I no longer need it. My email is a.b@example.com.",
     ("", _BEGUN, _BEGUN + 'find_user_id_by_email","arguments":{"email":"')),
    ("I am mia_garcia_4516. Please change the address of order #W5490111 to 12 Oak Street, Austin.",
     (_BEGUN, _BEGUN + 'get_order_details","arguments":{"order_id":"#W')),
    ("How much would the t-shirt at 46.85 and the lamp at 153.23 cost together?",
     (_BEGUN, _BEGUN + 'calculate","arguments":{"expression":"')),
)
"""Fixed customers' words, and answers begun: the token that follows is where models differ."""


def run_export(
    model_dir: str, export_format: str, output_dir: str, llama_cpp: str = "llama.cpp"
) -> int:
    """Load a model, write it in a format, load that again and print how far the two are apart.

    Args:
        model_dir: Adapter folder (final_model/), complete model folder, or hub name.
        output_dir: Where to; an earlier export there, unchanged since, is replaced once the new
            one is whole.
        llama_cpp: Folder of llama.cpp's sources; only the format gguf needs it.

    Raises:
        ModelError: The model cannot be loaded or packed, or memory or disk is too small.
        OutputError: The folder holds something else than an earlier export.
        RunError: The disk is full.
    """
    folder = Path(output_dir).absolute()  # other programs would read a leading dash as an option
    if real_path(folder) == real_path(model_dir):
        raise ModelError(f"{folder}: is the model itself; choose another --output")
    check_folder("export", folder, [Path(model_dir), Path(llama_cpp)])
    if export_format == "gguf" and not Path(llama_cpp, CONVERTER).is_file():
        raise ModelError(
            f"{Path(llama_cpp, CONVERTER)}: missing; git clone https://github.com/ggml-org/llama.cpp, "
            "name its folder with --llama-cpp, or use --format mxfp4"
        )
    config = config_of_model(model_dir)
    stage = replace(config.model, sampling="plain")
    is_adapter = (Path(model_dir) / "adapter_config.json").is_file()
    if Path(model_dir).is_dir() and not is_adapter:
        check_checkpoint(Path(model_dir))
        if holds_fused_experts(Path(model_dir)):
            stage = replace(stage, load_in_4bit=False)
    if export_format == "adapter" and not is_adapter:
        raise ModelError(f"{model_dir}: holds no adapter; name the run's final_model")
    model, tokenizer = load_for_evaluation(model_dir, stage)
    prompts = check_prompts(config.data.prompt_style, plan_format(tokenizer))
    run_dir = Path(model_dir).parent
    card = model_card(run_dir, adapter=False) if is_run(run_dir) else ""
    export_model(model, tokenizer, folder, stage, export_format, llama_cpp, card)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    print(f"{folder}: {size:.2f} GB as {export_format}")
    if export_format == "adapter":
        return 0
    rounded = None
    with memory_guard(f"the comparison ({folder} is written)", LARGER_GPU):
        before = logits_on(model, tokenizer, prompts)
        if export_format != "16bit" and round_experts_in_place(model):
            rounded = logits_on(model, tokenizer, prompts)
    # The exported model is loaded next: both at once would not fit a GPU that fits one.
    del model
    free_memory()
    after = reload_logits(folder, prompts)
    print(f"against the model in memory: {_difference(before, after)}")
    if rounded is not None:
        print(f"against the same with experts rounded in memory: {_difference(rounded, after)}")
    return 0


def check_prompts(style: str, plans: PlanFormat = HARMONY) -> list[str]:
    """Return the fixed prompts whose next-token logits are compared, in the style of the training."""

    def begin(answer: str) -> str:
        return plans.completion(answer).removesuffix(plans.end_token) if answer else ""

    prompts = []
    for query, answers in CHECKS:
        task = Task(query=query, gold_actions=[], gold_final="", task_id="export")
        prompt = plan_prompt(task, style, plans)
        prompts += [prompt + begin(answer) for answer in answers]
    return prompts


def _difference(before: torch.Tensor, after: torch.Tensor) -> str:
    found = compare_logits(before, after)
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    divergence = (old.exp() * (old - new)).sum(-1).mean().item()
    return (
        f"same likeliest token in {found['same_top_token']:.0%} of {len(before)} prompts, KL "
        f"{abs(divergence):.2g} nats, log-probabilities differ by {found['max_abs_diff']:.2g} at most"
    )


def export_model(
    model: Model, tokenizer: Tokenizer, folder: Path, stage: ModelStage, export_format: str,
    llama_cpp: str = "llama.cpp", card: str = "",
) -> None:
    """Write a complete model folder, whole or not at all; the model is left as it is.

    Args:
        export_format: One of `FORMATS`.
        card: The model card's text; empty writes none.

    Raises:
        ModelError: The experts cannot be packed, the disk has too little room, or llama.cpp fails.
        RunError: The disk is full.
    """
    dtype = merged_dtype(stage)
    packed = export_format == "mxfp4" or (export_format == "gguf" and is_gpt_oss(stage.model_name))
    # A GGUF file is as large as the folder it is made from.
    needed = export_bytes(model, dtype, packed) * (2 if export_format == "gguf" else 1)
    check_disk_space(folder, needed, f"the {export_format} export", "or choose another --output")

    def build(part: Path) -> None:
        if export_format == "adapter" and not is_gpt_oss(stage.model_name):
            model.save_pretrained(str(part))  # vLLM reads PEFT's own layout of linear layers
        elif export_format == "adapter":
            write_adapter(model, part, model.peft_config["default"].base_model_name_or_path)
        else:
            write_merged(model, part, dtype, pack_experts=packed)
        tokenizer.save_pretrained(str(part))
        if card:
            write_text_atomic(part / "README.md", card)
        if export_format == "gguf":
            _convert_to_gguf(part, Path(llama_cpp))
        record("export", part.rglob("*"))

    try:
        build_folder(folder, build)
    except ModelError:
        raise
    except ValueError as error:
        raise ModelError(f"{folder}: {error}; use --format 16bit") from error
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(f"{folder}: cannot be written ({reason}); choose another --output") from error


def _convert_to_gguf(part: Path, llama_cpp: Path) -> None:
    reason = _run_beside("to_gguf.py", llama_cpp, part, part / "model.gguf")
    if reason or not (part / "model.gguf").is_file():
        raise ModelError(f"{llama_cpp / CONVERTER}: failed: {reason}; use --format mxfp4")


def _run_beside(program: str, *words: Path) -> str:
    """Run a program of this folder in a process of its own; return the last line of its error."""
    # -P keeps this folder, whose modules have common names, off the import path.
    command = [sys.executable, "-P", Path(__file__).with_name(program), *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else ""


def export_bytes(model: Model, dtype: torch.dtype, packed: bool) -> float:
    """Return the bytes that an export takes on disk, 2 % for the tokenizer and headers added."""
    core = find_causal_lm(model)
    config = core.config
    adapter = sum(p.numel() for name, p in core.named_parameters() if "lora_" in name)
    total = count_trainable(core)[1] - adapter
    experts = 0 if config.model_type != "gpt_oss" else (
        config.num_hidden_layers * config.num_local_experts
        * 3 * config.hidden_size * config.intermediate_size
    )
    bytes_per_expert_value = mxfp4.BITS_PER_VALUE / 8 if packed else dtype.itemsize
    return 1.02 * ((total - experts) * dtype.itemsize + experts * bytes_per_expert_value)


@torch.no_grad()
def round_experts_in_place(model: Model) -> bool:
    """Round the experts of a GPT-OSS in memory to MXFP4, to have the yardstick of an export.

    Returns:
        False, with nothing changed, when the experts carry an adapter or are held in 4-bit.
    """
    if model.config.model_type != "gpt_oss":
        return False
    layers = [Experts(layer.mlp.experts) for layer in find_core(model).model.layers]
    if any(experts.split or experts.lora(kind) for experts in layers for kind in KINDS):
        return False
    for experts in layers:
        for kind in KINDS:
            weight = experts.weight(kind, model.dtype)
            weight.copy_(mxfp4.round_experts(weight))
    return True


def reload_logits(folder: Path, prompts: list[str]) -> torch.Tensor:
    """Load a model folder in a process of its own with transformers alone; return what `logits_on` does.

    Raises:
        ModelError: transformers cannot load the folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        prompts_path, logits_path = Path(temporary, "prompts.json"), Path(temporary, "logits.pt")
        prompts_path.write_text(json.dumps(prompts), encoding="utf-8")
        if reason := _run_beside("plain.py", folder, prompts_path, logits_path):
            raise ModelError(f"{folder}: written, but transformers cannot load it: {reason}")
        return torch.load(logits_path)
