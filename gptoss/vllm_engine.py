"""Sampling by vLLM in the trainer's own process, from the 4-bit weights that are served.

The trainer's adapter is written into vLLM's adapter slot whenever it has changed, GPU memory to GPU
memory; prompts that begin alike are read once, requests end each at its own length. Weights and
key-value cache are held beside the trainer's model: `model.vllm_kv_gib` is the setting.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from accelerate import PartialState
from configs import ModelStage
from gptoss.generation import Completion
from gptoss.weights import KINDS, Experts, LoraFactors, find_core, linear_lora

VERSION = "0.26.0"
RELEASED = "openai/gpt-oss-20b"
"""The released MXFP4 weights, which Unsloth's checkpoints are packed from."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapter slots that vLLM knows."""
SMALL_SHARE = 0.05
"""Share of memory that vLLM wants free at its start; what it takes is set in bytes."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, beside the trainer's tensors
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # its first call compiles for minutes
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
Factors = tuple[torch.Tensor, torch.Tensor]
"""A `[r, in]` and B `[out, r]` with the scale in it; of experts `[E, r, in]` and `[E, out, r]`."""


def layer_factors(layer: nn.Module) -> dict[str, Factors]:
    """Return the active low-rank updates of one decoder layer by the projection's name."""
    found: dict[str, LoraFactors | None] = {
        name: linear_lora(layer.self_attn.get_submodule(name)) for name in ATTENTION
    }
    experts = Experts(layer.mlp.experts)
    found |= {kind: experts.lora(kind) for kind in KINDS}
    return {name: _stack(factors, name in KINDS) for name, factors in found.items() if factors}


def _stack(factors: LoraFactors, many: bool) -> Factors:
    a = torch.stack(factors.lefts).transpose(1, 2)
    b = torch.stack(factors.rights).transpose(1, 2) * factors.scale
    return (a, b) if many else (a[0], b[0])


def write_adapter(model: nn.Module, folder: Path, base: str = "") -> None:
    """Write the active adapter in the layout that vLLM and PEFT read, whichever way it is held.

    Args:
        base: Name or folder of the base model, for the adapter's settings.
    """
    tensors: dict[str, torch.Tensor] = {}
    rank = 0
    for index, layer in enumerate(find_core(model).model.layers):
        for name, (a, b) in layer_factors(layer).items():
            rank = a.shape[-2]
            if name in KINDS:
                # PEFT nests the wrapper of the first parameter in that of the second.
                inner = "base_layer." if name == KINDS[0] else ""
                path = f"mlp.experts.{inner}"
                a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
            else:
                path = f"self_attn.{name}."
            key = f"base_model.model.model.layers.{index}.{path}"
            tensors[f"{key}lora_A.weight"] = a.cpu().contiguous()
            tensors[f"{key}lora_B.weight"] = b.cpu().contiguous()
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none",
        "target_modules": list(ATTENTION), "base_model_name_or_path": base,
    }
    if any(".experts." in key for key in tensors):
        settings["target_parameters"] = [f"mlp.experts.{kind}" for kind in KINDS]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


