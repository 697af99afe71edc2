"""Check model folders, package versions and hardware before a run spends time on them.

A truncated weight file is found by its length, which the safetensors header gives.
"""

import json
import platform
import re
import shutil
from pathlib import Path

import httpx
import torch
from safetensors import SafetensorError, safe_open

from common import versions
from common.user_error import UserError
from configs import ModelStage

ADAPTER_KEYS = ("base_model_name_or_path", "r", "lora_alpha")
"""What is read of an adapter's settings."""
HUB_TIMEOUT_S = 10.0
"""Seconds that the model hub has to answer."""


class ModelError(UserError, ValueError):
    """A model cannot be loaded, trained or saved; the text says why and what to do."""


def check_checkpoint(
    folder: Path, weights: str = "model.safetensors", config: str = "config.json"
) -> None:
    """Refuse a model folder that lacks a file or holds a truncated one.

    Args:
        weights: Weight file of a checkpoint in one piece; with `.index.json` it lists the shards.
        config: Settings file that must be valid JSON.

    Raises:
        ModelError: Names the file and the remedy.
    """
    read_json_file(folder / config)
    for path in list_weight_files(folder, weights):
        _check_safetensors(path)


def check_disk_space(folder: Path, needed_bytes: float, doing: str, remedy: str) -> None:
    """Refuse to start writing what the disk cannot take, by a ModelError with the sizes.

    Args:
        folder: Where it will be written; need not exist yet.
        doing: What needs the room, as in "merging".
        remedy: What else would help besides freeing some.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ModelError(
            f"{folder}: {doing} needs {needed_bytes / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are "
            f"free; free some, {remedy}"
        )


def check_adapter(adapter_dir: Path, stage: ModelStage) -> None:
    """Refuse an adapter folder that is missing, damaged, or made with other settings, by a ModelError."""
    if not adapter_dir.is_dir():
        raise ModelError(f"{adapter_dir}: no such folder; train first or correct the path")
    check_checkpoint(adapter_dir, weights="adapter_model.safetensors", config="adapter_config.json")
    config = read_json_file(adapter_dir / "adapter_config.json", *ADAPTER_KEYS)
    for name, wanted in (("r", stage.lora_rank), ("lora_alpha", stage.lora_alpha)):
        if config[name] != wanted:
            setting = "lora_rank" if name == "r" else name
            raise ModelError(
                f"{adapter_dir}: adapter has {setting} {config[name]}, the settings say {wanted}; "
                f"use --set model.{setting}={config[name]}"
            )


def list_weight_files(folder: Path, weights: str = "model.safetensors") -> list[Path]:
    """Return the weight files of a checkpoint, in one piece or in the shards of its index."""
    index_path = folder / f"{weights}.index.json"
    if not index_path.is_file():
        return [folder / weights]
    names = sorted(set(read_json_file(index_path, "weight_map")["weight_map"].values()))
    return [folder / name for name in names]


def list_tensor_names(folder: Path, weights: str = "model.safetensors") -> list[str]:
    """Return the names of all tensors of a checkpoint or an adapter."""
    names = []
    for path in list_weight_files(folder, weights):
        with safe_open(str(path), framework="pt") as file:
            names += file.keys()
    return names


def check_layers(folder: Path) -> None:
    """Refuse a model folder whose layers do not all hold the same tensors, by a ModelError that names one.

    Loaders would fill what is missing with random values.
    """
    count = read_json_file(folder / "config.json", "num_hidden_layers")["num_hidden_layers"]
    layers_of: dict[str, set[int]] = {}
    for name in list_tensor_names(folder):
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        # What follows `weight` says how it is quantized, which may differ from layer to layer.
        if found and ".weight." not in found[2]:
            layers_of.setdefault(found[2], set()).add(int(found[1]))
    for rest, layers in sorted(layers_of.items()):
        for number in range(count):
            if number not in layers:
                raise ModelError(
                    f"{folder}: lacks the tensor model.layers.{number}.{rest}; copy the checkpoint "
                    "again"
                )


def holds_mxfp4_experts(folder: Path) -> bool:
    """Say whether a folder is a checkpoint with experts in MXFP4; False for a hub name."""
    path = folder / "config.json"
    settings = read_json_file(path).get("quantization_config") if path.is_file() else None
    return bool(settings) and settings.get("quant_method") == "mxfp4"


def read_json_file(path: Path, *keys: str) -> dict:
    """Return the JSON object of a file of a model folder, which must have these keys, not empty.

    Raises:
        ModelError: Names the file and the remedy.
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing; the folder is not a whole checkpoint, copy it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}); copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object; copy the checkpoint again")
    for key in keys:
        if not content.get(key):
            raise ModelError(f"{path}: lacks {key}; copy the checkpoint again")
    return content


