"""Settings: defaults the README promises, checks that name the field, overrides, presets."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import configs
from common import versions
from configs import ConfigError, GrpoStage, ModelStage, RunConfig, get_preset, with_overrides


def test_defaults_are_the_promised_ones():
    config = RunConfig()
    assert configs.dataset_path == config.data.dataset_path == "dataset.jsonl"
    assert config.output_dir == "outputs/tau_bench_rl"
    model, sft, grpo = config.model, config.sft, config.grpo
    assert (model.max_seq_length, model.lora_rank, model.load_in_4bit) == (2048, 16, True)
    assert model.offload_embedding
    assert (sft.num_train_epochs, sft.learning_rate, sft.warmup_steps) == (1, 2e-4, 10)
    assert (grpo.num_train_epochs, grpo.learning_rate, grpo.temperature) == (3, 5e-6, 0.7)
    assert grpo.max_completion_length == 512
    for stage in (sft, grpo):
        assert stage.per_device_train_batch_size * stage.gradient_accumulation_steps == 16


@pytest.mark.parametrize("name", ["cpu", "t4", "24gb", "80gb"])
def test_presets_are_valid_and_named(name):
    config = get_preset(name)
    assert config.preset == name
    assert sum(config.data.fractions) == pytest.approx(1)
    assert json.loads(config.to_json())["preset"] == name


def test_cpu_preset_fits_a_cpu():
    config = get_preset("cpu")
    assert config.model.device == "cpu" and config.model.dtype == "float32"
    assert not config.model.load_in_4bit and config.model.num_threads > 0
    assert config.evaluation.num_tasks >= 512


def test_auto_is_resolved():
    assert get_preset("auto").preset in ("cpu", "t4", "24gb", "80gb")
    assert configs.describe_device().startswith("preset auto is ")


def fake_gpus(monkeypatch, gib, capability, count=1, driver=False):
    """Make torch see GPUs of this memory and compute capability; None is a machine without."""
    import torch

    properties = SimpleNamespace(
        name="GPU", total_memory=int((gib or 0) * 2**30), major=capability[0], minor=capability[1])
    monkeypatch.setattr(versions, "driver_lists_gpu", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gib is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.mark.parametrize(
    ("gib", "capability", "preset", "reason"),
    [
        (None, (0, 0), "cpu", "no CUDA GPU is visible"),
        (7.8, (8, 6), "cpu", "has 7.8 GiB, too little for 20 B"),
        (11.9, (8, 6), "cpu", "has 11.9 GiB, too little"),
        (15.9, (6, 0), "cpu", "compute capability 6.0 is too old"),  # P100
        (14.6, (7, 5), "t4", "attention-only adapter"),  # T4
        (16.0, (8, 9), "t4", "attention-only adapter"),
        (20.0, (8, 6), "t4", "attention-only adapter"),  # GRPO of 24gb took 19.2 on top of CUDA's own
        (22.0, (8, 6), "24gb", "adapter on the experts"),  # A10
        (22.5, (8, 9), "24gb", "adapter on the experts"),  # L4
        (24.0, (8, 6), "24gb", "adapter on the experts"),
        (32.0, (7, 0), "t4", "no bfloat16"),  # V100
        (44.5, (7, 5), "t4", "no bfloat16"),  # Quadro RTX 8000
        (39.4, (8, 0), "24gb", "adapter on the experts"),
        (44.5, (8, 9), "24gb", "adapter on the experts"),
        (79.2, (9, 0), "80gb", "large generate calls"),
        (119.7, (12, 1), "80gb", "large generate calls"),  # DGX Spark
        (139.8, (9, 0), "80gb", "large generate calls"),
    ],
)
def test_auto_goes_by_the_gpu_and_says_why(monkeypatch, gib, capability, preset, reason):
    fake_gpus(monkeypatch, gib, capability)
    assert get_preset("auto").preset == preset
    told = configs.describe_device()
    assert told.startswith(f"preset auto is {preset} here: ") and reason in told and "\n" not in told
    assert "docs/MULTI_GPU.md" not in told


def test_auto_with_several_gpus_goes_by_the_first_and_says_so(monkeypatch):
    fake_gpus(monkeypatch, 14.6, (7, 5), count=2)
    told = configs.describe_device()
    assert told.startswith("preset auto is t4 here: the first of 2 GPUs, GPU has 14.6 GiB")
    assert "docs/MULTI_GPU.md" in told


@pytest.mark.parametrize(
    ("installed", "cause"),
    [("2.11.0", "the driver is older than torch's CUDA 13 needs (driver 580 or later"),
     ("2.13.0+cpu", "it is built for CPUs only: pip uninstall torch, then pip install -r ")],
)
def test_auto_says_that_torch_cannot_use_the_gpu(monkeypatch, installed, cause):
    fake_gpus(monkeypatch, None, (0, 0), driver=True)
    monkeypatch.setattr("common.versions.installed", lambda name: installed)
    told = configs.describe_device()
    assert told.startswith("preset auto is cpu here: torch cannot use the GPU, ") and cause in told
    assert told.endswith("; until then the small model that ships here is trained")
    assert "no CUDA GPU" not in told and "\n" not in told


@pytest.mark.parametrize(("name", "sampling"), [("24gb", "fast"), ("80gb", "vllm")])
def test_presets_with_fast_sampling_are_only_picked_with_bfloat16(name, sampling):
    """`t4` is for float16, which has no fast sampling; the others would be refused there."""
    assert get_preset(name).model.sampling == sampling
    t4 = get_preset("t4").model
    assert (t4.dtype, t4.sampling) == ("float16", "plain")


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_preset("cpu").sft.learning_rate = 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sft.learning_rate": "-1"}, "sft.learning_rate is -1.0"),
        ({"sft.max_steps": "many"}, "sft.max_steps=many: expected int"),
        ({"sft.max_step": "1"}, "unknown field 'sft.max_step'"),
        ({"ppo.max_steps": "1"}, "unknown stage in 'ppo.max_steps'"),
        ({"model": "x"}, "unknown field 'model'"),
        ({"show_progress": "perhaps"}, "show_progress=perhaps: expected bool"),
        ({"model.lora_reach": "all"}, "model.lora_reach is 'all'"),
        ({"data.train_fraction": "0.95"}, "data.validation_fraction"),
        ({"grpo.num_generations": "5"}, "grpo.num_generations is 5"),
        ({"grpo.num_generations": "1"}, "grpo.num_generations is 1"),
        ({"grpo.generation_batch_size": "24"}, "grpo.generation_batch_size is 24"),
        ({"grpo.max_completion_length": "4096"}, "grpo.max_completion_length is 4096"),
        ({"grpo.early_stopping_patience": "2", "grpo.eval_steps": "0"}, "grpo.eval_steps"),
        ({"grpo.max_kl": "0.1", "grpo.beta": "0"}, "grpo.beta"),
        ({"grpo.tool_reward_weight": "0", "grpo.outcome_reward_weight": "0"}, "tool_reward_weight"),
        ({"grpo.save_total_limit": "1"}, "grpo.save_total_limit is 1"),
        ({"seed": "-1"}, "run.seed"),
        ({"seed": "2147483648"}, "run.seed"),
        ({"preset": "80gb"}, "unknown field 'preset'"),
        ({"grpo.lr_scheduler_type": "cosin"}, "grpo.lr_scheduler_type is 'cosin'"),
        ({"grpo.learning_rate": "inf"}, "grpo.learning_rate is inf"),
        ({"sft.num_train_epochs": "inf", "sft.max_steps": "-1"}, "sft.num_train_epochs is inf"),
        ({"grpo.beta": "nan"}, "grpo.beta is nan"),
    ],
)
def test_a_wrong_setting_is_named(overrides, message):
    with pytest.raises(ConfigError) as caught:
        with_overrides(get_preset("24gb"), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_preset_is_one_line():
    with pytest.raises(ConfigError, match="unknown preset 'gpu'; choose one of auto, cpu"):
        get_preset("gpu")


def test_overrides_are_converted_and_checked_together():
    config = with_overrides(get_preset("24gb"), {
        "grpo.learning_rate": "1e-5", "seed": "7", "merge_model": "false", "sft.max_steps": 3,
        "grpo.num_generations": "4", "grpo.per_device_train_batch_size": "4",
        "evaluation.num_tasks": None,
    })
    assert (config.grpo.learning_rate, config.seed, config.merge_model) == (1e-5, 7, False)
    assert config.sft.max_steps == 3
    assert config.evaluation == get_preset("24gb").evaluation


def test_steps_per_generation():
    stage = GrpoStage(generation_batch_size=64)
    assert (stage.completions_per_step, stage.steps_per_generation) == (16, 4)
    assert GrpoStage().steps_per_generation == 1


@pytest.mark.parametrize("name", ["24gb", "80gb"])
def test_gpu_presets_share_prompts_in_plan_mode_and_keep_16_rows_a_step(name):
    """Agent mode has no group that shares a prompt; t4 was measured padded."""
    plan, agent = get_preset(name), get_preset(name, "agent")
    assert plan.grpo.shared_prefix and not agent.grpo.shared_prefix
    assert not get_preset("t4").grpo.shared_prefix
    for config in (plan, agent):
        sft = config.sft
        assert config.grpo.completions_per_step == 16
        assert sft.per_device_train_batch_size * sft.gradient_accumulation_steps == 16


def test_every_field_has_a_docstring():
    source = open(configs.__file__, encoding="utf-8").read().splitlines()
    for stage in (ModelStage, configs.DataStage, configs.SftStage, GrpoStage,
                  configs.EvaluationStage):
        for field in dataclasses.fields(stage):
            line = next(i for i, text in enumerate(source) if text.startswith(f"    {field.name}:"))
            assert source[line + 1].strip().startswith('"""'), field.name


def test_importing_settings_imports_no_torch():
    code = "import sys, configs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
