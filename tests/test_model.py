"""Loading, saving, merging: what comes back from disk computes the same; faults are one line."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import versions
from configs import ModelStage
from gptoss import load as model_module
from gptoss.load import (
    compare_logits,
    count_trainable,
    load_for_evaluation,
    load_model,
    logits_on,
    merge_and_save,
    save_adapter,
)
from gptoss.preflight import ModelError, check_environment, count_parameters

PROMPTS = ["<|start|>user<|message|>cancel #W12", "<|start|>assistant", "7"]


def randomize_lora(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every LoRA matrix values, as training would (B starts at zero)."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.05)


@pytest.fixture(scope="module")
def trained(stage: ModelStage):
    model, tokenizer = load_model(stage)
    randomize_lora(model)
    return model, tokenizer


def test_lora_reaches_attention_and_experts(stage: ModelStage):
    model, _ = load_model(stage)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in names)
    assert any("q_proj" in name for name in names)
    assert any("experts" in name for name in names)
    with_experts = count_trainable(model)[0]
    model, _ = load_model(replace(stage, lora_reach="attention"))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and not any("experts" in name for name in names)
    assert count_trainable(model)[0] < with_experts


def test_experts_get_gradients(trained):
    model, tokenizer = trained
    ids = torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "experts" in n and "lora_A" in n]
    assert gradients and all(g is not None and g.abs().sum() > 0 for g in gradients)
    model.zero_grad()


def test_stop_tokens_and_padding_side(trained):
    model, tokenizer = trained
    wanted = tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"])
    assert model.generation_config.eos_token_id == wanted
    assert tokenizer.padding_side == "left"


def test_saved_adapter_comes_back_equal(trained, stage: ModelStage, tmp_path: Path):
    model, tokenizer = trained
    before = logits_on(model, tokenizer, PROMPTS)
    folder = save_adapter(model, tokenizer, tmp_path / "final_model")
    again, tokenizer_again = load_model(stage, adapter_dir=folder)
    assert compare_logits(before, logits_on(again, tokenizer_again, PROMPTS)) == {
        "max_abs_diff": 0.0, "same_top_token": 1.0
    }
    assert count_trainable(again)[0] == count_trainable(model)[0]
    frozen, _ = load_for_evaluation(str(folder), replace(stage, lora_rank=16))
    assert count_trainable(frozen)[0] == 0
    assert compare_logits(before, logits_on(frozen, tokenizer, PROMPTS))["max_abs_diff"] == 0.0


@pytest.mark.parametrize("reach", ["attention", "attention+experts"])
def test_reach_of_an_adapter_is_read_from_its_weights(stage, tmp_path: Path, reach: str):
    model, tokenizer = load_model(replace(stage, lora_reach=reach))
    folder = save_adapter(model, tokenizer, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    # Unsloth writes one regular expression in the place of a list.
    config = json.loads(path.read_text()) | {"target_modules": "(?:.*?(?:self_attn|mlp).*?)"}
    path.write_text(json.dumps(config))
    loaded, _ = load_for_evaluation(str(folder), stage)
    names = [name for name, _ in loaded.named_parameters() if "lora_" in name]
    assert any("experts" in name for name in names) == (reach == "attention+experts")


def test_logits_are_computed_without_compiled_code(stage: ModelStage):
    model, tokenizer = load_model(stage, trainable=False)
    before = logits_on(model, tokenizer, PROMPTS)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model.forward = torch.compile(model.forward, backend=backend)
    assert torch.equal(logits_on(model, tokenizer, PROMPTS), before)
    assert not compiled
    model(input_ids=torch.tensor([[1, 2]]))
    assert compiled, "outside of the comparison it is compiled"


def test_adapter_changes_the_model(trained, stage: ModelStage):
    model, tokenizer = trained
    base, _ = load_model(stage, trainable=False)
    difference = compare_logits(
        logits_on(model, tokenizer, PROMPTS), logits_on(base, tokenizer, PROMPTS)
    )
    assert difference["max_abs_diff"] > 0.01


def test_merged_model_computes_the_same(trained, stage: ModelStage, tmp_path: Path):
    model, tokenizer = trained
    before = logits_on(model, tokenizer, PROMPTS)
    folder = merge_and_save(model, tokenizer, tmp_path / "merged_model", stage)
    merged, tokenizer_again = load_for_evaluation(str(folder), stage)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    difference = compare_logits(before, logits_on(merged, tokenizer_again, PROMPTS))
    assert difference["max_abs_diff"] < 1e-4
    after = logits_on(model, tokenizer, PROMPTS)
    assert torch.equal(before, after), "merging must leave the model in memory as it was"


def test_merge_replaces_an_earlier_merge(trained, stage: ModelStage, tmp_path: Path):
    (tmp_path / "model-99999.safetensors").write_bytes(b"old")
    merge_and_save(*trained, tmp_path, stage)
    assert not (tmp_path / "model-99999.safetensors").exists()


def test_merge_without_disk_space_says_so(trained, stage: ModelStage, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="GB of disk.*merge_model=false"):
        merge_and_save(*trained, tmp_path / "merged", stage)
    assert not (tmp_path / "merged").exists()


def copy_dir(source: str, target: Path) -> Path:
    target.mkdir()
    for path in Path(source).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_missing_folder_is_one_line(stage: ModelStage):
    with pytest.raises(ModelError, match="no such folder") as caught:
        load_model(replace(stage, model_name="models/not-there"))
    assert "\n" not in str(caught.value)


def test_an_error_outside_of_the_loading_call_is_no_loading_error(stage, monkeypatch):
    def fail(*args):
        raise KeyError("ours")

    monkeypatch.setattr("peft.get_peft_model", fail)
    with pytest.raises(KeyError, match="ours"):
        load_model(stage)


@pytest.mark.parametrize("keep", [4, 100, 5000])
def test_truncated_weights_are_found_before_loading(stage: ModelStage, tmp_path: Path, keep: int):
    folder = copy_dir(stage.model_name, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match="model.safetensors.*copy the checkpoint again"):
        load_model(replace(stage, model_name=str(folder)))


def test_missing_shard_is_named(stage: ModelStage, tmp_path: Path):
    folder = copy_dir(stage.model_name, tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00002-of-00002.safetensors: missing"):
        load_model(replace(stage, model_name=str(folder)))


def test_broken_config_is_named(stage: ModelStage, tmp_path: Path):
    folder = copy_dir(stage.model_name, tmp_path / "config")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json: not valid JSON"):
        load_model(replace(stage, model_name=str(folder)))


def test_unreachable_hub_is_one_line(stage: ModelStage, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(model_module, "check_hub", lambda name: None)
    monkeypatch.setattr(model_module, "_load_transformers", refuse)
    with pytest.raises(ModelError, match="check the network") as caught:
        load_model(replace(stage, model_name="someone/small-model"))
    assert "\n" not in str(caught.value)


def hide_gpu(monkeypatch, driver: bool) -> None:
    """Make torch see no GPU, on a machine with or without NVIDIA's driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: name if driver else None)
    monkeypatch.setattr(versions, "driver_lists_gpu", lambda: driver)


