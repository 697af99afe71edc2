"""Shared prompts: the values and gradients of TRL's padded pass, and groups that stay whole."""

import pytest
import tiny_dense
import tiny_random
import torch
from plain_reference import adapted
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.llama import modeling_llama
from trl import GRPOTrainer

from common.files import SettingsError
from gptoss.folded import find_groups
from gptoss.generation import complete
from gptoss.load import load_model
from gptoss.weights import find_causal_lm
from training import grpo, shared_prefix, unsloth_prefix
from training.grpo import build_grpo_trainer
from training.rewards import make_reward_functions
from training.shared_prefix import attention_mask_of, pack_rows, take
from training.trl_private import SharedPrefixTrainer

PROMPTS, LENGTHS = (300, 40, 171), ((20, 3, 160, 1), (7, 30, 12, 2), (5, 150))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prefix")


def make_trainer(folder, db, implementation=None, **overrides):
    config = tiny_random.tiny_config(folder, **overrides)
    torch.manual_seed(0)
    model, tokenizer = load_model(config.model)
    if implementation:
        find_causal_lm(model).set_attn_implementation(implementation)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
            if "sinks" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    tasks = tiny_random.make_tasks(8)
    return build_grpo_trainer(model, tokenizer, tasks, db, config, [], make_reward_functions)


