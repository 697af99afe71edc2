"""What to try when GPU memory ran out: every rung is valid, smaller, and the ladder ends."""

import re

import pytest

import configs
from gptoss.memory import next_smaller, smaller_loading, smaller_setting


def preset(name: str, **overrides: object) -> configs.RunConfig:
    overrides = {name.replace("__", "."): value for name, value in overrides.items()}
    return configs.with_overrides(configs.get_preset(name), overrides)


@pytest.mark.parametrize(
    ("config", "doing", "remedy"),
    [
        (preset("80gb"), "GRPO", "--set model.sampling=fast --resume"),
        (preset("80gb", model__sampling="fast"), "GRPO",
         "--set grpo.generation_batch_size=64 --resume"),
        (preset("80gb", model__sampling="fast-resident"), "GRPO",
         "--set model.sampling=fast --resume"),
        (preset("24gb"), "GRPO", "--set grpo.generation_batch_size=32 --resume"),
        # 48 is three steps of 16; half of it is no whole step.
        (preset("24gb", grpo__generation_batch_size=48), "GRPO",
         "--set grpo.generation_batch_size=16 --resume"),
        # Seven steps of 12 a call: three a call would not end where a checkpoint lies.
        (preset("24gb", grpo__per_device_train_batch_size=4, grpo__gradient_accumulation_steps=3,
                grpo__num_generations=4, grpo__generation_batch_size=84), "GRPO",
         "--set grpo.generation_batch_size=12 --resume"),
        (preset("24gb", grpo__generation_batch_size=16), "GRPO",
         "--set model.sampling_rows=32 --resume"),
        # A step of 4 completions holds no group of 8; calls of 8, 16, ... do.
        (preset("24gb", grpo__per_device_train_batch_size=2, grpo__gradient_accumulation_steps=2,
                grpo__generation_batch_size=24), "GRPO",
         "--set grpo.generation_batch_size=8 --resume"),
        (preset("24gb", grpo__generation_batch_size=16, model__sampling_rows=8), "GRPO",
         "--set grpo.per_device_train_batch_size=1 "
         "--set grpo.gradient_accumulation_steps=16 --resume"),
        (preset("24gb", grpo__per_device_train_batch_size=6, grpo__generation_batch_size=48,
                model__sampling="plain"), "GRPO",
         "--set grpo.per_device_train_batch_size=3 "
         "--set grpo.gradient_accumulation_steps=16 --resume"),
        (preset("t4"), "GRPO", "--set grpo.max_completion_length=256"),
        (preset("t4", grpo__max_completion_length=200), "GRPO",
         "a GPU with more memory, or --preset cpu (the small model that ships here)"),
        (preset("24gb"), "SFT",
         "--set sft.per_device_train_batch_size=1 "
         "--set sft.gradient_accumulation_steps=16 --resume"),
        (preset("24gb", sft__per_device_train_batch_size=3), "SFT",
         "--set sft.per_device_train_batch_size=1 "
         "--set sft.gradient_accumulation_steps=24 --resume"),
        (preset("24gb", sft__per_device_train_batch_size=1), "SFT",
         "--set model.lora_reach=attention"),
        (preset("80gb", model__sampling="fast", sft__per_device_train_batch_size=1), "SFT",
         "--set model.offload_embedding=true --resume"),
        (preset("24gb", sft__per_device_train_batch_size=1, model__lora_reach="attention"), "SFT",
         "--preset t4, or a GPU with more memory"),
        (preset("24gb"), "evaluation", "--set evaluation.batch_size=32 --resume"),
        (preset("80gb", model__sampling="fast", model__load_in_4bit=False, evaluation__batch_size=1),
         "evaluation", "--set model.load_in_4bit=true"),
    ],
)
def test_the_next_smaller_setting_is_named(config, doing, remedy):
    assert smaller_setting(config, doing) == remedy


@pytest.mark.parametrize("doing", ["SFT", "GRPO", "evaluation"])
@pytest.mark.parametrize("name", ["80gb", "24gb", "t4"])
@pytest.mark.parametrize("changes", [
    {}, {"model.sampling": "fast-resident", "model.load_in_4bit": False},
    {"grpo.num_generations": 4, "grpo.per_device_train_batch_size": 4,
     "grpo.gradient_accumulation_steps": 3, "grpo.generation_batch_size": 84},
])
def test_following_the_advice_ends_at_a_smaller_preset(name, doing, changes):
    config = configs.with_overrides(configs.get_preset(name), changes)
    effective = config.grpo.completions_per_step, config.sft.per_device_train_batch_size * (
        config.sft.gradient_accumulation_steps)
    seen = [config]
    while options := re.findall(r"--set (\S+)=(\S+)", smaller_setting(config, doing)):
        # As text, the way a user types it; an invalid one raises ConfigError.
        config = configs.with_overrides(config, dict(options))
        assert config not in seen and len(seen) < 40
        seen.append(config)
    assert next_smaller(config, doing) == {}
    assert "preset" in smaller_setting(config, doing)
    # The optimizer's batch is never changed in the name of memory.
    assert effective == (config.grpo.completions_per_step, config.sft.per_device_train_batch_size * (
        config.sft.gradient_accumulation_steps))


def test_following_preset_after_preset_ends_at_a_larger_gpu():
    names, name = [], "80gb"
    while name != "cpu":
        names.append(name)
        config = configs.get_preset(name)
        while changes := next_smaller(config, "GRPO"):
            config = configs.with_overrides(config, changes)
        name = re.search(r"--preset (\w+)", smaller_setting(config, "GRPO")).group(1)
    assert names == ["80gb", "24gb", "t4"]


def test_what_to_try_when_the_model_alone_does_not_fit():
    model = configs.get_preset("80gb").model
    assert smaller_loading(model, with_sampling=False) == "--set model.offload_embedding=true"
    assert smaller_loading(model, with_sampling=True) == "--set model.sampling=fast"
    fast = configs.get_preset("24gb").model
    assert smaller_loading(fast, with_sampling=True) == "--set model.sampling=plain"
    smallest = configs.get_preset("t4").model
    for with_sampling in (False, True):
        assert smaller_loading(smallest, with_sampling).startswith("a smaller preset")
