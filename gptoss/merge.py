"""Write a model with its adapter folded in as a plain transformers checkpoint, layer by layer.

Weights are unpacked and merged one layer at a time, so memory stays at about one layer (2.4 GiB
for 20 B parameters) whatever the size of the model. On request the merged experts are rounded to
MXFP4, as in the released model.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from gptoss import mxfp4
from gptoss.model_types import Model
from gptoss.weights import (
    KINDS,
    Experts,
    add_lora,
    base_linear,
    dense,
    find_causal_lm,
    linear_lora,
    router_linear,
)

INDEX_NAME = "model.safetensors.index.json"


@torch.no_grad()
def write_merged(model: Model, folder: Path, dtype: torch.dtype, pack_experts: bool = False) -> None:
    """Write `config.json`, `generation_config.json` and one weight file per layer.

    Args:
        model: Any model, with or without a LoRA adapter, weights in any layout.
        folder: Created when missing; weight files of an earlier merge are removed first.
        pack_experts: Round the merged experts to MXFP4, 4.25 bits a parameter.

    Raises:
        ValueError: The experts cannot be packed: there are none, an odd width, or a weight that is
            not finite.
    """
    core = find_causal_lm(model)
    gpt_oss = core.config.model_type == "gpt_oss"
    if pack_experts and not gpt_oss:
        raise ValueError("only the experts of a GPT-OSS are packed to MXFP4")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.safetensors"), folder / INDEX_NAME):
        old.unlink(missing_ok=True)
    config = core.config.to_dict()
    config.pop("quantization_config", None)
    if pack_experts:
        config["quantization_config"] = mxfp4.CONFIG
    config["architectures"] = [type(core).__name__]
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    core.generation_config.save_pretrained(str(folder))
    shards = _layer_shards(core, dtype, pack_experts) if gpt_oss else [_merged_tensors(core)]
    # Bytes are MXFP4 already; everything else is written in one floating-point type.
    write_shards(folder, (
        {
            name: tensor.detach().to("cpu", tensor.dtype if tensor.dtype == torch.uint8 else dtype)
            for name, tensor in tensors.items()
        }
        for tensors in shards
    ))


def write_shards(folder: Path, shards: Iterable[dict[str, torch.Tensor]]) -> None:
    """Write a weight file for each dict of tensors, and the index of all of them.

    Args:
        shards: Tensors on the CPU by name; one dict at a time is held.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards):
        name = f"model-{number:05d}.safetensors"
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(tensors, str(folder / name), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _layer_shards(
    core: Any, dtype: torch.dtype, pack_experts: bool
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the tensors of a GPT-OSS: those outside of its layers, then a layer each."""
    tensors = {
        "model.embed_tokens.weight": core.model.embed_tokens.weight,
        "model.norm.weight": core.model.norm.weight,
    }
    if not core.config.tie_word_embeddings:
        tensors["lm_head.weight"] = dense(core.lm_head.weight)
    yield tensors
    for index, layer in enumerate(core.model.layers):
        yield _layer_tensors(f"model.layers.{index}.", layer, dtype, pack_experts)


def _merged_tensors(core: Any) -> dict[str, torch.Tensor]:
    """Return the weights of any model by their names, the adapter folded into its linear layers."""
    tensors, head = {}, core.get_output_embeddings()
    for name, tensor in core.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        module = core.get_submodule(owner)
        # Behind `weight` stands how it is quantized; a tied head is the embedding once more.
        if ".lora_" in name or ".weight." in name:
            continue
        if module is head and core.config.tie_word_embeddings:
            continue
        if leaf == "weight":
            tensor, layer = dense(module.weight), core.get_submodule(owner.removesuffix(".base_layer"))
            if layer is not module:
                tensor = add_lora(tensor.T[None], linear_lora(layer))[0].T
        tensors[name.replace(".base_layer.", ".")] = tensor
    return tensors


def _layer_tensors(
    prefix: str, layer: nn.Module, dtype: torch.dtype, pack_experts: bool
) -> dict[str, torch.Tensor]:
    attention, experts = layer.self_attn, Experts(layer.mlp.experts)
    router = router_linear(layer.mlp.router)
    tensors = {
        "self_attn.sinks": attention.sinks,
        "input_layernorm.weight": layer.input_layernorm.weight,
        "post_attention_layernorm.weight": layer.post_attention_layernorm.weight,
        "mlp.router.weight": router.weight,
        "mlp.router.bias": router.bias,
    }
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        module = attention.get_submodule(name)
        base, lora = base_linear(module), linear_lora(module)
        # One linear layer is one expert of the general case, stored the other way round.
        merged = add_lora(dense(base.weight).T[None], lora)[0].T
        tensors[f"self_attn.{name}.weight"] = merged
        tensors[f"self_attn.{name}.bias"] = base.bias
    for kind in KINDS:
        weight = add_lora(experts.weight(kind, dtype), experts.lora(kind))
        if pack_experts:
            blocks, scales = mxfp4.quantize_experts(weight)
            tensors[f"mlp.experts.{kind}_blocks"] = blocks
            tensors[f"mlp.experts.{kind}_scales"] = scales
        else:
            tensors[f"mlp.experts.{kind}"] = weight
        tensors[f"mlp.experts.{kind}_bias"] = experts.bias(kind)
    return {prefix + name: tensor for name, tensor in tensors.items()}
