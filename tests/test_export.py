"""Exports: what transformers loads is what was in memory, and nothing is written by halves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_script
from configs import ModelStage, get_preset
from gptoss import export as export_module
from gptoss import mxfp4
from gptoss.export import (
    CONVERTER,
    check_prompts,
    export_bytes,
    export_model,
    reload_logits,
    round_experts_in_place,
)
from gptoss.load import (
    compare_logits,
    load_for_evaluation,
    load_model,
    logits_on,
    merge_and_save,
    save_adapter,
)
from gptoss.plain import plain_logits
from gptoss.preflight import ModelError, holds_mxfp4_experts, read_json_file
from gptoss.to_gguf import name_tokenizer
from tests.tiny_random import make_tokenizer

PROMPTS = ["<|start|>user<|message|>cancel #W12", "<|start|>assistant", "7"]


@pytest.fixture(scope="module")
def trained(stage: ModelStage):
    model, tokenizer = load_model(stage)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.05)
    return model, tokenizer


@pytest.fixture(scope="module")
def merged_dir(trained, stage: ModelStage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge_and_save(*trained, tmp_path_factory.mktemp("merged"), stage)


@pytest.fixture(scope="module")
def packed_dir(trained, stage: ModelStage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    export_model(*trained, folder, stage, "mxfp4")
    return folder


def test_a_packed_export_computes_what_the_rounded_merge_computes(
    trained, stage: ModelStage, merged_dir: Path, packed_dir: Path
):
    model, tokenizer = load_for_evaluation(str(merged_dir), stage)
    unrounded = logits_on(model, tokenizer, PROMPTS)
    assert round_experts_in_place(model)
    rounded = logits_on(model, tokenizer, PROMPTS)
    exported = plain_logits(str(packed_dir), PROMPTS)
    assert compare_logits(rounded, exported)["max_abs_diff"] < 1e-5
    # Rounding to 4 bits does move the logits: the check above is no comparison of a thing with itself.
    assert compare_logits(unrounded, exported)["max_abs_diff"] > 1e-3
    assert compare_logits(logits_on(*trained, PROMPTS), unrounded)["max_abs_diff"] < 1e-4
    assert not round_experts_in_place(trained[0]), "experts with an adapter are left alone"


def test_a_packed_export_loads_like_any_model(stage: ModelStage, packed_dir: Path):
    model, tokenizer = load_for_evaluation(str(packed_dir), stage)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    difference = compare_logits(
        logits_on(model, tokenizer, PROMPTS), plain_logits(str(packed_dir), PROMPTS))
    assert difference["max_abs_diff"] < 1e-5


def test_names_shapes_and_settings_are_those_of_the_released_model(packed_dir: Path):
    names = read_json_file(packed_dir / "model.safetensors.index.json")["weight_map"]
    prefix = "model.layers.1.mlp.experts."
    shard = load_file(packed_dir / names[prefix + "gate_up_proj_blocks"])
    shapes = {n.removeprefix(prefix): tuple(t.shape) for n, t in shard.items() if prefix in n}
    assert shapes == {
        "gate_up_proj_blocks": (4, 64, 1, 16), "gate_up_proj_scales": (4, 64, 1),
        "gate_up_proj_bias": (4, 64), "down_proj_blocks": (4, 32, 1, 16),
        "down_proj_scales": (4, 32, 1), "down_proj_bias": (4, 32),
    }
    config = read_json_file(packed_dir / "config.json")
    assert config["architectures"] == ["GptOssForCausalLM"]
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert "lm_head" in config["quantization_config"]["modules_to_not_convert"]


def test_an_adapter_alone_loads_on_its_base(trained, stage, tmp_path):
    model, tokenizer = trained
    export_model(model, tokenizer, tmp_path / "out", stage, "adapter")
    again, _ = load_for_evaluation(str(tmp_path / "out"), stage)
    before, after = (logits_on(each, tokenizer, PROMPTS) for each in (model, again))
    assert compare_logits(before, after)["max_abs_diff"] < 1e-5
    base, _ = load_for_evaluation(stage.model_name, stage)
    assert compare_logits(before, logits_on(base, tokenizer, PROMPTS))["max_abs_diff"] > 1e-2


def test_only_an_adapter_can_be_exported_as_one(tmp_path, capsys):
    words = ["export", "--model", "models/tiny-gpt-oss", "--format", "adapter", "--output",
             str(tmp_path / "out")]
    assert train_script.main(words) == 1
    assert "models/tiny-gpt-oss: holds no adapter" in capsys.readouterr().err


@pytest.mark.parametrize("export_format", ["16bit", "mxfp4", "gguf"])
def test_disk_space_is_asked_for_first(trained, stage, tmp_path, monkeypatch, export_format):
    needed = export_bytes(trained[0], torch.float32, packed=export_format != "16bit")
    needed *= 2 if export_format == "gguf" else 1
    disk = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk)
    with pytest.raises(ModelError, match="export needs .* GB of disk, .* GB are free") as caught:
        export_model(*trained, tmp_path / "model", stage, export_format)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    if export_format == "gguf":
        return
    disk.free = needed + 1
    export_model(*trained, tmp_path / "model", stage, export_format)
    written = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    # Beyond the weights there are the headers of the files, of which a tiny model has many.
    assert needed / 1.02 < written < needed / 1.02 + 10_000


def test_an_export_that_fails_leaves_the_earlier_one(trained, stage, tmp_path, monkeypatch):
    export_model(*trained, tmp_path / "model", stage, "16bit")
    before = (tmp_path / "model" / "config.json").read_bytes()

    def refuse(weight):
        raise ValueError("MXFP4 packs 32 neighbours: 40 input columns are no multiple")

    monkeypatch.setattr(mxfp4, "quantize_experts", refuse)
    with pytest.raises(ModelError, match="40 input columns.*use --format 16bit"):
        export_model(*trained, tmp_path / "model", stage, "mxfp4")
    assert (tmp_path / "model" / "config.json").read_bytes() == before


def test_gguf_is_made_by_the_converter_of_llama_cpp(trained, stage, tmp_path: Path):
    """A stand-in converter: no llama.cpp here; what it is given is what llama.cpp documents."""
    converter = tmp_path / CONVERTER
    converter.write_text(
        "import pathlib, sys\n"
        "folder, flag, target = sys.argv[1:]\n"
        "assert flag == '--outfile' and pathlib.Path(folder, 'config.json').exists()\n"
        "pathlib.Path(target).write_bytes(b'GGUF')\n")
    export_model(*trained, tmp_path / "out", stage, "gguf", str(tmp_path))
    assert (tmp_path / "out" / "model.gguf").read_bytes() == b"GGUF"
    assert holds_mxfp4_experts(tmp_path / "out")
    converter.write_text("raise ImportError('No module named gguf')")
    with pytest.raises(ModelError, match="named gguf; use --format mxfp4$"):
        export_model(*trained, tmp_path / "other", stage, "gguf", str(tmp_path))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("model", "named"), [("models/tiny-gpt-oss", True), ("random", False)])
def test_a_vocabulary_that_cuts_text_as_gpt_oss_does_is_named_to_llama_cpp(tmp_path, model, named):
    class TextModel:
        def get_vocab_base_pre(self, tokenizer):
            raise NotImplementedError

    if model == "random":
        make_tokenizer().save_pretrained(tmp_path)
    name_tokenizer(TextModel, tmp_path if model == "random" else Path(model))
    if named:
        assert TextModel().get_vocab_base_pre(None) == "gpt-4o"
    else:
        with pytest.raises(NotImplementedError):
            TextModel().get_vocab_base_pre(None)


def test_gguf_without_llama_cpp_is_told_before_anything_is_loaded(tmp_path, capsys):
    command = ["export", "--model", "models/none", "--format", "gguf", "--output",
               str(tmp_path / "out"), "--llama-cpp", str(tmp_path / "llama.cpp")]
    assert train_script.main(command) == 1
    error = capsys.readouterr().err
    assert "convert_hf_to_gguf.py: missing; git clone https://" in error and error.count("\n") == 1


def test_a_folder_that_transformers_cannot_load_is_one_line(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    with pytest.raises(ModelError, match="transformers cannot load it: ") as caught:
        reload_logits(tmp_path, PROMPTS)
    assert "\n" not in str(caught.value)


def test_the_command_exports_an_adapter_and_a_merged_model(
    trained, merged_dir, tmp_path, capsys, monkeypatch
):
    save_adapter(*trained, tmp_path / "final_model")
    # The random model counts bytes as tokens; the prompts of the shipped policy would take minutes.
    monkeypatch.setattr(export_module, "check_prompts", lambda *_: PROMPTS)
    for source, lines in ((tmp_path / "final_model", 1), (merged_dir, 2)):
        command = ["export", "--model", str(source), "--format", "mxfp4",
                   "--output", str(tmp_path / "out")]
        assert train_script.main(command) == 0
        shown = capsys.readouterr().out
        assert "GB as mxfp4" in shown and shown.count("against the") == lines, shown
        assert "of 3 prompts" in shown
    last = shown.splitlines()[-1]
    assert "experts rounded in memory: same likeliest token in 100%" in last
    assert float(last.split("differ by ")[1].split()[0]) < 1e-5


def test_the_card_of_an_export_is_that_of_complete_weights(trained, tmp_path, monkeypatch):
    """A run's adapter card is not copied; a model without a run gets no card."""
    settings = json.loads(get_preset("cpu").to_json())
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings, "versions": {}}))
    save_adapter(*trained, tmp_path / "final_model")
    (tmp_path / "final_model" / "README.md").write_text("library_name: peft. This folder: LoRA adapter")
    monkeypatch.setattr(export_module, "check_prompts", lambda *_: PROMPTS[2:])
    # In this process: that of its own is part of the tests before and after.
    monkeypatch.setattr(export_module, "reload_logits", lambda folder, prompts: plain_logits(str(folder), prompts))
    for name in ("in", "out"):
        output = tmp_path / name / "model"
        assert export_module.run_export(str(tmp_path / "final_model"), "16bit", str(output)) == 0
        (tmp_path / "config.json").unlink(missing_ok=True)
    card = (tmp_path / "in" / "model" / "README.md").read_text()
    assert 'library_name: "transformers"' in card and "AutoModelForCausalLM" in card
    assert "complete weights, the adapter folded in" in card and "peft" not in card
    assert not (tmp_path / "out" / "model" / "README.md").exists()


def test_fixed_prompts_end_where_models_differ():
    prompts = check_prompts("brief")
    assert len(prompts) == len(set(prompts)) == 7
    assert sum(prompt.endswith("assistant") for prompt in prompts) == 1
    assert sum(prompt.endswith('{"name":"') for prompt in prompts) == 3


@pytest.mark.parametrize(
    ("output", "message"),
    [("SELF", "is the model itself"), ("FULL", "holds something else"), ("FILE", "something else")],
)
def test_nothing_else_is_overwritten(merged_dir, tmp_path, capsys, output, message):
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "thesis.tex").write_text("years of work")
    (tmp_path / "FILE").write_text("more work")
    target = merged_dir if output == "SELF" else tmp_path / output
    command = ["export", "--model", str(merged_dir), "--format", "16bit", "--output", str(target)]
    assert train_script.main(command) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "FULL" / "thesis.tex").exists() and (tmp_path / "FILE").exists()
