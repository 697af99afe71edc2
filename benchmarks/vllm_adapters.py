"""Ways to sample with an adapter in vLLM: speed, start and refresh, without any checkpoint.

    python benchmarks/vllm_adapters.py WAY --output benchmarks/results/vllm_adapters.json

GPT-OSS 20B in the released shape with vLLM's own made-up weights, which measure speed as trained ones
do: 16 prompts of 743 to 956 tokens, 8 completions of 192 tokens each. One way a process, as vLLM
gives memory back only at its end; each adds its figures to the file.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from common.files import read_json, write_json_atomic  # noqa: E402
from gptoss import mxfp4  # noqa: E402
from gptoss.vllm_engine import ENVIRONMENT, SMALL_SHARE  # noqa: E402

LAYERS, EXPERTS, WIDTH, RANK = 24, 32, 2880, 16
GRAPHS = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
WAYS: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "mxfp4_marlin_compiled": (True, True, {"compilation_config": {"cudagraph_mode": "FULL_DECODE_ONLY"}}),
    "mxfp4_triton_graphs": (True, True, {**GRAPHS, "moe_backend": "triton_unfused"}),
    "16bit_attention_only": (False, False, GRAPHS),
}
"""Name to: experts in MXFP4, adapter on experts too, vLLM's settings."""


def write_model(folder: Path, packed: bool) -> None:
    """Write the released model's config.json; vLLM makes the weights up."""
    from transformers import GptOssConfig

    config = GptOssConfig(
        num_hidden_layers=LAYERS, num_local_experts=EXPERTS, hidden_size=WIDTH, intermediate_size=WIDTH,
        vocab_size=201088, head_dim=64, num_attention_heads=64, num_key_value_heads=8,
        num_experts_per_tok=4, sliding_window=128, eos_token_id=200002, pad_token_id=199999,
    ).to_dict()
    config |= {"architectures": ["GptOssForCausalLM"], "dtype": "bfloat16"}
    config |= {"quantization_config": mxfp4.CONFIG} if packed else {}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_zero_adapter(folder: Path, with_experts: bool) -> None:
    """Write an adapter of zeros, whose slots are overwritten afterwards."""
    shapes = {"self_attn.q_proj": (4096, WIDTH), "self_attn.k_proj": (512, WIDTH),
              "self_attn.v_proj": (512, WIDTH), "self_attn.o_proj": (WIDTH, 4096)}
    if with_experts:
        shapes |= {"mlp.experts.base_layer": (2 * WIDTH, WIDTH), "mlp.experts": (WIDTH, WIDTH)}
    tensors = {}
    for layer in range(LAYERS):
        for name, (num_out, num_in) in shapes.items():
            rank = RANK * (EXPERTS if "experts" in name else 1)
            key = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{key}A.weight"] = torch.zeros(rank, num_in, dtype=torch.bfloat16)
            tensors[f"{key}B.weight"] = torch.zeros(num_out, rank, dtype=torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


def overwrite_slots(served: Any) -> None:
    """Write random factors into every slot, as a refresh does."""
    for name, module in served.named_modules():
        if "experts" in name and hasattr(module, "w13_lora_a_stacked"):
            a = [module.w13_lora_a_stacked[0][0], module.w2_lora_a_stacked[0][0]]
            b = [module.w13_lora_b_stacked[0][0], module.w2_lora_b_stacked[0][0]]
        elif name.endswith(("qkv_proj", "o_proj")) and hasattr(module, "lora_a_stacked"):
            a, b = ([slot[0, 0] for slot in part] for part in (module.lora_a_stacked, module.lora_b_stacked))
        else:
            continue
        a, b = [torch.randn_like(x) * 0.02 for x in a], [torch.randn_like(x) * 0.002 for x in b]
        module.set_lora(0, a, b) if len(a) > 1 else module.set_lora(0, a[0], b[0])
    torch.cuda.synchronize()


def measure(way: str, work: Path) -> dict[str, Any]:
    """Start vLLM in one way and time it."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    packed, with_experts, settings = WAYS[way]
    write_model(work, packed)
    write_zero_adapter(work, with_experts)
    reach = {} if with_experts else {"lora_target_modules": ["qkv_proj", "o_proj"]}
    begin = time.perf_counter()
    llm = LLM(
        model=str(work), dtype="bfloat16", load_format="dummy", max_model_len=2048, max_num_seqs=128,
        skip_tokenizer_init=True, logprobs_mode="processed_logprobs", enable_flashinfer_autotune=False,
        gpu_memory_utilization=SMALL_SHARE, kv_cache_memory_bytes=10 * 2**30, enable_lora=True,
        max_loras=1, max_lora_rank=RANK, **reach, **settings,
    )
    found: dict[str, Any] = {"ready_s": round(time.perf_counter() - begin, 1)}
    request = LoRARequest("policy", 1, str(work))
    llm.llm_engine.add_lora(request)
    draws = random.Random(0)
    prompts = [[draws.randrange(1000, 150000) for _ in range(draws.randrange(743, 957))] for _ in range(16)]
    rows = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(8)]
    sampling = SamplingParams(
        max_tokens=192, ignore_eos=True, temperature=0.7, logprobs=0, detokenize=False
    )
    for name, adapter in (("first_call", request), ("adapter", request), ("no_adapter", None)):
        begin = time.perf_counter()
        if adapter:
            llm.apply_model(overwrite_slots)
            llm.reset_prefix_cache()
            found["refresh_s"] = round(time.perf_counter() - begin, 3)
        llm.generate(rows, sampling, use_tqdm=False, lora_request=adapter)
        found[f"{name}_tokens_per_s"] = round(len(rows) * 192 / (time.perf_counter() - begin))
    free, total = torch.cuda.mem_get_info()
    return {**found, "device_gib": round((total - free) / 2**30, 1)}


def main() -> None:
    """Measure one way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    facts = read_json(arguments.output, {}) | {"device": torch.cuda.get_device_name(0)}
    with tempfile.TemporaryDirectory() as work:
        facts[arguments.way] = measure(arguments.way, Path(work))
    write_json_atomic(arguments.output, facts)


if __name__ == "__main__":
    main()
