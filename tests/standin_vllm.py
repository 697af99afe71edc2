"""A stand-in for the module `vllm` on a CPU: the few names that `gptoss.vllm_engine` calls.

Its model is a copy of the folder's weights of its own; an adapter reaches it through the file that
a request names and the slots of its modules alone, as in vLLM.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import trl.trainer.grpo_trainer  # noqa: F401  (looks for vLLM when it is first imported)
from safetensors.torch import load_file
from transformers import GptOssForCausalLM

Factors = tuple[torch.Tensor, torch.Tensor]


@dataclass
class LoRARequest:
    """What vLLM's request holds of interest."""

    lora_name: str
    lora_int_id: int
    lora_path: str


class Slot:
    """A module with one adapter slot."""

    def __init__(self) -> None:
        self.factors: list[Factors] = []

    def set_lora(self, index: int, a: Any, b: Any) -> None:
        """Overwrite the slot."""
        assert index == 0
        pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
        self.factors = [(left.clone(), right.clone()) for left, right in pairs]


class Served:
    """vLLM's model: the names of its modules and what their slots hold."""

    def __init__(self, num_layers: int) -> None:
        names = ("attn.qkv_proj", "attn.o_proj", "mlp.experts")
        self.slots = {f"model.layers.{n}.{name}": Slot() for n in range(num_layers) for name in names}

    def named_modules(self) -> list[tuple[str, Slot]]:
        """Return all of them."""
        return list(self.slots.items())


class LLM:
    """The engine; `log` notes what is asked of it."""

    log: list[Any] = []

    def __init__(self, model: str, **settings: Any) -> None:
        self.log.append(settings)
        self.base = GptOssForCausalLM.from_pretrained(model, attn_implementation="eager")
        self.served = Served(len(self.base.model.layers))
        self.llm_engine = SimpleNamespace(add_lora=self._add_lora)

    def _add_lora(self, request: LoRARequest) -> None:
        folder = Path(request.lora_path)
        self.file = load_file(folder / "adapter_model.safetensors")
        self.settings = json.loads((folder / "adapter_config.json").read_text())

    def apply_model(self, function: Any) -> list[Any]:
        """Run a function on the model."""
        self.log.append("apply_model")
        return [function(self.served)]

    def reset_prefix_cache(self) -> bool:
        """Forget what was read."""
        self.log.append("reset_prefix_cache")
        return True

    def _merged(self) -> GptOssForCausalLM:
        model = GptOssForCausalLM(self.base.config)
        model.load_state_dict(self.base.state_dict())
        for n, layer in enumerate(model.model.layers):
            prefix = f"model.layers.{n}."
            factors = [
                *self.served.slots[f"{prefix}attn.qkv_proj"].factors,
                *self.served.slots[f"{prefix}attn.o_proj"].factors,
            ]
            for name, (a, b) in zip("qkvo", factors, strict=False):
                layer.self_attn.get_submodule(f"{name}_proj").weight.add_(b @ a)
            kinds = (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj)
            for weight, (a, b) in zip(kinds, self.served.slots[f"{prefix}mlp.experts"].factors):
                weight.add_((b @ a).transpose(1, 2))
        return model.eval()

    @torch.no_grad()
    def generate(self, prompts: list[dict], settings: list[Any], use_tqdm: bool, lora_request: Any):
        """Complete prompts one by one."""
        self.log.append(len(prompts))
        model = self._merged() if lora_request else self.base
        return [
            SimpleNamespace(outputs=[self._complete(model, prompt["prompt_token_ids"], one)])
            for prompt, one in zip(prompts, settings, strict=True)
        ]

    @staticmethod
    def _complete(model: Any, prompt: list[int], settings: Any) -> Any:
        ids, log_probs = list(prompt), []
        for _ in range(settings.max_tokens):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            values = (logits / (settings.temperature or 1.0)).log_softmax(-1)
            token = int(values.exp().multinomial(1) if settings.temperature else values.argmax())
            ids.append(token)
            log_probs.append({token: SimpleNamespace(logprob=float(values[token]))})
            if token in settings.stop_token_ids:
                break
        return SimpleNamespace(token_ids=tuple(ids[len(prompt):]), logprobs=log_probs)


def install(monkeypatch: Any) -> type[LLM]:
    """Put the stand-in in vLLM's place; returns its `LLM`, whose log is empty."""
    LLM.log = []
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = LLM, SimpleNamespace, LoRARequest
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return LLM
