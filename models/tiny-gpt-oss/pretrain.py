"""Make the embedded tiny GPT-OSS: train its tokenizer, then pre-train it on corpus.py's stream.

    python models/tiny-gpt-oss/pretrain.py tokenizer --output models/tiny-gpt-oss
    python models/tiny-gpt-oss/pretrain.py train --tokenizer models/tiny-gpt-oss --output OUT \\
        --max-seconds 480

The model is transformers' own GptOssForCausalLM. On a GPU its experts run through a dense formula
while training (equal to top-k routing, far fewer kernels). Left out: resuming, several devices,
validation on the shipped tasks (this script never reads them).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from corpus_tokens import Batch, batch_stream, build_tokenizer, encode_batches, make_corpus
from safetensors.torch import load_file
from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EVALUATION_SEED = 10_000_019
YARN = {
    "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "beta_fast": 32.0,
    "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096,
}
"""The released model's positions."""


def build_config(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> GptOssConfig:
    """Return the tiny GPT-OSS config: every part of the 20B model, small.

    As released: YaRN, an untied head, grouped queries of width 64.
    """
    return GptOssConfig(
        vocab_size=len(tokenizer),
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=args.head_dim,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=128,
        max_position_embeddings=131_072,
        layer_types=[
            "sliding_attention" if i % 2 == 0 else "full_attention" for i in range(args.layers)
        ],
        rope_parameters=YARN,
        tie_word_embeddings=False,
        # 0.02 never learned to copy; 0.08 does.
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        router_aux_loss_coef=0.0,
        output_router_logits=False,
    )


def dense_experts(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    router_indices: torch.Tensor,
    routing_weights: torch.Tensor,
) -> torch.Tensor:
    """Run every expert on every token [T, H] and weigh by the router; equals the top-k loop."""
    weights = torch.zeros(
        hidden_states.shape[0],
        self.num_experts,
        dtype=routing_weights.dtype,
        device=hidden_states.device,
    )
    weights = weights.scatter(1, router_indices, routing_weights)
    states = hidden_states.expand(self.num_experts, -1, -1)
    gate_up = torch.bmm(states, self.gate_up_proj) + self.gate_up_proj_bias[:, None]
    out = torch.bmm(self._apply_gate(gate_up), self.down_proj) + self.down_proj_bias[:, None]
    return torch.einsum("eth,te->th", out, weights.to(out.dtype)).to(hidden_states.dtype)


def completion_logits(
    model: GptOssForCausalLM, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits [N, V], targets [N]) at the N positions whose next token is trained."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = mask[:, 1:]
    return model.lm_head(hidden[wanted]).float(), ids[:, 1:][wanted]


def batch_loss(model: GptOssForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the trained tokens of ids [B, T], without a host sync."""
    # transformers' own masks copy a number from the host, which CUDA graphs cannot record.
    ones = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device)
    seen = {"full_attention": ones.tril()}
    seen["sliding_attention"] = ones.tril() & ones.triu(1 - model.config.sliding_window)
    masks = {
        name: torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -1e30)[None, None]
        for name, mask in seen.items()
    }
    hidden = model.model(input_ids=ids, attention_mask=masks, use_cache=False)
    hidden = hidden.last_hidden_state[:, :-1]
    targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
    return F.cross_entropy(model.lm_head(hidden).float().flatten(0, 1), targets.flatten())


class GraphedLoss:
    """Forward and backward of one batch, recorded once per shape: so small a model waits on launches.

    Calling it leaves the gradients in the parameters' `grad`, replacing earlier ones.
    """

    def __init__(self, model: GptOssForCausalLM, bf16: bool) -> None:
        self.model, self.bf16 = model, bf16
        self.recorded: dict[torch.Size, tuple[Any, ...]] = {}
        self.pool = torch.cuda.graph_pool_handle()
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        self.gradients = [weight.grad for weight in model.parameters()]

    def _run(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        torch._foreach_zero_(self.gradients)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            loss = batch_loss(self.model, ids, mask)
        loss.backward()
        return loss.detach()

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.shape not in self.recorded:
            static = (ids.clone(), mask.clone())
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._run(*static)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                loss = self._run(*static)
            self.recorded[ids.shape] = (graph, *static, loss)
        graph, static_ids, static_mask, loss = self.recorded[ids.shape]
        static_ids.copy_(ids)
        static_mask.copy_(mask)
        graph.replay()
        return loss.clone()


def plain_loss(model: GptOssForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Do what `GraphedLoss` does, in 32 bits and on any device."""
    model.zero_grad(set_to_none=True)
    loss = batch_loss(model, ids, mask)
    loss.backward()
    return loss.detach()


@torch.no_grad()
def evaluate(model: GptOssForCausalLM, batches: list[Batch], device: str) -> dict[str, float]:
    """Score held-out examples: `exact_match` 1.0 when greedy decoding gives every gold token.

    Greedy decoding equals gold exactly when, fed gold, every next token's argmax is gold's.
    """
    model.eval()
    right = total = loss_sum = tokens = 0
    for ids_array, mask_array in batches:
        ids, mask = (
            torch.from_numpy(ids_array).long().to(device),
            torch.from_numpy(mask_array).to(device),
        )
        logits, targets = completion_logits(model, ids, mask)
        loss_sum += F.cross_entropy(logits, targets, reduction="sum").item()
        tokens += len(targets)
        wrong = torch.zeros_like(mask[:, 1:])
        wrong[mask[:, 1:]] = logits.argmax(-1) != targets
        right += (~wrong.any(1)).sum().item()
        total += len(ids)
    model.train()
    return {"exact_match": right / total, "loss": loss_sum / tokens, "num_examples": total}


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Pre-train; write the model and `pretrain_log.jsonl` to the output folder.

    Returns:
        The last held-out evaluation.

    Raises:
        RuntimeError: The loss is not finite, or the data workers died.
    """
    started = time.monotonic()
    device = "cuda" if torch.cuda.is_available() and args.device == "auto" else "cpu"
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    if device == "cuda":  # a cap makes the allocator give back cached blocks of other batch shapes
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, args.gpu_memory_gib * 2**30 / torch.cuda.mem_get_info()[1])
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.tokenizer)
    stream = batch_stream(
        args.tokenizer, args.seed, args.batch_tokens, args.pool_size, args.workers, args.talks
    )
    config = build_config(tokenizer, args)
    config._attn_implementation = "eager"
    model = GptOssForCausalLM(config)
    if args.init:
        model.load_state_dict(load_file(args.init / "model.safetensors"))
    model.to(device)
    model.set_experts_implementation("eager")
    if device == "cuda":
        ALL_EXPERTS_FUNCTIONS.register("dense", dense_experts)
        model.set_experts_implementation("dense")
    model.train()
    # Tied while most is learned, as copying is found sooner; the released head is a matrix of its own.
    if not args.init:
        model.lm_head.weight = model.model.embed_tokens.weight
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        fused=device == "cuda",
    )
    graphed = device == "cuda" and not args.no_graphs
    take_loss = GraphedLoss(model, bf16=True) if graphed else partial(plain_loss, model)
    first_part = True
    source = encode_batches(
        make_corpus(EVALUATION_SEED, args.talks), tokenizer, args.batch_tokens, args.pool_size
    )
    held_out = [next(source) for _ in range(args.eval_batches)]
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    log = (output / "pretrain_log.jsonl").open("w", encoding="utf-8")

    def note(**values: Any) -> None:
        line = json.dumps(
            {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        )
        print(line, flush=True)
        log.write(line + "\n")
        log.flush()

    note(parameters=sum(p.numel() for p in model.parameters()), device=device, vocab=len(tokenizer))
    train_started = time.monotonic()
    train_seconds = (args.max_seconds or 1e9) - (train_started - started) - args.reserve_seconds
    step = tokens = 0
    next_evaluation = 0.1
    losses: list[torch.Tensor] = []
    while True:
        elapsed = time.monotonic() - train_started
        progress = step / args.max_steps if args.max_steps else elapsed / train_seconds
        if progress >= 1:
            break
        rate = (
            args.learning_rate
            * min(1.0, (step + 1) / args.warmup_steps)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids_array, mask_array = next(stream)
        ids = torch.from_numpy(ids_array).long().to(device, non_blocking=True)
        mask = torch.from_numpy(mask_array).to(device, non_blocking=True)
        if first_part and progress >= args.tied_until:
            # The last part runs in full precision, as the model is used on CPUs.
            first_part = False
            if model.lm_head.weight is model.model.embed_tokens.weight:
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
                optimizer.add_param_group({"params": [model.lm_head.weight], "weight_decay": 0.05})
            take_loss = GraphedLoss(model, bf16=False) if graphed else partial(plain_loss, model)
        loss = take_loss(ids, mask)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss)
        step += 1
        tokens += ids_array.size
        if step % args.log_every == 0:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            if not math.isfinite(mean):
                raise RuntimeError(f"loss became {mean} at step {step}; lower --learning-rate")
            note(step=step, loss=mean, lr=rate, tokens=tokens, seconds=time.monotonic() - started)
        if progress >= next_evaluation:
            next_evaluation += 0.15
            note(step=step, **evaluate(model, held_out, device), seconds=time.monotonic() - started)
            save(model, tokenizer, output)
    with torch.no_grad():  # as they are saved
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    result = evaluate(model, held_out, device)
    peak = torch.cuda.max_memory_reserved() / 2**30 if device == "cuda" else 0.0
    note(
        step=step,
        tokens=tokens,
        final=True,
        **result,
        seconds=time.monotonic() - started,
        gpu_peak_gib=peak,
    )
    save(model, tokenizer, output)
    stream.close()
    log.close()
    return result


def save(model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write 16-bit weights, generation config (both stop tokens), and config under released keys."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    weights = {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()}
    model.save_pretrained(output, state_dict=weights)
    path = output / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    positions = settings.pop("rope_parameters")
    settings |= {
        "dtype": "bfloat16",
        "experts_per_token": settings["num_experts_per_tok"],
        "initial_context_length": positions["original_max_position_embeddings"],
        "rope_theta": positions.pop("rope_theta"),
        "rope_scaling": positions,
        "swiglu_limit": 7.0,
    }
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("tokenizer", help="train the tokenizer")
    one.add_argument("--output", type=Path, required=True, help="folder for tokenizer files")
    one.add_argument("--num-examples", type=int, default=30_000, help="corpus examples to read")
    one.add_argument("--vocab-size", type=int, default=3_072, help="tokens in all")
    one.add_argument("--seed", type=int, default=7, help="corpus seed")
    two = commands.add_parser("train", help="pre-train the model")
    two.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    two.add_argument("--output", type=Path, required=True, help="folder for the model and its log")
    two.add_argument(
        "--max-seconds", type=float, help="wall clock for everything, s; the schedule follows it"
    )
    two.add_argument("--max-steps", type=int, help="instead: a fixed number of steps")
    two.add_argument(
        "--reserve-seconds", type=float, default=10.0, help="kept free for the last evaluation, s"
    )
    two.add_argument(
        "--batch-tokens", type=int, default=20_480, help="tokens a step, padding included"
    )
    two.add_argument(
        "--pool-size", type=int, default=1_024, help="examples sorted by length at a time"
    )
    two.add_argument("--learning-rate", type=float, default=2e-3, help="peak, AdamW")
    two.add_argument("--warmup-steps", type=int, default=200, help="steps to the peak")
    two.add_argument(
        "--tied-until",
        type=float,
        default=0.85,
        help="share of the run with a tied head (and bf16 autocast on a GPU)",
    )
    two.add_argument(
        "--talks", type=float, default=0.0, help="share of examples that are conversations, 0 to 1"
    )
    two.add_argument("--init", type=Path, help="go on from the weights in this folder")
    two.add_argument("--no-graphs", action="store_true", help="run without CUDA graphs")
    two.add_argument("--workers", type=int, default=0, help="data processes; 0 makes data inline")
    two.add_argument("--eval-batches", type=int, default=8, help="held-out batches")
    two.add_argument("--log-every", type=int, default=50, help="steps between log lines")
    two.add_argument(
        "--device",
        choices=("auto", "cpu"),
        default="auto",
        help="auto takes a GPU when there is one",
    )
    two.add_argument("--gpu-memory-gib", type=float, default=38.0, help="at most, on a GPU, GiB")
    two.add_argument("--hidden", type=int, default=256, help="hidden size")
    two.add_argument("--intermediate", type=int, default=128, help="width of one expert")
    two.add_argument(
        "--layers", type=int, default=4, help="even: sliding and full attention alternate"
    )
    two.add_argument("--head-dim", type=int, default=64, help="width of one of 4 heads")
    two.add_argument("--seed", type=int, default=1, help="seed of weights and data")
    args = parser.parse_args(argv)
    if args.command == "train" and (args.max_seconds is None) == (args.max_steps is None):
        parser.error("give exactly one of --max-seconds and --max-steps")
    if args.command == "train" and (args.layers < 2 or args.layers % 2):
        parser.error("--layers must be even, 2 or more: sliding and full attention alternate")
    if args.command == "train" and not (args.tokenizer / "tokenizer.json").is_file():
        parser.error(
            f"{args.tokenizer}/tokenizer.json is missing; run the `tokenizer` command first"
        )
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = parse_args(argv)
    random.seed(args.seed)
    if args.command == "tokenizer":
        build_tokenizer(args.num_examples, args.vocab_size, args.seed).save_pretrained(args.output)
    else:
        train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
