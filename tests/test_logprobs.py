"""The log-probabilities of the GRPO update are those of a plain forward, and of the sampler.

In float32 on a CPU they agree to rounding; `benchmarks/gpu_rollouts.py` makes the same comparison
on a GPU, in bfloat16, with a yardstick beside it.
"""

import resume_run
import tiny_random
import torch

from benchmarks.gpu_rollouts import compare_logprobs
from envs.retail import RetailDatabase
from training.grpo import build_grpo_trainer
from training.model import load_model

TOLERANCE = 1e-4
"""Largest difference of a token's log-probability in float32."""
PAIRS = ("update_to_plain", "sampler_to_plain", "sampler_to_update")


def test_update_sampler_and_plain_forward_agree(tmp_path):
    config = tiny_random.tiny_config(
        tmp_path, model__sampling="fast", grpo__learning_rate=1e-2, grpo__temperature=0.7
    )
    model, tokenizer = load_model(config.model)
    trainer = build_grpo_trainer(
        model, tokenizer, tiny_random.make_tasks(12), RetailDatabase.load(), config, [],
        resume_run.make_spread_rewards,
    )
    batches = []
    prepare = trainer._generate_and_score_completions

    def keep(rows):
        batches.append(prepare(rows))
        return batches[-1]

    trainer._generate_and_score_completions = keep
    trainer.train()
    trained = [p for name, p in model.named_parameters() if "lora_B.default" in name]
    assert max(p.abs().max() for p in trained) > 1e-3, "the adapter must be one that was trained"
    figures = compare_logprobs(model, model.generate, trainer, batches[-1])
    assert figures["tokens"] > 20
    assert all(figures[pair]["max"] < TOLERANCE for pair in PAIRS), figures
    # A sampler that kept the adapter of an earlier step is told apart.
    model.generate.decoder.refresh = lambda: None
    torch.nn.init.normal_(trained[0])
    figures = compare_logprobs(model, model.generate, trainer, batches[-1])
    assert figures["update_to_plain"]["max"] < TOLERANCE < figures["sampler_to_plain"]["max"]
