"""The log-probabilities of the GRPO update are those of a plain forward, and of the sampler.

In float32 on a CPU they agree to rounding; `benchmarks/gpu_rollouts.py` makes the same comparison
on a GPU, in bfloat16, with a yardstick beside it.
"""

import resume_run
import tiny_random
import torch

from benchmarks.gpu_rollouts import (
    compare_logprobs, forced_logprobs, sample_batch, within_tolerance,
)
from envs.retail import RetailDatabase
from training.decoder import Decoder
from training.grpo import run_grpo
from training.model import load_model
from training.pipeline import Run

TOLERANCE = 1e-4
"""Largest difference of a token's log-probability in float32."""
PAIRS = (
    "update_to_plain", "sampler_to_plain", "sampler_to_update", "plain_to_plain_padded",
    "update_to_exact", "sampler_to_exact", "plain_to_exact",
)


def test_update_sampler_and_plain_forward_agree(tmp_path):
    config = tiny_random.tiny_config(
        tmp_path, model__sampling="fast", grpo__learning_rate=1e-2, grpo__temperature=0.7
    )
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(12)
    run = Run(config, tmp_path, False, tasks, [], [], RetailDatabase.load())
    run_grpo(
        model, tokenizer, tasks, run.db, config, make_rewards=resume_run.make_spread_rewards
    )
    trained = [p for name, p in model.named_parameters() if "lora_B.default" in name]
    assert max(p.abs().max() for p in trained) > 1e-3, "the adapter must be one that was trained"
    before = [p.clone() for p in trained]
    trainer, batch = sample_batch(run, model, tokenizer, config)
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


def test_the_float32_yardstick_is_exact_for_16_bit_weights(stage):
    """A decoder in float32 over bfloat16 weights computes what transformers does in float32."""
    model, tokenizer = load_model(stage, trainable=False)
    model = model.bfloat16()
    ids = torch.tensor([tokenizer("Cancel the order #W1234567.")["input_ids"] * 5])
    half = len(ids[0]) // 2
    prompts, completions = [ids[0, :half], ids[0, : half - 3]], [ids[0, half:], ids[0, half - 3 :]]
    exact = forced_logprobs(Decoder(model, dtype=torch.float32), prompts, completions, 0.7)
    rounded = forced_logprobs(Decoder(model), prompts, completions, 0.7)
    with torch.no_grad():
        logits = model.float()(input_ids=ids).logits[0, :-1]
    wanted = (logits / 0.7).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    for row, completion in zip(exact, completions, strict=True):
        assert (row - wanted[-len(completion) :]).abs().max() < TOLERANCE
    # The yardstick would be of no use if bfloat16 gave the same.
    assert (rounded[0] - exact[0]).abs().max() > 10 * TOLERANCE
