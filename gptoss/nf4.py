"""Pack a 16-bit GPT-OSS checkpoint to 4-bit NF4, one linear layer per expert.

That is the layout of `unsloth/gpt-oss-20b-unsloth-bnb-4bit`, the only one whose experts Unsloth
trains at 4-bit and that `gptoss.moe_kernels` reads: a checkpoint of transformers' own layout (all
experts of a projection in one 3-D tensor), such as a merged model, is packed once and kept. Layer
by layer, so memory stays at about two layers (3.5 GiB for 20 B parameters).
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from common.files import RunError, build_folder, is_complete, read_json, write_json_atomic
from gptoss.merge import write_shards
from gptoss.preflight import (
    ModelError,
    check_disk_space,
    list_tensor_names,
    list_weight_files,
    read_json_file,
)
from gptoss.weights import KINDS

BLOCK_SIZE = 64
"""Weights that share one scale."""
PACKED_SHARE = 0.36
"""Size of the copy of 20 B parameters to its source: 15 of 42 GB, with some to spare."""
SOURCE_NAME = "packed_from.json"
QUANTIZATION = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
    "_load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": ["lm_head", "embed_tokens", "router", "self_attn"],
    "llm_int8_threshold": 6.0,
}
"""What bitsandbytes reads from config.json; everything but the experts stays in 16 bit."""


def holds_fused_experts(folder: Path) -> bool:
    """Say whether a GPT-OSS checkpoint keeps all experts of a projection in one 16-bit tensor."""
    return any(name.endswith("mlp.experts.gate_up_proj") for name in list_tensor_names(folder))


def packed_folder(folder: Path) -> Path:
    """Return where the 4-bit copy of a checkpoint is kept: beside it."""
    return folder.with_name(f"{folder.name}-bnb-4bit")


def pack_checkpoint(folder: Path) -> Path:
    """Write the 4-bit copy of a checkpoint with fused 16-bit experts, or find an earlier call's.

    Raises:
        ModelError: bitsandbytes is missing, the shapes cannot be packed, or the disk has too
            little room; the folder beside the checkpoint is then as it was.
    """
    target = packed_folder(folder)
    files = list_weight_files(folder)
    source = {path.name: [path.stat().st_size, int(path.stat().st_mtime)] for path in files}
    if is_complete(target) and read_json(target / SOURCE_NAME, {}) == source:
        print(f"{folder}: 16-bit experts, taken from their 4-bit copy {target.name}")
        return target
    if target.exists() and not (target / SOURCE_NAME).exists():
        raise ModelError(
            f"{target}: is where the 4-bit copy of {folder} goes, and is none; name it as the model, "
            "or copy the checkpoint to another folder"
        )
    needed = sum(size for size, _ in source.values()) * PACKED_SHARE
    check_disk_space(target, needed, "the 4-bit copy", "or use --set model.load_in_4bit=false")
    print(f"{folder}: 16-bit experts, packing them to 4-bit once, into {target.name}")
    try:
        build_folder(target, lambda part: _write_packed(folder, files, part, source))
    except OSError as error:
        raise ModelError(
            f"{target}: the 4-bit copy cannot be written ({error.strerror}); copy the checkpoint "
            "to a folder that can be written to"
        ) from error
    except RunError as error:
        raise ModelError(str(error)) from error
    return target


def _write_packed(folder: Path, files: list[Path], part: Path, source: dict) -> None:
    write_shards(part, _shards(files))
    config = read_json_file(folder / "config.json") | {"quantization_config": QUANTIZATION}
    config["dtype"] = "bfloat16"
    write_json_atomic(part / "config.json", config)
    write_json_atomic(part / SOURCE_NAME, source)
    for path in folder.iterdir():
        # The tokenizer, the chat template and the generation settings are the same.
        if path.is_file() and path.suffix in (".json", ".jinja") and not (part / path.name).exists():
            shutil.copy(path, part / path.name)


def _shards(files: list[Path]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of one weight file after the other, packed and on the CPU."""
    for path in files:
        with safe_open(str(path), framework="pt") as file:
            packed: dict[str, torch.Tensor] = {}
            for name in file.keys():
                packed |= _pack_tensor(name, file.get_tensor(name))
        yield packed


def _pack_tensor(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what one tensor of the 16-bit checkpoint becomes."""
    head, _, last = name.rpartition(".")
    if head.endswith("mlp.experts") and last in KINDS:
        return _pack_experts(f"{head}.{last}s", tensor)
    if head.endswith("mlp.experts") and last.removesuffix("_bias") in KINDS:
        prefix = f"{head}.{last.removesuffix('_bias')}s"
        return {f"{prefix}.{n}.bias": row.bfloat16() for n, row in enumerate(tensor)}
    if head.endswith("mlp.router"):
        return {f"{head}.linear.{last}": tensor.bfloat16()}
    return {name: tensor.bfloat16()}


def _pack_experts(prefix: str, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pack `[E, in, out]` to one NF4 weight `[out, in]` per expert, with its quantization state."""
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise ModelError("bitsandbytes is missing: pip install -r requirements.txt") from error
    if weights[0].numel() % BLOCK_SIZE:
        raise ModelError(
            f"{prefix}: {weights[0].numel()} weights an expert are no whole blocks of {BLOCK_SIZE}; "
            "use --set model.load_in_4bit=false"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = {}
    for number, weight in enumerate(weights):
        dense = weight.to(device).T.contiguous().bfloat16()
        data, state = quantize_4bit(
            dense, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
        )
        key = f"{prefix}.{number}.weight"
        packed[key] = data.cpu()
        for field, value in state.as_dict(packed=True).items():
            packed[f"{key}.{field}"] = value.cpu()
    return packed