def _check_safetensors(path: Path) -> None:
    """Refuse a file that is missing, or whose length is not the one that its header promises."""
    if not path.is_file():
        raise ModelError(f"{path}: missing weight file; copy the checkpoint again")
    try:
        with safe_open(str(path), framework="pt"):
            pass
    except SafetensorError as error:
        raise ModelError(f"{path}: cut short or damaged; copy the checkpoint again") from error


def check_hub(name: str) -> None:
    """Ask the model hub for a model once, so that a hub that is away costs seconds.

    transformers asks five times for each file, 20 s a file, before it gives up.

    Raises:
        ModelError: The hub does not know the name, or does not answer and no copy is cached here.
    """
    from huggingface_hub import HfApi, constants

    # Unsloth takes another model of the same name (`-unsloth-bnb-4bit` behind it), cached under that.
    cached = Path(constants.HF_HUB_CACHE).glob(
        f"models--*--{name.rpartition('/')[2]}*/snapshots/*/config.json")
    if constants.HF_HUB_OFFLINE or any(cached):
        return
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise hub_error(name, reason) from error


def hub_error(name: str, reason: str) -> ModelError:
    """Return the one line for a model that is neither here nor on the hub."""
    return ModelError(
        f"{name}: not a folder here, and the model hub did not give it ({reason}); check the "
        "network and the name, or set model.model_name to a folder"
    )


def count_parameters(model_name: str) -> int:
    """Estimate a model's parameters from its folder's config, or from a hub name such as `gpt-oss-20b`.

    Returns:
        Parameters; 0 when unknown.

    Raises:
        ModelError: A size in the config is no number.
    """
    path = Path(model_name) / "config.json"
    if not path.is_file():
        match = re.search(r"(\d+(?:\.\d+)?)b\b", model_name.lower())
        return int(float(match.group(1)) * 1_000_000_000) if match else 0
    config = read_json_file(path)

    def number(key: str, default: int = 0) -> int:
        value = config.get(key, default)
        if not isinstance(value, int):
            if config.get("model_type") != "gpt_oss":
                return default  # other models may leave a size to their code, or give one a layer
            raise ModelError(f"{path}: {key} is {value!r}; copy the checkpoint again")
        return value

    width, heads = number("hidden_size"), number("num_attention_heads") * number("head_dim")
    experts = number("num_local_experts", 1) * 3 * width * number("intermediate_size")
    layer = experts + 3 * width * heads
    return number("num_hidden_layers") * layer + 2 * width * number("vocab_size")


def check_environment() -> list[str]:
    """Describe Python, the hardware and every component against its pin, one line each.

    Lines such as `trl 1.14.2 (pinned)`; a line with WRONG names the command that fixes it.
    """
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        lines.append(
            f"CUDA {torch.version.cuda}, {count} GPU: {properties.name}, "
            f"{properties.total_memory / 2**30:.1f} GiB, compute capability "
            f"{properties.major}.{properties.minor}"
        )
    else:
        no_gpu = "no CUDA GPU: the small model that ships here is trained on the CPU"
        lines.append(versions.why_gpu_is_unused() or no_gpu)
    return lines + versions.component_lines(versions.has_gpu_stack())