def make_batch() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return padded ids and mask of three groups, two of them with prompts beyond the window."""
    generator = torch.Generator().manual_seed(0)
    width, kept = max(PROMPTS), max(map(max, LENGTHS))
    ids, mask = [], []
    for size, lengths in zip(PROMPTS, LENGTHS, strict=True):
        prompt = torch.randint(0, 256, (size,), generator=generator)
        for length in lengths:
            row, seen = torch.zeros(width + kept, dtype=torch.long), torch.zeros(width + kept)
            row[width - size : width] = prompt
            row[width : width + length] = torch.randint(0, 256, (length,), generator=generator)
            seen[width - size : width + length] = 1
            ids.append(row)
            mask.append(seen)
    return torch.stack(ids), torch.stack(mask).long(), kept


def values_and_gradients(trainer, batch_size=None):
    ids, mask, kept = make_batch()
    model = trainer.model
    model.train()
    model.zero_grad()
    logps, entropies, aux = trainer._get_per_token_logps_and_entropies(
        model, ids, mask, kept, batch_size=batch_size, compute_entropy=True
    )
    assert aux is None
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(2))
    (logps * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return logps.detach(), entropies, gradients


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_equal_the_padded_pass(folder, db, checkpointing, batch_size):
    settings = {"model__gradient_checkpointing": checkpointing, "grpo__temperature": 0.7}
    padded = make_trainer(folder, db, "eager", grpo__shared_prefix=False, **settings)
    shared = make_trainer(folder, db, grpo__shared_prefix=True, **settings)
    if checkpointing:
        for trainer in (padded, shared):
            trainer.model.gradient_checkpointing_enable()
    expected, expected_entropies, expected_gradients = values_and_gradients(padded)
    logps, entropies, gradients = values_and_gradients(shared, batch_size)
    mask = make_batch()[1][:, -expected.shape[1]:]
    assert (expected * mask).abs().sum() > 100
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-5, rtol=0)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) == 24
    for name, gradient in expected_gradients.items():
        assert gradient.norm() > 0, name
        assert (gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_the_prompt_is_read_once_and_logits_are_those_of_completions(folder, db):
    trainer = make_trainer(folder, db, grpo__shared_prefix=True)
    ids, mask, kept = make_batch()
    seen = {}
    core = trainer.model.base_model.model
    core.model.embed_tokens.register_forward_hook(lambda m, a, out: seen.update(read=out.shape[:2]))
    core.lm_head.register_forward_hook(lambda m, a, out: seen.update(head=out.shape[:2]))
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, kept)
    rows = [size + sum(lengths) for size, lengths in zip(PROMPTS, LENGTHS, strict=True)]
    assert seen["read"] == (3, max(rows))
    assert seen["head"] == (1, sum(map(sum, LENGTHS)))
    assert not core.lm_head._forward_pre_hooks


def test_the_model_stays_what_it_is_for_everything_else(folder, db):
    shared = make_trainer(folder, db, grpo__shared_prefix=True).model
    padded = make_trainer(folder, db, grpo__shared_prefix=False).model
    ids, mask, _ = make_batch()
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        assert shared(**inputs).logits.equal(padded(**inputs).logits)
    assert "shared_prefix" not in shared.config.to_json_string()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny_dense.FAMILIES)
def test_dense_models_share_prompts_too(folder, db, family, implementation, checkpointing, monkeypatch):
    name = str(tiny_dense.make_model_dir(folder / family, family))
    settings = {
        "model__model_name": name, "model__gradient_checkpointing": checkpointing,
        "grpo__temperature": 0.7, "model__sampling": "fast",
    }

    def found(shared):
        trainer = make_trainer(
            folder, db, grpo__shared_prefix=shared, implementation=implementation, **settings
        )
        assert isinstance(trainer, SharedPrefixTrainer) == shared
        if checkpointing:
            trainer.model.gradient_checkpointing_enable()
        read = []
        embedding = trainer.model.get_input_embeddings()
        embedding.register_forward_hook(lambda m, a, out: read.append(out.shape[:2].numel()))
        return *values_and_gradients(trainer), sum(read)

    *expected, tokens_read = found(False)
    *shared, tokens_shared = found(True)
    seen = make_batch()[1][:, -expected[0].shape[1]:]
    for mine, padded in zip(shared[:2], expected[:2], strict=True):
        torch.testing.assert_close(mine, padded * seen, atol=1e-5, rtol=1e-5)
    for name, gradient in expected[2].items():
        assert gradient.norm() > 0, name
        assert (shared[2][name] - gradient).norm() < 1e-4 * gradient.norm(), name
    rows = [size + sum(lengths) for size, lengths in zip(PROMPTS, LENGTHS, strict=True)]
    assert tokens_shared == 3 * max(rows) and tokens_read == make_batch()[0].numel()


def test_sampling_and_plain_passes_of_a_dense_model_stay_what_they_are(folder, db):
    settings = {"model__model_name": str(tiny_dense.make_model_dir(folder / "llama", "llama")),
                "model__sampling": "fast"}
    shared = make_trainer(folder, db, grpo__shared_prefix=True, **settings)
    padded = make_trainer(folder, db, grpo__shared_prefix=False, **settings)
    ids, mask, kept = make_batch()
    shared._get_per_token_logps_and_entropies(shared.model, ids, mask, kept)
    prompts = [list(range(9)), [5, 6, 7], [5, 6, 7]]
    for _ in range(2):  # fast sampling changes the attention for its own time
        outputs = [t.model(input_ids=ids, attention_mask=mask).logits for t in (shared, padded)]
        assert outputs[0].equal(outputs[1])
        assert complete(shared.model, prompts, 8) == complete(padded.model, prompts, 8)


@pytest.mark.parametrize("reason, said", [
    ("layers", "has layers of conv"), ("flex_attention", "attends by flex_attention"),
    ("unsloth", "under Unsloth it is for GPT-OSS alone"),
])
def test_where_a_dense_model_cannot_share_each_completion_reads_its_prompt(
    folder, db, monkeypatch, capsys, reason, said
):
    settings = {"model__model_name": str(tiny_dense.make_model_dir(folder / "qwen", "qwen"))}
    model = make_trainer(folder, db, grpo__shared_prefix=False, **settings).model
    if reason == "layers":
        model.config.layer_types = ["full_attention", "conv"]
    elif reason != "unsloth":
        model.config._attn_implementation = reason
    config = tiny_random.tiny_config(folder, grpo__shared_prefix=True, **settings)
    monkeypatch.setattr(grpo, "uses_unsloth", lambda stage: reason == "unsloth")
    assert grpo._shared_prefix(model, config) is None
    [line] = capsys.readouterr().out.splitlines()[-1:]
    assert said in line and line.endswith("each completion reads its own prompt")


def test_a_model_that_makes_its_own_masks_gets_one_line(folder, db, monkeypatch):
    settings = {"model__model_name": str(tiny_dense.make_model_dir(folder / "llama", "llama"))}
    trainer = make_trainer(folder, db, grpo__shared_prefix=True, **settings)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **_: None)
    ids, mask, kept = make_batch()
    with pytest.raises(SettingsError, match="--set grpo.shared_prefix=false") as error:
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, kept)
    assert "\n" not in str(error.value)


@pytest.fixture
def unsloth(monkeypatch):
    """Stand-in for Unsloth: attention in training makes its own mask, the trainer its own loss."""

    def own_attention(self, hidden_states, position_embeddings, attention_mask, **kwargs):
        mask = attention_mask
        if self.training:
            steps = torch.arange(hidden_states.shape[1])
            distance = steps[:, None] - steps
            hidden = (distance < 0) | (distance >= (self.sliding_window or len(steps)))
            mask = torch.zeros(distance.shape).masked_fill(hidden, torch.finfo().min)[None, None]
        return stock(self, hidden_states, position_embeddings, mask, **kwargs)

    def own_loss(*_, **__):
        raise AssertionError("the loss is to be TRL's")

    stock = GptOssAttention.forward
    monkeypatch.setattr(GptOssAttention, "forward", own_attention)
    monkeypatch.setattr(GRPOTrainer, "compute_loss", own_loss)
    monkeypatch.setattr(grpo, "uses_unsloth", lambda stage: True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_unsloth_values_and_gradients_equal_the_padded_pass(
    folder, db, request, monkeypatch, checkpointing
):
    settings = {"model__gradient_checkpointing": checkpointing, "grpo__temperature": 0.7}
    expected = values_and_gradients(make_trainer(folder, db, grpo__shared_prefix=False, **settings))
    request.getfixturevalue("unsloth")
    monkeypatch.setattr(unsloth_prefix, "HEAD_TOKENS", 50)
    trainer = make_trainer(folder, db, grpo__shared_prefix=True, **settings)
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    found = values_and_gradients(trainer, batch_size=4)
    for name, gradient in expected[2].items():
        assert (found[2][name] - gradient).norm() < 1e-4 * gradient.norm(), name
    for mine, padded in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(mine, padded, atol=1e-5, rtol=0)
    trainer.model.eval()
    ids, mask, kept = make_batch()
    monkeypatch.setattr(shared_prefix, "selective_log_softmax_and_entropy", None)  # not asked for
    with torch.no_grad():
        read = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, kept)
    torch.testing.assert_close(read[0], expected[0], atol=1e-5, rtol=0)
    assert read[1] is None


def test_under_unsloth_a_run_takes_trls_loss(folder, db, unsloth):
    trainer = make_trainer(folder, db, grpo__shared_prefix=True, grpo__max_steps=1, grpo__beta=0.0)
    assert trainer.train().global_step == 1
    assert trainer.state.log_history[0]["entropy"] > 1


@pytest.mark.parametrize("reason", ["layer", "processes"])
def test_where_unsloth_is_not_as_expected_prompts_are_read_with_completions(
    folder, db, unsloth, monkeypatch, capsys, reason
):
    if reason == "layer":
        monkeypatch.setattr(unsloth_prefix, "LAYER_PARTS", ("q_proj", "sink_weights"))
        said = "GptOssAttention has no sink_weights"
    else:
        monkeypatch.setattr(grpo, "world_size", lambda: 2)
        said = "Unsloth needs one process, this run has 2"
    trainer = make_trainer(folder, db, grpo__shared_prefix=True)
    assert not isinstance(trainer, SharedPrefixTrainer)
    lines = [x for x in capsys.readouterr().out.splitlines() if "shared_prefix" in x]
    assert lines == [f"grpo.shared_prefix is not used: {said}; each completion reads its own prompt"]
    layers = trainer.model.base_model.model.model.layers
    assert not any("forward" in vars(layer.self_attn) for layer in layers)


def test_completions_see_their_prompt_and_themselves_within_the_window():
    ids, mask, kept = make_batch()
    groups = find_groups(ids[:, :-kept], mask[:, :-kept])
    assert groups == [4, 4, 2]
    rows = pack_rows(ids, mask, kept, groups)
    assert rows.width == 300 and rows.prompt_lengths.tolist() == list(PROMPTS)
    number, step = 2, 10
    for window, first in ((None, 0), (128, 300 + step - 127)):
        seen = attention_mask_of(rows, window, torch.float32).completions[number, 0, step] == 0
        assert seen.nonzero()[:, 0].tolist() == list(range(first, 300 + step + 1))
    short = attention_mask_of(rows, None, torch.float32).completions[4, 0, 0] == 0
    assert short.nonzero()[:, 0].tolist() == [*range(40), 300]


def test_gradients_of_a_shared_token_are_added_in_one_order():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        values = torch.randn(1, 8, 64, requires_grad=True)
        index = torch.arange(8).repeat(4096)
        weights = torch.randn(len(index), 64)
        gradients = [
            torch.autograd.grad((take(values, index) * weights).sum(), values)[0] for _ in range(20)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(gradient.equal(gradients[0]) for gradient in gradients)


def test_groups_stay_whole_within_a_step(folder, db):
    settings = {"grpo__per_device_train_batch_size": 4, "grpo__generation_batch_size": 16,
                "grpo__gradient_accumulation_steps": 1, "grpo__num_generations": 4}
    trainer = make_trainer(folder, db, grpo__shared_prefix=True, **settings)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = next(iter(trainer.get_train_dataloader()))
    prompts = []
    for step in range(4):
        trainer._step = step
        inputs = trainer._prepare_inputs(batch)
        groups = find_groups(inputs["prompt_ids"], inputs["prompt_mask"])
        assert groups == [4]
        ids = inputs["prompt_ids"][0][inputs["prompt_mask"][0].bool()]
        prompts.append(trainer.processing_class.decode(ids))
    drawn = list(dict.fromkeys(row["prompt"] for row in batch))
    assert sorted(prompts) == sorted(drawn) and len(drawn) == 4


def test_rewards_stay_with_their_completions(folder, db):
    """After the shuffle every row still has the advantage that its own completion earned."""
    trainer = make_trainer(folder, db, grpo__shared_prefix=True)
    trainer.model.train()
    made = {}
    generate = trainer._generate_and_score_completions

    def remember(batch):
        output = generate(batch)
        output["advantages"] = torch.arange(len(output["advantages"])).float()
        made.update(output)
        return output

    trainer._generate_and_score_completions = remember
    batch = next(iter(trainer.get_train_dataloader()))
    for step in range(2):
        trainer._step = step
        inputs = trainer._prepare_inputs(batch)
        for row, advantage in enumerate(inputs["advantages"].long().tolist()):
            assert inputs["completion_ids"][row].equal(made["completion_ids"][advantage])
            assert inputs["prompt_ids"][row].equal(made["prompt_ids"][advantage])


def test_the_reference_reads_adapters_of_experts_one_by_one_and_stacked():
    """Unsloth stacks those of a layer's experts where they run grouped; see tests/plain_reference.py."""
    base, a, b = torch.zeros(3, 5, 4), torch.randn(3, 2, 5), torch.randn(3, 4, 2)
    name = "base_model.model.model.layers.0.mlp.experts.gate_up_projs.{}.lora_{}.default.weight"
    single = {name.format(n, side): part[n] for n in range(3) for side, part in (("A", a), ("B", b))}
    stacked = {name.format(0, "A") + "_stack": a, name.format(0, "B") + "_stack": b}
    target = "model.layers.0.mlp.experts.gate_up_proj"
    model = torch.nn.Module()
    model.named_parameters = lambda: [(target, base)]
    expected = 2 * (b @ a).mT
    for lora in (single, stacked):
        torch.testing.assert_close(adapted(model, lora, 2.0)[target], expected)
