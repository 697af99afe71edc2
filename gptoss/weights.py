"""One view of GPT-OSS weights, whichever way they are held: for fast decoding and for merging.

Two layouts of the experts occur: one 3-D tensor per projection (transformers), and one linear
layer per expert, packed to 4-bit NF4 (the pre-quantized checkpoint that Unsloth gives). PEFT wraps
each of them differently. Everything else of the model has one layout.
Left out: 3-D tensors packed to 4-bit (`load_model` refuses them), several active adapters, DoRA.
"""

from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

KINDS = ("gate_up_proj", "down_proj")
"""The two expert projections; `gate_up_proj` interleaves gate (even) and up (odd) columns."""


@dataclass(frozen=True)
class LoraFactors:
    """A low-rank update: the weight `[in, out]` (or `[E, in, out]`) gains scale * left @ right."""

    lefts: list[torch.Tensor]
    """One `[in, r]` view per expert (a single one for a plain linear layer)."""
    rights: list[torch.Tensor]
    """One `[r, out]` view per expert."""
    scale: float

    @property
    def rank(self) -> int:
        """Rank r of the update."""
        return self.lefts[0].shape[1]


def find_core(model: nn.Module) -> nn.Module:
    """Return the GptOssForCausalLM inside a PEFT or other wrapper.

    Raises:
        TypeError: There is none.
    """
    for module in model.modules():
        if type(module).__name__ == "GptOssForCausalLM":
            return module
    raise TypeError(f"{type(model).__name__} holds no GptOssForCausalLM")


def find_causal_lm(model: nn.Module) -> nn.Module:
    """Return the model inside a PEFT wrapper; any architecture."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_packed(weight: torch.Tensor) -> bool:
    """Say whether a weight is packed 4-bit (bitsandbytes Params4bit)."""
    return weight.dtype == torch.uint8


def dense(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight in floating point, unpacking a 4-bit one."""
    if not is_packed(weight):
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def _active_adapter(layer: LoraLayer | ParamWrapper) -> str | None:
    if layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) > 1:
        raise ValueError(f"one active adapter is expected, found {names}")
    return names[0] if names else None


def base_linear(module: nn.Module) -> nn.Module:
    """Return a linear layer without its LoRA wrapper."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def linear_lora(module: nn.Module) -> LoraFactors | None:
    """Return the active LoRA update of a linear layer, or None."""
    if not isinstance(module, LoraLayer):
        return None
    name = _active_adapter(module)
    if name is None:
        return None
    left, right = module.lora_A[name].weight, module.lora_B[name].weight
    return LoraFactors([left.detach().T], [right.detach().T], module.scaling[name])


class Experts:
    """The experts of one layer.

    Attributes:
        split: True for one linear layer per expert, False for one tensor per projection.
        num_experts: Number of experts E.
    """

    def __init__(self, module: nn.Module) -> None:
        """See through PEFT's wrappers to one `mlp.experts` module."""
        self._wrappers: dict[str, ParamWrapper] = {}
        while isinstance(module, ParamWrapper):
            self._wrappers[module.parameter_name] = module
            module = module.base_layer
        children = dict(module.named_children())
        self.split = "gate_up_projs" in children
        self._module = module
        self._lists = {kind: list(children[f"{kind}s"]) for kind in KINDS} if self.split else {}
        self.num_experts = len(self._lists[KINDS[0]]) if self.split else module.num_experts
        self.limit = float(module.limit)
        self.alpha = float(module.alpha)

    def packed(self, kind: str) -> list[torch.Tensor] | None:
        """Return the packed weights, one `[out, in]` per expert, when they are split NF4."""
        weights = [base_linear(layer).weight for layer in self._lists.get(kind, ())]
        return weights if weights and all(map(is_packed, weights)) else None

    def weight(self, kind: str, dtype: torch.dtype) -> torch.Tensor:
        """Return the weights `[E, in, out]` without LoRA; a view where nothing was unpacked."""
        if self.split:
            rows = [dense(base_linear(layer).weight).to(dtype) for layer in self._lists[kind]]
            return torch.stack(rows).transpose(1, 2)
        return self._module.get_parameter(kind).detach().to(dtype)

    def bias(self, kind: str) -> torch.Tensor:
        """Return the biases `[E, out]`."""
        if self.split:
            return torch.stack([base_linear(layer).bias.detach() for layer in self._lists[kind]])
        return self._module.get_parameter(f"{kind}_bias").detach()

    def lora(self, kind: str) -> LoraFactors | None:
        """Return the active LoRA update of one projection, or None."""
        if self.split:
            each = [linear_lora(layer) for layer in self._lists[kind]]
            if each[0] is None:
                return None
            lefts = [factors.lefts[0] for factors in each]
            return LoraFactors(lefts, [factors.rights[0] for factors in each], each[0].scale)
        wrapper = self._wrappers.get(kind)
        name = None if wrapper is None else _active_adapter(wrapper)
        if name is None:
            return None
        count = self.num_experts
        # PEFT stores A as [E * r, in] and B as [out, r * E], expert index fastest in B.
        a = wrapper.lora_A[name].weight.detach()
        b = wrapper.lora_B[name].weight.detach()
        a = a.reshape(count, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, count).permute(2, 0, 1)
        if wrapper._did_swap_in_out_features:
            return LoraFactors(list(b), list(a), wrapper.scaling[name])
        return LoraFactors(list(a.transpose(1, 2)), list(b.transpose(1, 2)), wrapper.scaling[name])


def router_linear(router: nn.Module) -> nn.Module:
    """Return the module that holds the router's weight and bias (`router.linear` in Unsloth's)."""
    return dict(router.named_children()).get("linear", router)


def add_lora(weight: torch.Tensor, lora: LoraFactors | None) -> torch.Tensor:
    """Return weights `[E, in, out]` with the update added in float32, in the weights' dtype."""
    if lora is None:
        return weight
    merged = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for expert, (left, right) in enumerate(zip(lora.lefts, lora.rights, strict=True)):
        delta = (left.float() @ right.float()) * lora.scale
        merged[expert] = weight[expert].float() + delta
    return merged