def fill_slot(served: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Write the low-rank updates of the trainer's decoder layers into the first adapter slot of vLLM."""
    modules = dict(served.named_modules())
    for index, layer in enumerate(layers):
        found = layer_factors(layer)
        prefix = f"model.layers.{index}."
        q, k, v, o = (found.get(name) for name in ATTENTION)
        if o:
            a, b = zip(q, k, v, strict=True)
            modules[f"{prefix}attn.qkv_proj"].set_lora(0, list(a), list(b))
            modules[f"{prefix}attn.o_proj"].set_lora(0, *o)
        if KINDS[0] in found:
            a, b = zip(*(found[kind] for kind in KINDS), strict=True)
            modules[f"{prefix}mlp.experts"].set_lora(0, list(a), list(b))


def weights_for(stage: ModelStage) -> str:
    """Return what vLLM loads: `model.vllm_model`, or the released weights of a hub name.

    Raises:
        ValueError: A local folder holds NF4 weights, which vLLM does not read.
    """
    if stage.vllm_model:
        return stage.vllm_model
    folder = Path(stage.model_name)
    if not folder.is_dir():
        return RELEASED if "gpt-oss-20b" in stage.model_name else stage.model_name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    method = config.get("quantization_config", {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise ValueError(
            f"{folder} holds {method} weights; export it with `train_script.py export --format "
            "mxfp4` and name that folder in model.vllm_model"
        )
    return str(folder)


def graph_sizes(rows: int) -> list[int]:
    """Return the batch sizes whose decode steps are recorded; others are padded to the next one."""
    return [*(size for size in (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192) if size < rows), rows]


class VllmEngine:
    """vLLM as an engine of `gptoss.generation`.

    Attributes:
        differs: Whether its probabilities differ from the trainer's by more than rounding: they do,
            as MXFP4 is not NF4.
        mean_entropy: Estimated from the tokens that were sampled: minus their mean log-probability.
    """

    differs = True

    def __init__(self, model: Any, stage: ModelStage) -> None:
        """Start vLLM and give it the adapter of the trainer's model, whose stop tokens it uses, too."""
        os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
        from vllm import LLM

        self._model = model
        self._layers = list(find_core(model).model.layers)
        self._parameters = [p for name, p in model.named_parameters() if ".lora_" in name
                            and ".default." in name]
        factors = layer_factors(self._layers[0])
        self._seen: torch.Tensor | None = None
        self.mean_entropy: float | None = None
        adapter: dict[str, Any] = {}
        if factors:
            rank = factors["q_proj"][0].shape[-2]
            adapter = {
                "enable_lora": True, "max_loras": 1,
                "max_lora_rank": next(size for size in RANKS if size >= rank),
            }
            if KINDS[0] not in factors:
                adapter["lora_target_modules"] = ["qkv_proj", "o_proj"]
        self._llm = LLM(
            model=weights_for(stage), dtype="bfloat16", max_model_len=stage.max_seq_length,
            max_num_seqs=stage.sampling_rows, skip_tokenizer_init=True, seed=0,
            kv_cache_memory_bytes=int(stage.vllm_kv_gib * 2**30), enable_prefix_caching=True,
            gpu_memory_utilization=SMALL_SHARE,
            logprobs_mode="processed_logprobs", disable_log_stats=True,
            enable_flashinfer_autotune=False,
            # Without torch.compile adapters do not run on experts that are padded to tiles.
            compilation_config={
                "cudagraph_mode": "FULL_DECODE_ONLY",
                "cudagraph_capture_sizes": graph_sizes(stage.sampling_rows),
            },
            **adapter,
        )
        self._request = self._register() if factors else None

    def _register(self) -> Any:
        """Make vLLM take up an adapter, whose slot is overwritten from then on."""
        from vllm.lora.request import LoRARequest

        with tempfile.TemporaryDirectory() as folder:
            write_adapter(self._model, Path(folder))
            request = LoRARequest("policy", 1, folder)
            self._llm.llm_engine.add_lora(request)
        return request

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the adapter's present values, if they are others than before."""
        if self._request is None:
            return
        norms = torch.stack(torch._foreach_norm(self._parameters))
        if self._seen is not None and torch.equal(norms, self._seen):
            return
        self._llm.apply_model(lambda served: fill_slot(served, self._layers))
        # What was read of earlier prompts was read by another adapter.
        self._llm.reset_prefix_cache()
        self._seen = norms

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int,
        temperature: float | None = None, seeds: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Complete prompts, see `generation.complete`."""
        from vllm import SamplingParams

        self.refresh()
        stops = self._model.generation_config.eos_token_id
        settings = [
            SamplingParams(
                max_tokens=max_new_tokens, temperature=temperature or 0.0, logprobs=0, seed=seed,
                stop_token_ids=stops if isinstance(stops, list) else [stops], detokenize=False,
            )
            for seed in (seeds or [None] * len(prompts))
        ]
        # An adapter that is switched off for a while is the base model.
        request = self._request if layer_factors(self._layers[0]) else None
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], settings,
            use_tqdm=False, lora_request=request,
        )
        found = []
        for output in (result.outputs[0] for result in outputs):
            ids = list(output.token_ids)
            values = zip(ids, output.logprobs, strict=True)
            found.append(Completion(ids, [by_token[token].logprob for token, by_token in values]))
        if temperature:
            values = [value for one in found for value in one.log_probs]
            self.mean_entropy = -sum(values) / len(values)
        return found


def start_vllm(model: Any, stage: ModelStage) -> VllmEngine | None:
    """Start vLLM for a model; where it is missing or does not start, print one line that says why."""
    state = PartialState()
    try:
        if state.num_processes > 1:
            raise ValueError(f"it samples for one process only, here are {state.num_processes}")
        return VllmEngine(model, stage)
    except ImportError as error:
        reason = f"vLLM cannot be imported ({error}): pip install vllm=={VERSION}"
    except Exception as error:  # vLLM raises errors of many kinds; the run can do without it
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = f"vLLM does not start: {line[:300]}"
    state.print(f"model.sampling=vllm: {reason}; fast sampling is used")
    return None
