"""Fast sampling computes what the model computes, and samples what it should."""

from pathlib import Path

import pytest
import torch
from torch import nn

from configs import ModelStage
from gptoss.decoder import Decoder, Prefix
from gptoss.engine import (
    RowNoise,
    Sampling,
    attach_fast_generate,
    choose_tokens,
    detach_fast_generate,
)
from gptoss.generation import complete
from gptoss.load import compare_logits, load_model, logits_on, merge_and_save
from gptoss.moe_kernels import attend_reference, grouped_reference
from gptoss.weights import Experts, find_core
from tests.test_model import randomize_lora
from tests.tiny_random import make_model_dir
from training.monitor import SamplingEntropy

LENGTHS = (300, 300, 7, 150, 128, 127, 129)
"""Prompt lengths around and beyond the sliding window of 128."""


def make_stage(tmp_path_factory, **changes) -> ModelStage:
    folder = make_model_dir(tmp_path_factory.mktemp("base"))
    settings = {
        "model_name": str(folder), "load_in_4bit": False, "dtype": "float32", "device": "cpu",
        "lora_rank": 4, "lora_alpha": 12, "gradient_checkpointing": False,
        "experts_implementation": "eager", **changes,
    }
    return ModelStage(**settings)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    model, tokenizer = load_model(make_stage(tmp_path_factory))
    randomize_lora(model)
    with torch.no_grad():
        for layer in find_core(model).model.layers:
            layer.self_attn.sinks.normal_(mean=1.0)
    return model.eval(), tokenizer


@pytest.fixture
def prompts(loaded) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left; the first two are equal, as in a GRPO group."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 200, (n,), generator=generator) for n in LENGTHS]
    rows[1] = rows[0]
    ids = torch.full((len(rows), max(LENGTHS)), loaded[1].pad_token_id)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, -len(row):] = row
        mask[index, -len(row):] = 1
    return ids, mask


def log_probs_of_both(model, lengths=(300, 40, 129), total=340) -> float:
    """Largest difference of log-probabilities: prefill and steps against the model's forward."""
    generator = torch.Generator().manual_seed(2)
    decoder = Decoder(model)
    decoder.refresh()
    rows = [torch.randint(0, 200, (total,), generator=generator) for _ in lengths]
    cache = decoder.new_cache(len(rows), total)
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[index, :length] = row[:length]
    positions = torch.tensor(lengths)
    every = torch.arange(len(rows))
    ours = [decoder.prefill(ids, positions, cache, every, every)]
    for _ in range(total - max(lengths)):
        tokens = torch.stack([row[at] for row, at in zip(rows, positions, strict=True)])
        ours.append(decoder.step(tokens, positions, cache))
        positions = positions + 1
    worst = 0.0
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        with torch.no_grad():
            theirs = model(input_ids=row[None]).logits[0].log_softmax(-1)
        mine = torch.stack([logits[index] for logits in ours]).log_softmax(-1)
        expected = theirs[length - 1 : length - 1 + len(ours)]
        worst = max(worst, (mine - expected).abs().max().item())
    return worst


def test_log_probs_equal_the_models_own(loaded):
    assert log_probs_of_both(loaded[0]) < 1e-4


def test_log_probs_without_adapter(loaded):
    model = loaded[0]
    with model.disable_adapter():
        assert log_probs_of_both(model) < 1e-4


def test_log_probs_with_yarn_and_grouped_heads(tmp_path: Path):
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        num_hidden_layers=3, hidden_size=48, intermediate_size=40, head_dim=16, vocab_size=220,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=3,
        sliding_window=128, initializer_range=0.08,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    assert config.rope_parameters["rope_type"] == "yarn"
    model = GptOssForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    assert log_probs_of_both(model) < 1e-4


def test_refresh_takes_over_a_training_step(loaded):
    model, _ = loaded
    decoder = Decoder(model)
    decoder.refresh()
    ids, length = torch.tensor([[5, 6, 7]]), torch.tensor([3])
    row = torch.tensor([0])

    def read() -> torch.Tensor:
        return decoder.prefill(ids, length, decoder.new_cache(1, 8), row, row)

    before = read()
    name, parameter = next((n, p) for n, p in model.named_parameters() if "q_proj.lora_B" in n)
    saved = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(0.5)
    assert torch.equal(before, read()), name
    decoder.refresh()
    after = read()
    expected = model(input_ids=ids).logits[:, -1]
    with torch.no_grad():
        parameter.copy_(saved)
    assert not torch.allclose(before, after)
    assert torch.allclose(after, expected, atol=1e-4)


