"""The log-probabilities of the GRPO update are those of a plain forward, and of the sampler.

In float32 on a CPU they agree to rounding; `benchmarks/gpu_rollouts.py` makes the same comparison
on a GPU, in bfloat16, with float32 as the yardstick.
"""

import resume_run
import tiny_random
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from benchmarks.logprobs import (
    compare_logprobs,
    differences,
    forced_logprobs,
    sample_batch,
    within_tolerance,
)
from gptoss.decoder import Decoder
from gptoss.load import load_model
from training.grpo import build_grpo_trainer, run_grpo

TOLERANCE = 1e-4
"""Largest difference of a token's log-probability in float32."""
PAIRS = (
    "update_to_plain", "sampler_to_plain", "sampler_to_update", "plain_to_plain_padded",
    "update_to_exact", "sampler_to_exact", "plain_to_exact",
)


def test_update_sampler_and_plain_forward_agree(tmp_path, db):
    config = tiny_random.tiny_config(
        tmp_path, model__sampling="fast", grpo__learning_rate=1e-2, grpo__temperature=0.7
    )
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(12)
    run_grpo(model, tokenizer, tasks, db, config, make_rewards=resume_run.make_spread_rewards)
    trained = [p for name, p in model.named_parameters() if "lora_B.default" in name]
    assert max(p.abs().max() for p in trained) > 1e-3, "the adapter must be one that was trained"
    before = [p.clone() for p in trained]
    trainer = build_grpo_trainer(
        model, tokenizer, tasks, db, config, [], resume_run.make_spread_rewards
    )
    batch = sample_batch(trainer)
    assert all(torch.equal(p, q) for p, q in zip(trained, before, strict=True)), "no update"
    figures = compare_logprobs(model, model.generate, trainer, batch)
    assert figures["tokens"] > 20
    assert all(figures[pair]["max"] < TOLERANCE for pair in PAIRS), figures
    assert within_tolerance(figures)
    # A sampler that kept the adapter of an earlier step is told apart.
    model.generate.decoder.refresh = lambda: None
    torch.nn.init.normal_(trained[0])
    figures = compare_logprobs(model, model.generate, trainer, batch)
    assert figures["update_to_plain"]["max"] < TOLERANCE < figures["sampler_to_plain"]["max"]
    assert not within_tolerance(figures)


def test_in_bfloat16_the_sampler_is_as_near_to_float32_as_the_plain_forward():
    """At the depth of GPT-OSS 20B, where rounding decides between nearly tied experts."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(
        num_hidden_layers=24, hidden_size=128, intermediate_size=128, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=4,
        vocab_size=512, sliding_window=128,
    )).bfloat16().eval()
    sequences = torch.randint(0, 512, (4, 72))
    prompts, completions = list(sequences[:, :40]), list(sequences[:, 40:])

    @torch.no_grad()
    def forward() -> list[torch.Tensor]:
        logits = model(input_ids=sequences).logits[:, 39:-1].float()
        return list(logits.log_softmax(-1).gather(2, sequences[:, 40:, None])[..., 0])

    plain = forward()
    sampler = forced_logprobs(Decoder(model), prompts, completions, 1.0)
    exact = forced_logprobs(Decoder(model, dtype=torch.float32), prompts, completions, 1.0)
    errors = {
        "plain_to_exact": differences(plain, exact), "sampler_to_exact": differences(sampler, exact)
    }
    assert errors["plain_to_exact"]["mean"] > 10 * TOLERANCE, "there must be rounding to compare"
    assert within_tolerance(errors | {"update_to_exact": errors["plain_to_exact"]}), errors
    model.float()
    assert differences(exact, forward())["max"] < TOLERANCE
