"""GRPO's log-probabilities and adapter gradients by transformers alone, in float32, a row at a time.

    python tests/plain_reference.py CASE.pt FOUND.pt

The yardstick of tests/test_gpu.py, in a process of its own: there Unsloth has not patched
transformers. The adapter is added to the weights of each linear layer, or of each expert.
"""

import re
import sys
from typing import Any

import torch
from torch.func import functional_call
from transformers import GptOssForCausalLM

LORA = re.compile(r"base_model\.model\.(.+)\.lora_A\.default\.weight(_stack)?")
EXPERT = re.compile(r"(.+experts\.\w+_proj)s\.(\d+)")
"""A linear layer per expert; where Unsloth stacks the adapters of all, the first holds the stack."""
FUSED = re.compile(r"(.+mlp\.experts)(\.base_layer)?")
"""One tensor for all experts: PEFT wraps gate_up_proj in down_proj."""


def adapted(model: Any, lora: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Return the model's parameters with the adapter added, by which they can be differentiated."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    each: dict[str, dict[int, torch.Tensor]] = {}
    for name, left in lora.items():
        if (match := LORA.fullmatch(name)) is None:
            continue
        right = lora[name.replace("lora_A", "lora_B")]
        if expert := EXPERT.fullmatch(match[1]):
            delta = (right @ left).mT
            numbered = dict(enumerate(delta)) if match[2] else {int(expert[2]): delta}
            each.setdefault(expert[1], {}).update(numbered)
        elif fused := FUSED.fullmatch(match[1]):
            target = f"{fused[1]}.{'gate_up_proj' if fused[2] else 'down_proj'}"
            # A is [experts * rank, in], B [out, rank * experts] with the experts' number fastest.
            count = len(found[target])
            a = left.unflatten(0, (count, -1))
            b = right.unflatten(1, (-1, count)).permute(2, 0, 1)
            inner = found[f"{fused[1]}.gate_up_proj"].shape[2]
            wide = lora[f"base_model.model.{fused[1]}.base_layer.lora_B.default.weight"].shape[0]
            delta = b @ a if wide != inner else (b @ a).transpose(1, 2)
            found[target] = found[target] + delta * scale
        else:
            found[match[1] + ".weight"] = found[match[1] + ".weight"] + right @ left * scale
    for name, deltas in each.items():
        stacked = torch.stack([deltas[number] for number in range(len(deltas))])
        found[name] = found[name] + stacked * scale
    return found


def main() -> None:
    """Read the case, write `logps` and `gradients` of the policy loss for each of its batches."""
    case = torch.load(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GptOssForCausalLM.from_pretrained(
        case["base"], dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager",
    ).to(device)
    lora = {n: t.float().to(device).requires_grad_() for n, t in case["lora"].items()}
    found = []
    for rows, advantages in case["batches"]:
        num_tokens = sum(len(completion) for _, completion in rows)
        logps = []
        for (prompt, completion), advantage in zip(rows, advantages, strict=True):
            ids = torch.tensor([prompt + completion], device=device)
            output = functional_call(
                model, adapted(model, lora, case["scale"]),
                kwargs={"input_ids": ids, "use_cache": False},
            )
            scaled = (output.logits[0, len(prompt) - 1 : -1] / case["temperature"]).log_softmax(-1)
            row = scaled.gather(1, ids[0, len(prompt):, None])[:, 0]
            (-advantage * row.sum() / num_tokens).backward()
            logps.append(row.detach().cpu())
        gradients = {name: tensor.grad.cpu().clone() for name, tensor in lora.items()}
        found.append({"logps": torch.cat(logps), "gradients": gradients})
        for tensor in lora.values():
            tensor.grad = None
    torch.save(found, sys.argv[2])


if __name__ == "__main__":
    main()