def test_greedy_generate_equals_transformers(loaded, prompts):
    model, _ = loaded
    ids, mask = prompts
    settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    theirs = model.generate(input_ids=ids, attention_mask=mask, **settings)
    fast = attach_fast_generate(model, max_rows=3)
    ours = model.generate(input_ids=ids, attention_mask=mask, **settings)
    detach_fast_generate(model)
    assert ours.shape[1] >= theirs.shape[1]
    assert torch.equal(ours[:, : theirs.shape[1]], theirs)
    assert model.generate != fast


def test_generation_config_and_stop_tokens(loaded, prompts):
    from transformers import GenerationConfig

    model, tokenizer = loaded
    ids, mask = prompts
    free = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 1, "eos_token_id": [10_000]}
    attach_fast_generate(model)
    full = model.generate(input_ids=ids, attention_mask=mask, **free)
    stop = full[0, ids.shape[1] + 4].item()
    config = GenerationConfig(**{**free, "eos_token_id": [stop]})
    cut = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    detach_fast_generate(model)
    for row_full, row_cut in zip(full[:, ids.shape[1]:], cut[:, ids.shape[1]:], strict=True):
        ends = (row_full == stop).nonzero()
        end = ends[0].item() if len(ends) else len(row_full) - 1
        assert torch.equal(row_cut[: end + 1], row_full[: end + 1])
        assert (row_cut[end + 1 :] == 1).all()


def test_batch_ends_with_its_last_row(loaded):
    model, _ = loaded
    ids = torch.tensor([[5, 6, 7]] * 2)
    settings = {"max_new_tokens": 200, "do_sample": False, "pad_token_id": 1}
    attach_fast_generate(model)
    first = model.generate(input_ids=ids, **settings, eos_token_id=[10_000])[0, 3].item()
    output = model.generate(input_ids=ids, **settings, eos_token_id=[first])
    detach_fast_generate(model)
    assert output.shape[1] < 3 + 40


@pytest.mark.parametrize("largest, expected", [(256, 1), (8, 2)])
def test_a_small_model_decodes_on_one_thread(loaded, monkeypatch, largest, expected):
    model, _ = loaded
    monkeypatch.setattr("gptoss.engine.ONE_THREAD_SIZE", largest)
    fast, seen = attach_fast_generate(model), []
    step, threads = fast.decoder.step, torch.get_num_threads()
    fast.decoder.step = lambda *parts: seen.append(torch.get_num_threads()) or step(*parts)
    torch.set_num_threads(2)
    try:
        ids = torch.tensor([[5, 6, 7]])
        model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, pad_token_id=1, eos_token_id=[10_000])
        assert seen == [expected] * 2 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        detach_fast_generate(model)


def test_samples_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampling = Sampling(max_new_tokens=1, temperature=0.7)
    drawn = choose_tokens(logits.repeat(40_000, 1), sampling)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, (logits / 0.7).softmax(-1), atol=0.01)


def test_seeded_rows_do_not_depend_on_the_rows_beside_them(loaded, prompts):
    model, _ = loaded
    ids, mask = prompts
    settings = {"max_new_tokens": 12, "do_sample": True, "pad_token_id": 1, "eos_token_id": [10**6]}
    generate = attach_fast_generate(model)

    def sample(rows: list[int], seeds: list[int] | None) -> torch.Tensor:
        generate.row_seeds = seeds
        return model.generate(input_ids=ids[rows], attention_mask=mask[rows], **settings)

    whole = sample(list(range(7)), list(range(7)))
    halves = [sample([4, 0, 1], [4, 0, 1]), sample([2, 3, 5, 6], [2, 3, 5, 6])]
    for rows, half in zip(([4, 0, 1], [2, 3, 5, 6]), halves, strict=True):
        assert half.equal(whole[rows])
    assert not whole[0].equal(whole[1]), "two completions of one prompt draw alike"
    torch.manual_seed(0)
    unseeded = sample(list(range(7)), None)
    assert not unseeded.equal(whole) and not sample(list(range(7)), None).equal(unseeded)
    detach_fast_generate(model)


def test_seeded_draws_follow_the_distribution():
    logits = torch.tensor([float("-inf"), 0.0, 1.0, 2.0])
    noise = RowNoise(range(100))
    drawn = torch.cat([
        choose_tokens(logits.repeat(100, 1), Sampling(1, temperature=0.7), noise) for _ in range(400)
    ])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, (logits / 0.7).softmax(-1), atol=0.01) and not shares[0]