def test_20b_without_gpu_is_refused(monkeypatch):
    hide_gpu(monkeypatch, driver=False)
    with pytest.raises(ModelError, match="needs a CUDA GPU.*preset cpu"):
        load_model(ModelStage(model_name="unsloth/gpt-oss-20b"))


def test_a_gpu_that_is_hidden_on_purpose_is_told_as_such(monkeypatch):
    hide_gpu(monkeypatch, driver=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ModelError, match="CUDA GPU and CUDA_VISIBLE_DEVICES= hides the GPU: unset"):
        load_model(ModelStage(model_name="unsloth/gpt-oss-20b"))


@pytest.mark.parametrize("listed", ["GPU 0: Tesla T4 (UUID: GPU-1)\n", "No devices found.\n"])
def test_the_driver_is_asked_whether_there_is_a_gpu(monkeypatch, tmp_path, listed):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{listed}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert versions.driver_lists_gpu() == listed.startswith("GPU")


@pytest.mark.parametrize("error", [
    ValueError("Unsloth: the model does not fit in GPU memory (cuda:0 has 3 GB free)."),
    ValueError("Some modules are dispatched on the CPU or the disk."),
    RuntimeError("CUDA error: out of memory"),
])
def test_a_model_that_does_not_fit_is_no_damaged_checkpoint(stage, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    with pytest.raises(ModelError, match="ran out of GPU memory at .* GiB; try "):
        load_model(stage)


def test_a_gpu_that_is_asked_for_is_not_replaced_by_the_cpu(stage, monkeypatch):
    hide_gpu(monkeypatch, driver=False)
    with pytest.raises(ModelError, match="model.device=cuda needs a CUDA GPU and none is visible"):
        load_model(replace(stage, device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelError, match="needs a CUDA GPU and model.device is cpu"):
        load_model(ModelStage(model_name="unsloth/gpt-oss-20b", device="cpu"))


def test_small_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Small GPU")
    properties = type("Properties", (), {"total_memory": 8 * 2**30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    with pytest.raises(ModelError, match="needs 14 GiB of GPU memory, Small GPU has 8.0"):
        load_model(ModelStage(model_name="unsloth/gpt-oss-20b"))


def test_20b_on_a_gpu_that_torch_cannot_use_is_refused(monkeypatch):
    hide_gpu(monkeypatch, driver=True)
    monkeypatch.setattr(versions, "installed", lambda name: "2.11.0")
    with pytest.raises(ModelError) as caught:
        load_model(ModelStage(model_name="unsloth/gpt-oss-20b"))
    told = str(caught.value)
    assert "torch cannot use the GPU, most likely because the driver is older than" in told
    pin = versions.read_pins(versions.ROOT / "requirements.txt")["torch"]
    assert f"update the driver, or install torch=={pin} built for CUDA 12" in told
    assert "none is visible" not in told and "\n" not in told


@pytest.mark.parametrize("missing", versions.GPU_ONLY)
def test_4bit_on_a_gpu_without_its_packages_is_refused(stage, monkeypatch, missing: str):
    class Loading(Exception):
        pass

    def load(*args):
        raise Loading

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(versions, "installed", lambda name: None if name == missing else "1.0")
    for name in ("_load_transformers", "_load_unsloth"):
        monkeypatch.setattr(model_module, name, load)
    on_gpu = replace(stage, device="auto")
    with pytest.raises(ModelError) as caught:
        load_model(replace(on_gpu, load_in_4bit=True))
    assert str(caught.value) == (
        f"model.load_in_4bit is true and {missing} is not installed: pip install -r "
        "requirements.txt"
    )
    for works in (on_gpu, replace(stage, load_in_4bit=True)):
        with pytest.raises(Loading):
            load_model(works)


def test_adapter_of_other_rank_is_refused(trained, stage: ModelStage, tmp_path: Path):
    folder = save_adapter(*trained, tmp_path / "adapter")
    with pytest.raises(ModelError, match="lora_rank 4, the settings say 8"):
        load_model(replace(stage, lora_rank=8), adapter_dir=folder)
    with pytest.raises(ModelError, match="lora_reach"):
        load_model(replace(stage, lora_reach="attention"), adapter_dir=folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="adapter_model.safetensors"):
        load_model(stage, adapter_dir=folder)


def test_fast_sampling_is_attached_on_request(stage: ModelStage):
    model, _ = load_model(stage)
    assert "generate" not in vars(model)
    model, _ = load_model(replace(stage, sampling="fast", sampling_rows=7))
    assert model.generate.max_rows == 7
    with pytest.raises(ModelError, match="these are float16; use --set model.sampling=plain"):
        load_model(replace(stage, sampling="fast", dtype="float16"))


def test_parameter_counts():
    assert count_parameters("unsloth/gpt-oss-20b") == 20_000_000_000
    assert count_parameters("someone/model") == 0


@pytest.mark.parametrize(
    ("driver", "told", "file_name"),
    [(False, "no CUDA GPU: the small model", "requirements-cpu.txt"),
     (True, "torch cannot use the GPU, most likely because the driver", "requirements.txt")],
)
def test_environment_lines(monkeypatch, driver: bool, told: str, file_name: str):
    hide_gpu(monkeypatch, driver)
    monkeypatch.setattr(versions, "installed", lambda name: "0.1")
    lines = check_environment()
    assert lines[0].startswith("python 3.") and lines[1].startswith(told)
    pin = versions.read_pins(versions.ROOT / file_name)["torch"]
    assert f"torch 0.1 WRONG, the pin is {pin}: pip install -r {file_name}" in lines
