"""The files under accelerate/ are what accelerate's own parser makes of them, and commands run."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_random
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser
from trl import TrlParser
from trl.scripts import vllm_serve

import accelerate
from train_script import main, parse_arguments

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "accelerate"
COUNTS = (2, 4, 8)


def launch_environment(name: str) -> tuple[object, dict[str, str]]:
    """Return the arguments and the environment that `accelerate launch` makes of a file."""
    words = ["--config_file", str(FOLDER / name), "train_script.py", "--preset", "80gb"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return arguments, prepare_multi_gpu_env(arguments)


def test_folder_holds_these_files_and_does_not_hide_the_package():
    names = {f"ddp_{count}.yaml" for count in COUNTS}
    assert {path.name for path in FOLDER.iterdir()} == names
    # The folder has the package's name: with an __init__.py it would be imported in its place.
    code = "import accelerate; print(accelerate.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert Path(found.strip()) == Path(accelerate.__file__)
    assert not Path(accelerate.__file__).is_relative_to(FOLDER)


@pytest.mark.parametrize("count", COUNTS)
def test_ddp_files_load(count):
    config = load_config_from_file(str(FOLDER / f"ddp_{count}.yaml"))
    assert config.distributed_type == DistributedType.MULTI_GPU
    assert (config.num_processes, config.num_machines) == (count, 1)
    arguments, environment = launch_environment(f"ddp_{count}.yaml")
    assert arguments.multi_gpu and arguments.num_processes == count
    assert arguments.training_script == "train_script.py"
    # The compute type is the run's (`model.dtype`): the launcher must not set one.
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_USE_FSDP" not in environment


def test_files_differ_in_the_count_alone():
    texts = {
        re.sub(
            rf"\b{count}\b(?= GPUs)|(?<=_){count}(?=\.yaml)|(?<=num_processes: ){count}", "N",
            (FOLDER / f"ddp_{count}.yaml").read_text(encoding="utf-8"),
        )
        for count in COUNTS
    }
    assert len(texts) == 1


def documented_commands() -> list[list[str]]:
    """Return the shell commands of docs/MULTI_GPU.md as words, leading assignments left out."""
    text = (ROOT / "docs" / "MULTI_GPU.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in blocks.splitlines())

    def is_assignment(word: str) -> bool:
        return re.match(r"[A-Z_]+=", word) is not None

    return [list(itertools.dropwhile(is_assignment, words)) for words in lines]


def test_documented_commands_are_what_the_launchers_take():
    found = []
    for program, *words in documented_commands():
        found.append(program)
        if program == "torchrun":
            arguments = get_args_parser().parse_args(words)
            script, options = arguments.training_script, arguments.training_script_args
        elif program == "accelerate":
            assert words.pop(0) == "launch"
            place = words.index("--config_file") + 1
            words[place] = str(ROOT / words[place])
            arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
            script, options = arguments.training_script, arguments.training_script_args
        elif program == "trl":
            assert words.pop(0) == "vllm-serve"
            (served,) = TrlParser(vllm_serve.ScriptArguments).parse_args_into_dataclasses(words)
            command = vllm_serve.build_command(served)
            continue
        elif program == "vllm":
            # What TRL's command runs, but for the options that it passes with their defaults.
            options = {word for word in words if word.startswith("--")}
            assert options <= set(command), options - set(command)
            assert words[-6:] == command[-6:]
            continue
        else:
            assert program in ("pip", "python")
            continue
        if script == "train_script.py":
            parse_arguments(options)
    assert found.count("torchrun") >= 4 and found.count("accelerate") == 2 and "trl" in found


def run_pipeline(folder: Path, name: str, batch_size: int, *launcher: str) -> dict:
    """Run the pipeline on the random model, without a launcher in this process; return its adapter."""
    config = tiny_random.tiny_config(folder)
    settings = [
        f"model.model_name={config.model.model_name}", "model.num_threads=1", "model.lora_rank=4",
        "sft.max_steps=2", f"sft.per_device_train_batch_size={batch_size}",
        "sft.learning_rate=1e-2", "sft.warmup_steps=0", "grpo.max_steps=1", "grpo.num_generations=4",
        f"grpo.per_device_train_batch_size={batch_size}",
        "grpo.max_completion_length=8", "evaluation.num_tasks=5", "evaluation.batch_size=2",
        "evaluation.max_new_tokens=8", "evaluation.num_bootstrap=20", "show_progress=false",
    ]
    words = ["--preset", "cpu", "--dataset", config.data.dataset_path]
    words += ["--output-dir", str(folder / name)]
    words += [word for text in settings for word in ("--set", text)]
    if launcher:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [sys.executable, *launcher, "train_script.py", *words], cwd=ROOT, env=environment,
            capture_output=True, text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("done: ") == 1, "more than one process wrote"
    else:
        assert main(words) == 0
    return load_file(folder / name / "final_model" / "adapter_model.safetensors")


def test_training_under_fsdp_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["--preset", "cpu", "--output-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: FSDP") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_end_where_one_ends(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    two = run_pipeline(tmp_path, "two", 4, *torchrun)
    one = run_pipeline(tmp_path, "one", 8)
    rows, wanted = (
        (tmp_path / name / "completions.jsonl").read_text(encoding="utf-8").splitlines()
        for name in ("two", "one")
    )
    assert len(rows) == 3 * 5  # each held-out task once at each of the three stages
    assert (tmp_path / "two" / "sft" / "checkpoint-2" / "rng_state_1.pth").exists()
    assert rows == wanted
    # As in test_two_processes.py: rounding gives about 1e-6 of what training changed.
    names = [name for name in one if "lora_B" in name]  # they start at zero
    moved = torch.cat([one[name].flatten() for name in names]).norm()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in names]).norm()
    assert moved > 0.1 and apart < 1e-4 * moved