def test_seeded_draws_do_not_feel_the_rounding_of_logits():
    """Of 20,000 draws none moves; compared with cumulative probabilities some would."""
    torch.manual_seed(0)
    first, second, moved = RowNoise(range(100)), RowNoise(range(100)), 0
    for _ in range(200):
        logits = 3 * torch.randn(100, 3072)
        rounded = logits + 5e-6 * torch.randn(100, 3072)
        ours, theirs = (
            choose_tokens(scores, Sampling(1), noise)
            for scores, noise in ((logits, first), (rounded, second))
        )
        moved += int((ours != theirs).sum())
    assert not moved


@pytest.mark.parametrize("sampled", [False, True])
def test_rows_that_ended_are_decoded_no_further(loaded, prompts, monkeypatch, sampled):
    model, _ = loaded
    ids, mask = prompts
    settings = {"max_new_tokens": 60, "do_sample": sampled, "temperature": 1.5, "pad_token_id": 256,
                "eos_token_id": list(range(0, 256, 12))}
    generate = attach_fast_generate(model)
    decoded, step = [], generate.decoder.step

    def count(tokens, *others):
        decoded.append(len(tokens))
        return step(tokens, *others)

    monkeypatch.setattr(generate.decoder, "step", count)

    def sample(rows: list[int]) -> torch.Tensor:
        generate.row_seeds = rows
        output = model.generate(input_ids=ids[rows], attention_mask=mask[rows], **settings)
        return output[:, ids.shape[1]:]

    whole = sample(list(range(7)))
    sizes = list(decoded)
    for row in range(7):
        alone = sample([row])[0]
        assert alone.equal(whole[row, : len(alone)]) and (whole[row, len(alone):] == 256).all()
    detach_fast_generate(model)
    assert sizes[0] == 7 and sizes[-1] < 7
    lengths = (whole != 256).sum(1)
    assert lengths.min() < lengths.max() and sum(sizes) < 7 * (lengths.max() - 1)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [({"top_k": 2}, {1, 2}), ({"top_p": 0.5}, {2}), ({"top_p": 0.8}, {1, 2}),
     ({"temperature": 0.0}, {2})],
)
def test_truncated_sampling(changes: dict, allowed: set[int]):
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).repeat(500, 1)
    drawn = choose_tokens(logits, Sampling(max_new_tokens=1, **changes))
    assert set(drawn.tolist()) == allowed


