"""Attention on a CPU: outputs, gradients and training steps of transformers' written-out attention."""

from types import SimpleNamespace

import pytest
import torch
from tiny_random import make_model_dir
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from configs import ModelStage
from gptoss.cpu_attention import BLOCK_QUERIES, CPU_ATTENTION, attend_with_sinks
from gptoss.load import load_model
from gptoss.weights import find_causal_lm

HEADS, KV_HEADS, SIZE = 4, 2, 16


def make_mask(real, num_queries, window):
    """Return the additive mask of the last queries over rows whose real tokens are True, `[B, K]`."""
    columns = torch.arange(real.shape[1])
    distance = columns[-num_queries:, None] - columns
    seen = (distance >= 0) & (distance < (window or len(columns))) & real[:, None]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo().min)[:, None]


def attend_and_differentiate(attention, mask, window, num_queries, num_keys, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    given = [draw(3, HEADS, num_queries, SIZE), draw(3, KV_HEADS, num_keys, SIZE),
             draw(3, KV_HEADS, num_keys, SIZE), draw(HEADS)]
    module = SimpleNamespace(sinks=given[3], num_key_value_groups=HEADS // KV_HEADS, training=True)
    mixed, _ = attention(module, *given[:3], mask.to(dtype), scaling=SIZE**-0.5, sliding_window=window)
    weights = torch.randn(mixed.shape, generator=generator)
    return mixed.detach(), *torch.autograd.grad((mixed * weights).sum(), given)


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("window", [None, 5, 128, 200])
@pytest.mark.parametrize("num_queries, num_keys", [(7, 7), (300, 300), (BLOCK_QUERIES, 200), (1, 200)])
def test_outputs_and_gradients_are_those_of_the_written_out_attention(
    side, window, num_queries, num_keys
):
    real = torch.ones(3, num_keys, dtype=torch.bool)
    for row, padding in enumerate((0, 2, num_keys // 2) if side != "none" else ()):
        real[row, slice(padding) if side == "left" else slice(num_keys - padding, None)] = False
    mask = make_mask(real, num_queries, window)
    sizes = (window, num_queries, num_keys)
    expected = attend_and_differentiate(eager_attention_forward, mask, *sizes)
    found = attend_and_differentiate(attend_with_sinks, mask, *sizes)
    assert expected[4].norm() > 1e-3  # the sinks count
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_the_written_out_attention():
    length = 700
    mask = make_mask(torch.ones(3, length, dtype=torch.bool), length, None)
    exact = attend_and_differentiate(eager_attention_forward, mask, None, length, length)
    found, written_out = (
        attend_and_differentiate(attention, mask, None, length, length, torch.bfloat16)
        for attention in (attend_with_sinks, eager_attention_forward)
    )
    for mine, theirs, right in zip(found, written_out, exact, strict=True):
        # Four sums of sinks differ by chance: twice is enough to tell a wrong one.
        assert (mine.float() - right).norm() < 2 * (theirs.float() - right).norm()


def test_a_window_reads_only_the_keys_in_it(monkeypatch):
    seen = []

    def forward(query, key, *others, **settings):
        seen.append((query.shape[2], key.shape[2]))
        return kernel(query, key, *others, **settings)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.setattr("gptoss.cpu_attention._forward", forward)
    length = 3 * BLOCK_QUERIES
    mask = make_mask(torch.ones(3, length, dtype=torch.bool), length, 128)
    attend_and_differentiate(attend_with_sinks, mask, 128, length, length)
    assert seen == [(BLOCK_QUERIES, BLOCK_QUERIES), *[(BLOCK_QUERIES, BLOCK_QUERIES + 127)] * 2]


def adapter_after_steps(folder, implementation, side):
    """Return the adapter's gradients in each of two steps of a model with windows and full layers."""
    torch.manual_seed(0)
    stage = ModelStage(
        model_name=str(folder), load_in_4bit=False, dtype="float32", device="cpu", lora_rank=4,
        gradient_checkpointing=False, experts_implementation="eager", num_threads=1,
    )
    model, _ = load_model(stage)
    core = find_causal_lm(model)
    assert core.config._attn_implementation == CPU_ATTENTION
    core.set_attn_implementation(implementation)
    generator = torch.Generator().manual_seed(1)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "sinks" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    ids = torch.randint(0, 256, (3, 300), generator=generator)
    real = torch.ones_like(ids)
    real[1, slice(200) if side == "left" else slice(100, None)] = 0
    optimizer, gradients = torch.optim.SGD(trained.values(), lr=0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        labels = ids.masked_fill(real == 0, -100)
        model(input_ids=ids, attention_mask=real, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in trained.items()})
        optimizer.step()
    return gradients


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_adapter_learns_the_same(tmp_path, side):
    folder = make_model_dir(tmp_path / "model")
    expected = adapter_after_steps(folder, "eager", side)
    found = adapter_after_steps(folder, CPU_ATTENTION, side)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine) == 24
        for name, gradient in theirs.items():
            assert gradient.norm() > 0, name
            torch.testing.assert_close(mine[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
