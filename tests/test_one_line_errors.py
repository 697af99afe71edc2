"""What a user sees when something is wrong: one line that says what to do, before time is spent."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import tiny_random
import torch
from safetensors.torch import load_file, save_file

import task_tester
import train_script
from common import versions
from common.files import RunError, is_complete, mark_complete
from configs import ModelStage
from gptoss import load as model_module
from gptoss.load import load_model, save_adapter
from gptoss.preflight import ModelError
from training import pipeline

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    tiny_random.tiny_config(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_dir(folder: Path) -> Path:
    config = tiny_random.tiny_config(folder)
    return save_adapter(*load_model(config.model), folder / "adapter")


def train_words(folder: Path, *more: str) -> list[str]:
    return ["--preset", "cpu", "--dataset", str(folder / "tasks.jsonl"), "--output-dir",
            str(folder / "run"), "--set", f"model.model_name={folder / 'model'}", *more]


def error_of(capsys, words: list[str], code: int = 1) -> str:
    """Run a command that must fail with one line; return the line."""
    assert train_script.main(words) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def refuse_to_load(*args, **kwargs):
    raise AssertionError("a model was loaded although the command cannot succeed")


# -- packages ----------------------------------------------------------------------------------


def test_another_version_than_the_pin_is_told_first_and_tried(folder, tmp_path, capsys, monkeypatch):
    for name in ("requirements.txt", "requirements-cpu.txt"):
        (tmp_path / name).write_text("trl==0.1\ntransformers==5.17.0\n")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    words = train_words(folder, "--set", "model.model_name=models/none")
    assert train_script.main(words) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: trl ") and "WRONG, the pin is 0.1: pip install -r" in first
    assert second.startswith("error: models/none: no such folder")


GOOD = {
    "torch": "2.11.0+cu130", "trl": "1.14.2", "transformers": "5.17.0", "peft": "0.21.2",
    "accelerate": "1.15.0", "datasets": "4.8.5", "tensorboard": "2.21.0", "matplotlib": "3.11.2",
}


@pytest.mark.parametrize(
    ("gpu", "changed", "told"),
    [
        (False, {}, ""),
        (True, {}, ""),
        (False, {"trl": "1.15.0"}, "trl 1.15.0: training crashes on a machine without triton"),
        (True, {"trl": "1.15.0"}, ""),  # ran on an H100
        (True, {"trl": "1.16.0"}, "trl 1.16.0: Unsloth refuses it"),
        (False, {"trl": "1.16.0"}, ""),  # ran on a CPU
        (True, {"datasets": "5.0.0"}, "datasets 5.0.0: Unsloth refuses it"),
        (False, {"datasets": "5.2.0"}, ""),
        (False, {"datasets": "4.6.1"}, "datasets 4.6.1: TRL refuses it"),
        (True, {"transformers": "5.23.0"}, "transformers 5.23.0: Unsloth refuses it"),
        (True, {"torch": "2.15.0+cu130"}, "torch 2.15.0+cu130: Unsloth refuses it"),
        (False, {"matplotlib": None}, "matplotlib is not installed"),
        (True, {"peft": None}, "peft is not installed"),
    ],
)
def test_versions_that_are_known_to_break(monkeypatch, tmp_path, gpu, changed, told):
    monkeypatch.setattr(versions, "ROOT", tmp_path)  # without an environment that make made
    monkeypatch.setattr(versions, "installed", lambda name: (GOOD | changed).get(name))
    found = versions.find_broken(gpu)
    if not told:
        assert found == ""
        return
    file_name = "requirements.txt" if gpu else "requirements-cpu.txt"
    assert found.startswith(told) and found.endswith(f"pip install -r {file_name}")
    assert "\n" not in found


def test_the_environment_that_make_made_is_named_where_it_is_not_active(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "installed", lambda name: None)
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    assert versions.find_broken(False) == "torch is not installed: pip install -r requirements-cpu.txt"
    (tmp_path / ".venv" / "bin" / "activate").touch()
    assert versions.find_broken(False) == "torch is not installed: source .venv/bin/activate"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert versions.find_broken(False) == "torch is not installed: pip install -r requirements-cpu.txt"


def test_a_version_known_to_break_ends_the_command_and_the_notebook(folder, capsys, monkeypatch):
    installed = versions.installed
    monkeypatch.setattr(
        versions, "installed", lambda name: "1.15.0" if name == "trl" else installed(name))
    monkeypatch.setattr(versions, "has_gpu_stack", lambda: False)
    monkeypatch.setattr(pipeline, "load_model", refuse_to_load)
    error = error_of(capsys, train_words(folder))
    assert "trl 1.15.0: training crashes" in error and "pip install -r requirements-cpu.txt" in error
    with pytest.raises(RunError, match="trl 1.15.0"):
        pipeline.prepare_run(tiny_random.tiny_config(folder))


# -- hardware ----------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there, so nothing is refused")
@pytest.mark.parametrize("command", [[], ["chat"], ["export"]])
def test_20b_without_a_gpu(folder, capsys, command):
    name = "unsloth/gpt-oss-20b"
    words = {
        0: train_words(folder, "--set", f"model.model_name={name}"),
        1: [*command, "--model", name],
    }[len(command)]
    if command == ["export"]:
        words += ["--format", "mxfp4", "--output", str(folder / "exported")]
    error = error_of(capsys, words)
    assert "needs a CUDA GPU and none is visible; use the preset cpu" in error


@pytest.mark.parametrize(
    ("gib", "in_4bit", "told"),
    [(8.0, True, "needs 14 GiB of GPU memory, Small GPU has 8.0; use the preset cpu"),
     (24.0, False, "has 24.0; use model.load_in_4bit=true or a larger GPU")],
)
def test_too_small_a_gpu(monkeypatch, gib, in_4bit, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Small GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda index: SimpleNamespace(total_memory=gib * 2**30))
    for name in ("_load_transformers", "_load_unsloth", "check_hub"):
        monkeypatch.setattr(model_module, name, refuse_to_load)
    with pytest.raises(ModelError) as caught:
        load_model(ModelStage(model_name="unsloth/gpt-oss-20b", load_in_4bit=in_4bit))
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "function", "told"),
    [
        ("SFT", "run_sft", "try --set sft.per_device_train_batch_size=2 "
         "--set sft.gradient_accumulation_steps=2 --resume"),
        ("GRPO", "run_grpo", "try --set model.sampling_rows=64 --resume"),
        ("evaluation", "evaluate_model", "try --set evaluation.batch_size=1 --resume"),
    ],
)
@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
])
def test_out_of_memory_names_the_next_smaller_setting(
    folder, tmp_path, monkeypatch, stage, function, told, error
):
    run = pipeline.prepare_run(tiny_random.tiny_config(folder, output_dir=str(tmp_path / "run")))

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipeline, function, fail)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    steps = {
        "SFT": lambda: pipeline.train_sft(run, None, None),
        "GRPO": lambda: pipeline.train_grpo(run, None, None),
        "evaluation": lambda: pipeline.evaluate_stage(run, None, None, "base"),
    }
    with pytest.raises(ModelError) as caught:
        steps[stage]()
    assert str(caught.value) == f"{stage} ran out of GPU memory at 3.0 GiB; {told}"


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(("more", "told"), [
    ([], "try --batch-size 64"), (["--batch-size", "6"], "try --batch-size 3"),
    (["--batch-size", "1"], "try a GPU with more memory"),
])
def test_out_of_memory_in_evaluate_names_the_option(
    folder, adapter_dir, tmp_path, capsys, monkeypatch, more, told
):
    monkeypatch.setattr("training.evaluation.generate_batch", out_of_memory)
    words = ["evaluate", "--model", str(adapter_dir), "--tasks", str(folder / "tasks.jsonl"),
             "--limit", "2", "--output", str(tmp_path), *more]
    assert task_tester.main(words) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.rstrip().endswith(
        f"evaluation ran out of GPU memory at 0.0 GiB; {told}")


def test_out_of_memory_in_a_chat_and_an_export(adapter_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.chat.stream_answer", out_of_memory)
    monkeypatch.setattr("gptoss.export.logits_on", out_of_memory)
    monkeypatch.setattr("sys.stdin", io.StringIO("Cancel my order.\n"))
    assert train_script.main(["chat", "--model", str(adapter_dir)]) == 0
    told = "ran out of GPU memory at 0.0 GiB; try a GPU with more memory"
    assert f"not sent: answering {told}" in capsys.readouterr().out
    output = tmp_path / "exported"
    words = ["export", "--model", str(adapter_dir), "--format", "16bit", "--output", str(output)]
    assert f"({output} is written) {told}" in error_of(capsys, words)
    assert is_complete(output)


def test_another_runtime_error_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes do not match"):
        with model_module.memory_guard("SFT", "x"):
            raise RuntimeError("CUDA error: shapes do not match")


# -- disk --------------------------------------------------------------------------------------


def test_no_disk_for_the_merge_is_told_before_training(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    monkeypatch.setattr(pipeline, "evaluate_model", refuse_to_load)
    words = train_words(folder, "--output-dir", str(tmp_path / "run"))
    error = error_of(capsys, words)
    assert "merged_model: the merged model needs 0.0 GB of disk, 0.0 GB are free" in error
    assert "choose another --output-dir, or use --set merge_model=false" in error
    # The remedy is one: without the merge the same disk is enough to go on.
    config = tiny_random.tiny_config(folder, output_dir=str(tmp_path / "run"), merge_model=False)
    assert pipeline.load_run_model(pipeline.prepare_run(config))


@pytest.mark.parametrize("below", ["FILE", "FILE/deep"])
def test_an_export_that_cannot_be_written(folder, tmp_path, capsys, below):
    (tmp_path / "FILE").write_text("")
    error = error_of(capsys, ["export", "--model", str(folder / "model"), "--format", "16bit",
                              "--output", str(tmp_path / below)])
    assert "choose another --output" in error


# -- model hub ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "told"),
    [(httpx.ConnectError("[Errno -2] Name or service not known"), "Name or service not known"),
     (httpx.ConnectTimeout(""), "ConnectTimeout"),
     (OSError("401 Client Error\nRepository Not Found"), "(401 Client Error); check")],
)
def test_a_hub_that_does_not_answer_is_asked_once(
    folder, tmp_path, capsys, monkeypatch, failure, told
):
    calls = []

    def model_info(self, name, timeout):
        calls.append((name, timeout))
        raise failure

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_module, "_load_transformers", refuse_to_load)
    error = error_of(capsys, train_words(folder, "--set", "model.model_name=someone/none"))
    assert told in error and "check the network and the name" in error
    assert calls == [("someone/none", 10.0)]


def test_a_cached_model_needs_no_hub(tmp_path, monkeypatch):
    def model_info(*args, **kwargs):
        raise AssertionError("asked although there is a copy here")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--unsloth--gpt-oss-20b-unsloth-bnb-4bit" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    with pytest.raises(AssertionError):  # an empty folder, as a broken download leaves, is no copy
        model_module.check_hub("openai/gpt-oss-20b")
    (snapshot / "config.json").write_text("{}")
    model_module.check_hub("openai/gpt-oss-20b")


# -- checkpoints cut in half -------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "told"),
    [("model.safetensors", "copy the checkpoint again"), ("config.json", "not valid JSON"),
     ("tokenizer.json", "not valid JSON")],
)
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_model_cut_in_half(folder, tmp_path, capsys, monkeypatch, name, told, how):
    monkeypatch.setattr(model_module, "_load_transformers", refuse_to_load)
    damaged = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    if how == "cut":
        cut(damaged / name)
    else:
        (damaged / name).unlink()
        told = "missing"
    for words in (
        train_words(folder, "--set", f"model.model_name={damaged}"),
        ["chat", "--model", str(damaged)],
        ["export", "--model", str(damaged), "--format", "16bit", "--output", str(tmp_path / "out")],
    ):
        error = error_of(capsys, words)
        assert str(damaged / name) in error and told in error and "again" in error


def test_a_model_that_lacks_tensors_gets_no_random_ones(folder, tmp_path, capsys):
    damaged = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    tensors = load_file(damaged / "model.safetensors")
    for gone, told in (
        ("model.norm.weight", "lacks 1 tensors, such as model.norm.weight; copy"),
        # Told before anything is loaded, by whichever library.
        ("model.layers.1.self_attn.q_proj.weight", "lacks the tensor model.layers.1.self_attn.q_proj"),
    ):
        del tensors[gone]
        save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
        assert f"{damaged}: {told}" in error_of(capsys, ["chat", "--model", str(damaged)])


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_cut_in_half(adapter_dir, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(model_module, "_load_transformers", refuse_to_load)
    damaged = Path(shutil.copytree(adapter_dir, tmp_path / "final_model"))
    cut(damaged / name)
    error = error_of(capsys, ["chat", "--model", str(damaged)])
    assert str(damaged / name) in error and "again" in error


@pytest.mark.parametrize(("name", "text", "told"), [
    ("config.json", "{}", "config.json: lacks model_type; copy"),
    ("config.json", "[]", "config.json: not a JSON object; copy"),
    ("config.json", '{"model_type": "gpt_oss"}', "config.json: lacks num_hidden_layers; copy"),
    ("config.json", '{"model_type": "gpt_oss", "num_hidden_layers": "2"}', "num_hidden_layers is '2'; copy"),
    ("config.json", '{"model_type": "x", "num_hidden_layers": 2}', "cannot be loaded: ValueError: The"),
    ("tokenizer.json", "{}", "tokenizer.json: lacks model; copy"),
    ("tokenizer.json", '{"model": {"a": 1}}', "cannot be loaded: KeyError: 'added_tokens'; check"),
    ("tokenizer_config.json", "[]", "cannot be loaded: TypeError: list indices must be"),
    ("model.safetensors.index.json", "{}", "index.json: lacks weight_map; copy"),
    ("model.safetensors.index.json", '{"weight_map": []}', "index.json: lacks weight_map; copy"),
    ("model.safetensors", "\x01" + 7 * "\0" + "\xff", "model.safetensors: cut short or damaged"),
])
def test_a_model_with_wrong_json(folder, tmp_path, capsys, name, text, told):
    damaged = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    (damaged / name).write_bytes(text.encode("latin-1"))
    error = error_of(capsys, train_words(folder, "--set", f"model.model_name={damaged}"))
    assert str(damaged) in error and told in error
    assert error.endswith("copy the checkpoint again\n")


@pytest.mark.parametrize(("text", "told"), [
    ("{}", "lacks base_model_name_or_path"), ("[]", "not a JSON object"),
    ('{"base_model_name_or_path": null}', "lacks base_model_name_or_path"),
    ('{"base_model_name_or_path": "a", "r": 4}', "lacks lora_alpha"),
])
def test_an_adapter_with_wrong_json(folder, adapter_dir, tmp_path, capsys, text, told):
    damaged = Path(shutil.copytree(adapter_dir, tmp_path / "final_model"))
    (damaged / "adapter_config.json").write_text(text)
    told = f"{damaged}/adapter_config.json: {told}; copy the checkpoint again"
    assert told in error_of(capsys, ["chat", "--model", str(damaged)])
    with pytest.raises(ModelError) as caught:
        load_model(tiny_random.tiny_config(folder).model, adapter_dir=damaged)
    assert str(caught.value) == told


@pytest.mark.parametrize(("text", "told"), [
    ("{", "not valid JSON"), ("\xff", "not valid JSON"),
    ('{"settings": []}', "settings of another version of this project"),
    ('{"settings": {"model": {}}}', "settings of another version of this project: 'data'"),
    ('{"settings": {"model": {"gone": 1}}}', "settings of another version"),
])
def test_a_run_whose_settings_cannot_be_read(folder, adapter_dir, tmp_path, capsys, text, told):
    """Whoever reads them says so in one line that names the file, and leaves it as it is."""
    model = shutil.copytree(adapter_dir, tmp_path / "run" / "final_model")
    path = tmp_path / "run" / "config.json"
    path.write_bytes(text.encode("latin-1"))
    told = f"{path}: {told}"
    assert told in error_of(capsys, ["chat", "--model", str(model)])
    resume = train_words(folder, "--output-dir", str(path.parent), "--resume")
    assert told in error_of(capsys, resume)
    words = ["evaluate", "--model", str(model), "--tasks", str(folder / "tasks.jsonl"),
             "--output", str(tmp_path / "evaluation")]
    assert task_tester.main(words) != 0
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize("text", ["{}", "[]", '{"model_type": "gpt_oss"}'])
def test_a_folder_without_a_run_is_not_resumed(folder, tmp_path, capsys, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    error = error_of(capsys, train_words(folder, "--output-dir", str(tmp_path), "--resume"))
    assert f"{path}: records no run to resume; choose another --output-dir" in error
    assert path.read_text() == text


def test_a_marker_cut_in_half_is_no_whole_folder(tmp_path):
    (tmp_path / "weights").write_text("1234")
    mark_complete(tmp_path)
    assert is_complete(tmp_path)
    cut(tmp_path / "complete.json")
    assert not is_complete(tmp_path)


def test_an_adapter_whose_base_is_gone(adapter_dir, tmp_path, capsys):
    moved = Path(shutil.copytree(adapter_dir, tmp_path / "final_model"))
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "models/not-here"
    (moved / "adapter_config.json").write_text(json.dumps(config))
    assert "models/not-here: no such folder" in error_of(capsys, ["chat", "--model", str(moved)])


# -- machine -----------------------------------------------------------------------------------


def test_a_machine_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pipeline.git_hash() == ""


# -- stopped by hand ---------------------------------------------------------------------------


def test_ctrl_c_ends_a_chat_with_one_line(folder):
    command = [sys.executable, "-u", str(ROOT / "train_script.py"), "chat", "--model",
               str(folder / "model")]
    chat = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=ROOT,
                            # Where the suite runs in the background, a shell has it ignore Ctrl-C.
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for line in chat.stdout:
        if "Ctrl-D" in line:
            break
    time.sleep(0.5)
    chat.send_signal(signal.SIGINT)
    _, error = chat.communicate(timeout=60)
    assert chat.returncode == 130
    assert error.splitlines()[-1] == "stopped" and "Traceback" not in error, error


def test_ctrl_c_in_training_names_resume(folder, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "prepare_run", stop)
    assert train_script.main(train_words(folder)) == 130
    assert capsys.readouterr().err.strip() == "stopped; start again with --resume to go on"