class SplitExperts(nn.Module):
    """Experts as one linear layer each, the layout of the pre-quantized 20B checkpoint."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self.num_experts, self.alpha, self.limit = fused.num_experts, fused.alpha, fused.limit
        lists = {"gate_up_projs": "gate_up_proj", "down_projs": "down_proj"}
        for name, source in lists.items():
            weight, bias = fused.get_parameter(source), fused.get_parameter(f"{source}_bias")
            layers = nn.ModuleList(nn.Linear(w.shape[0], w.shape[1]) for w in weight)
            for layer, w, b in zip(layers, weight, bias, strict=True):
                layer.weight.data, layer.bias.data = w.data.T.contiguous(), b.data.clone()
            self.add_module(name, layers)

    def forward(self, hidden, indices, weights):
        out = torch.zeros_like(hidden)
        for slot in range(indices.shape[1]):
            for expert in range(self.num_experts):
                at = (indices[:, slot] == expert).nonzero()[:, 0]
                x = self.gate_up_projs[expert](hidden[at])
                gate = x[:, ::2].clamp(max=self.limit)
                up = x[:, 1::2].clamp(-self.limit, self.limit)
                glu = (up + 1) * gate * torch.sigmoid(gate * self.alpha)
                out[at] += self.down_projs[expert](glu) * weights[at, slot, None]
        return out


@pytest.fixture(scope="module")
def split_model(tmp_path_factory: pytest.TempPathFactory):
    from peft import LoraConfig, get_peft_model

    stage = make_stage(tmp_path_factory)
    model, tokenizer = load_model(stage, trainable=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj_bias.normal_(std=0.1)
            layer.mlp.experts.down_proj_bias.normal_(std=0.1)
            layer.mlp.experts = SplitExperts(layer.mlp.experts)
    targets = r".*(q_proj|k_proj|v_proj|o_proj|gate_up_projs\.\d+|down_projs\.\d+)"
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=targets))
    randomize_lora(model)
    return model.eval(), tokenizer, stage


def test_split_layout_decodes_equal(split_model):
    assert Experts(find_core(split_model[0]).model.layers[0].mlp.experts).split
    assert log_probs_of_both(split_model[0]) < 1e-4


def test_split_layout_merges_equal(split_model, tmp_path: Path):
    model, tokenizer, stage = split_model
    folder = merge_and_save(model, tokenizer, tmp_path / "merged", stage)
    merged, _ = load_model(
        ModelStage(model_name=str(folder), device="cpu", experts_implementation="eager"),
        trainable=False,
    )
    texts = ["<|start|>user<|message|>return W1", "9"]
    difference = compare_logits(
        logits_on(model, tokenizer, texts), logits_on(merged, tokenizer, texts)
    )
    assert difference["max_abs_diff"] < 1e-4


def test_float16_is_refused(loaded):
    model = find_core(loaded[0])
    half = type(model)(model.config).half()
    with pytest.raises(ValueError, match="bfloat16 or float32"):
        attach_fast_generate(half)


def test_reference_kernels_on_edge_shapes():
    x, weight = torch.randn(3, 4), torch.randn(2, 4, 5)
    out = grouped_reference(x, weight, torch.tensor([0, 0, 3]), None, None, None)
    assert torch.allclose(out, x @ weight[1])
    query, cache = torch.randn(1, 2, 4), torch.randn(1, 1, 6, 4)
    sinks = torch.tensor([50.0, -50.0])
    out = attend_reference(query, cache, cache, sinks, torch.tensor([1]), 0.5).view(2, 4)
    assert torch.allclose(out[0], torch.zeros(4), atol=1e-6), "the sink takes all attention"
    assert torch.allclose(out[1], cache[0, 0, 0], atol=1e-6), "one filled slot takes the rest"


def test_forward_rows_are_limited_for_one_call_only():
    from types import SimpleNamespace

    from training.trl_private import limit_forward_rows

    seen = []
    args = SimpleNamespace(unsloth_grpo_mini_batch=None)
    trainer = SimpleNamespace(args=args)
    trainer._get_per_token_logps_and_entropies = lambda model, input_ids, keep: seen.append(
        (len(input_ids), args.unsloth_grpo_mini_batch, keep)
    )
    limit_forward_rows(trainer, 8)
    trainer._get_per_token_logps_and_entropies(None, torch.zeros(20, 3), keep=2)
    assert seen == [(20, 3, 2)]
    assert args.unsloth_grpo_mini_batch is None


def test_trl_samples_through_it(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load_model(make_stage(tmp_path_factory, sampling="fast"))
    calls = []
    fast = model.generate

    def counted(**kwargs):
        output = fast(**kwargs)
        calls.append(tuple(output.shape))
        return output

    model.generate = counted
    rows = Dataset.from_list([{"prompt": f"<|start|>user<|message|>task {n}"} for n in range(4)])
    trainer = GRPOTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows,
        reward_funcs=[lambda completion_ids, **_: [float(len(set(c))) for c in completion_ids]],
        args=GRPOConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4, num_generations=4,
            gradient_accumulation_steps=1, steps_per_generation=2, max_completion_length=8,
            max_steps=4, report_to="none", save_strategy="no", bf16=False, use_cpu=True,
            learning_rate=1e-2, beta=0.0, disable_tqdm=True, gradient_checkpointing=False,
            router_aux_loss_coef=0.0, logging_steps=1, temperature=0.7,
        ),
    )
    trainer.train()
    assert [shape[0] for shape in calls] == [8, 8], "two generate calls of eight completions"
    ratios = [h["clip_ratio/region_mean"] for h in trainer.state.log_history if "loss" in h]
    # Old log-probabilities are the trainer's own, so the first step after sampling is on policy.
    assert ratios[0] == 0.0


class Listener:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.puts = self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()
        self.puts += 1

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_a_streamer_hears_each_token_up_to_the_stop(loaded, num_tokens):
    model, tokenizer = loaded
    fast = attach_fast_generate(model)
    ids = torch.tensor([[1, 2, 3]])
    settings = {"max_new_tokens": num_tokens, "pad_token_id": tokenizer.pad_token_id}
    listener = Listener()
    output = fast(input_ids=ids, streamer=listener, **settings)
    assert listener.tokens == output[0].tolist() and listener.ended == 1
    assert listener.puts == 1 + num_tokens, "the prompt at once, then token by token"
    if num_tokens == 9:
        stop = output[0, 5].item()
        listener = Listener()
        fast(input_ids=ids, streamer=listener, eos_token_id=[stop], **settings)
        length = 3 + output[0, 3:].tolist().index(stop) + 1
        assert listener.tokens == output[0, :length].tolist(), "no padding after the stop"
    detach_fast_generate(model)


def test_entropy_is_that_of_the_sampled_tokens(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    fast = attach_fast_generate(model)
    torch.manual_seed(0)
    settings = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 9, "top_k": 5}
    output = fast(input_ids=ids, pad_token_id=tokenizer.pad_token_id, **settings)
    entropies = []
    for row in output:
        scores = (model(input_ids=row[None]).logits[0].float() / 0.7).log_softmax(-1)
        per_token = -(scores.exp() * scores).sum(-1)
        stops = torch.isin(row[3:], torch.tensor(model.generation_config.eos_token_id)).nonzero()
        length = int(stops[0]) + 1 if len(stops) else 9
        entropies.append(per_token[2 : 2 + length])
    expected = torch.cat(entropies).mean().item()
    assert fast.mean_entropy == pytest.approx(expected, rel=1e-4)
    fast(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert fast.mean_entropy == pytest.approx(expected, rel=1e-4)
    for given, wanted in (({}, fast.mean_entropy), ({"entropy": 9.0}, 9.0)):
        SamplingEntropy().on_log(None, None, None, logs=given, model=model)
        assert given == {"entropy": wanted}
    detach_fast_generate(model)


def test_next_logits_are_those_of_the_models_own_forward(loaded):
    model, tokenizer = loaded
    prompts = ["<|start|>user<|message|>cancel #W12", "x" * 300, "7"]
    own = logits_on(model, tokenizer, prompts)
    fast = attach_fast_generate(model)
    calls = []
    forward, model.forward = model.forward, lambda *a, **k: calls.append(a)
    difference = compare_logits(own, logits_on(model, tokenizer, prompts))
    model.forward = forward
    assert not calls and fast is model.generate
    assert difference["max_abs_diff"] < 1e-4 and difference["same_top_token"] == 1.0
    detach_fast_generate(model)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_kept_prefix_changes_no_token_and_no_log_probability(loaded, monkeypatch, sampled):
    """Three turns of conversations that grow within, across and beyond the sliding window."""
    model, _ = loaded
    generate = attach_fast_generate(model)
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(0, 256, 12)))
    monkeypatch.setattr(model.generation_config, "pad_token_id", 1)
    generator = torch.Generator().manual_seed(3)

    def draw(length: int) -> list[int]:
        return torch.randint(2, 256, (length,), generator=generator).tolist()

    prompts, prefixes = [draw(n) for n in (5, 120, 127, 128, 300)], [Prefix() for _ in range(5)]
    read, extend = [], generate.decoder.extend
    generate.decoder.extend = lambda ids, *others: (read.append(ids.numel()), extend(ids, *others))[1]
    for turn in range(3):
        settings = (16, 1.3 if sampled else None, range(5))
        whole = complete(model, prompts, *settings)
        found = complete(model, prompts, *settings, prefixes)
        for ours, theirs, prompt, prefix in zip(found, whole, prompts, prefixes, strict=True):
            assert ours.ids == theirs.ids
            assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)
            # The last token has been chosen, not read.
            assert prefix.ids == prompt + ours.ids[:-1]
        prompts = [
            prompt + one.ids[:-1] + draw(n)
            for prompt, one, n in zip(prompts, found, (3, 40, 1, 150, 9), strict=True)
        ]
    assert len(read) == 2 and max(read) < 5 * 160, "later turns read what is new"
    prefixes[0].ids[0] += 1
    assert complete(model, prompts, *settings, prefixes)[0].ids == complete(model, prompts, *settings)[0].ids
    detach_fast_generate(model)


def test_padding_beside_a_kept_prefix_may_lie_beyond_the_last_position(loaded, monkeypatch):
    """A long conversation with a short answer, beside a short one with a long answer."""
    model, _ = loaded
    generate = attach_fast_generate(model)
    prompts, prefixes = [[5] * 90, [7] * 4], [Prefix(), Prefix()]
    complete(model, prompts, 1, None, None, prefixes)
    prompts = [prompts[0] + [9], prompts[1] + [11] * 60]
    whole = complete(model, prompts, 2)
    tables = tuple(table[:100] for table in generate.decoder._tables)
    monkeypatch.setattr(generate.decoder, "_tables", tables)
    found = complete(model, prompts, 2, None, None, prefixes)
    assert [one.ids for one in found] == [one.ids for one in whole]
    detach_fast_generate(model)
