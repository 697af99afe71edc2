"""The notebook keeps its style rules, is committed executed, and runs whole in both modes and on another model."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests import tiny_dense, tiny_random

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "gpt_oss_20b_tau_bench_rl_training.ipynb"
MAX_CELL_LINES = 15
MAX_PARAMETER_LINES = 20
MAX_COLUMNS = 88
MAX_CODE_LINES = 250


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


@pytest.fixture(scope="module")
def code_cells(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def lines_of(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def is_parameters(cell):
    return "parameters" in cell.metadata.get("tags", [])


def test_code_cells_are_short_and_narrow(code_cells):
    for cell in code_cells:
        limit = MAX_PARAMETER_LINES if is_parameters(cell) else MAX_CELL_LINES
        assert len(lines_of(cell)) <= limit, cell.source
        assert max(map(len, cell.source.splitlines())) <= MAX_COLUMNS, cell.source
    assert sum(len(lines_of(cell)) for cell in code_cells) <= MAX_CODE_LINES


def test_cells_define_nothing_and_loop_over_nothing(code_cells):
    machine = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try, ast.Lambda, ast.With)
    for cell in code_cells:
        found = [type(node).__name__ for node in ast.walk(ast.parse(cell.source)) if isinstance(node, machine)]
        assert not found, f"{found} in: {cell.source}"


def test_first_code_cell_holds_literal_parameters_only(code_cells):
    assert is_parameters(code_cells[0])
    for node in ast.parse(code_cells[0].source).body:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        ast.literal_eval(node.value)


def test_sections_are_numbered_in_order(cells):
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    numbers = [int(n) for n in re.findall(r"^## (\d+)\. ", text, flags=re.M)]
    assert len(numbers) >= 10
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_code_cell_follows_words(cells):
    for before, cell in zip(cells, cells[1:]):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown" and before.source.strip(), cell.source


def test_is_committed_executed_small_and_clean(code_cells):
    assert NOTEBOOK.stat().st_size < 1_000_000
    counts = [cell.execution_count for cell in code_cells]
    assert None not in counts and counts == sorted(counts)
    outputs = [output for cell in code_cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    text = json.dumps(outputs)
    assert not re.search(r'"/(home|root|work|tmp)/', text)
    assert "it/s]" not in text, "a progress bar is committed"


def test_text_of_a_cell_is_in_one_piece(code_cells):
    """Pieces are shown with a line break between them; `make train` joins them (nbconvert --coalesce-streams)."""
    for cell in code_cells:
        names = [output.get("name", output.output_type) for output in cell.outputs]
        assert not [pair for pair in zip(names, names[1:]) if pair[0] == pair[1] == "stdout"], cell.source


def test_each_plot_is_described_and_explained(cells):
    for cell, after in zip(cells, cells[1:]):
        if cell.cell_type == "code" and "display(Image(" in cell.source:
            assert 'alt="' in cell.source
            assert after.cell_type == "markdown" and not after.source.startswith("#"), cell.source


def execute(folder, settings, **parameters):
    """Execute the notebook on a few tasks and two steps a stage.

    Returns:
        The text that each code cell printed, by the cell's id.
    """
    parameters = {
        "OUTPUT_DIR": str(folder / "run"), "NUM_EVAL_TASKS": 16, "SFT_MAX_STEPS": 2,
        "GRPO_MAX_STEPS": 2,
    } | parameters
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(folder / "executed.ipynb")]
    command += ["--no-progress-bar", "-y", json.dumps({"SETTINGS": {"model.num_threads": 1} | settings})]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = nbformat.read(folder / "executed.ipynb", as_version=4).cells
    return {
        cell.id: "".join(output.get("text", "") for output in cell.outputs)
        for cell in executed if cell.cell_type == "code"
    }


def first_rows(name, count, folder):
    """Copy the first rows of a task file to a folder; return the copy's path."""
    copy = folder / name
    copy.write_text("".join((ROOT / name).read_text().splitlines(keepends=True)[:count]))
    return copy


def check_run(run, num_tasks, rows_name):
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert [stage["num_tasks"] for stage in evaluation.values()] == [num_tasks] * 3
    assert list(evaluation) == ["base", "sft", "sft_grpo"]
    for name in ("config.json", "metrics.csv", "final_model/adapter_config.json", "merged_model/config.json"):
        assert (run / name).is_file(), name
    assert len((run / rows_name).read_text().splitlines()) == 3 * num_tasks
    assert list((run / "plots").glob("*.png"))
    assert list(run.rglob("events.out.tfevents*"))
    return evaluation


@pytest.mark.slow
def test_runs_from_start_to_end(tmp_path):
    """Execute every cell with two steps a stage; the run folder then holds what a run leaves."""
    settings = {
        # GRPO begins with a forward pass over each of its tasks: few of them.
        "data.grpo_dataset_path": str(first_rows("dataset.jsonl", 16, tmp_path)),
        "grpo.num_eval_tasks": 8, "grpo.gradient_accumulation_steps": 1,
    }
    shown = execute(tmp_path, settings, PRESET="cpu")
    check_run(tmp_path / "run", 16, "completions.jsonl")
    assert shown["cell-17"].startswith("exact match 0.")
    assert "answer: <|channel|>" in shown["cell-19"] and "outcome 0" in shown["cell-13"]


@pytest.mark.slow
def test_runs_from_start_to_end_in_agent_mode(tmp_path):
    tasks = first_rows("dataset.jsonl", 60, tmp_path)
    settings = {
        "sft.per_device_train_batch_size": 2, "agent.max_turns": 5, "agent.max_turn_tokens": 48,
        "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0, "grpo.resample_rounds": 0,
        "grpo.num_generations": 4, "grpo.gradient_accumulation_steps": 1,
    }
    shown = execute(
        tmp_path, settings, PRESET="cpu", MODE="agent", DATASET=tasks, NUM_EVAL_TASKS=4
    )
    evaluation = check_run(tmp_path / "run", 4, "trajectories.jsonl")
    rates = evaluation["sft_grpo"]["success_rate"], evaluation["sft_grpo"]["violation_rate"]
    assert "Serve the customer with the tools." in shown["cell-09"]
    assert "customer  " in shown["cell-11"] and "reward 1.2 of 1.2" in shown["cell-11"]
    assert "unconfirmed_write" in shown["cell-13"] and "success False" in shown["cell-13"]
    assert shown["cell-17"].startswith("success 0.") and "\nconversation:\n" in shown["cell-19"]
    assert len(re.findall(r"^ *-?\d\.\d\d +[+-]\d.* turns, ", shown["group-code"], re.M)) == 4
    assert "\nended: " in shown["cell-40"]
    line = next(line for line in shown["agent-rates"].splitlines() if line.startswith("this model"))
    assert [float(figure) for figure in re.findall(r"(\d\.\d+) \[", line)] == [
        pytest.approx(rate["value"], abs=1e-3) for rate in rates
    ]
    assert shown["cell-42"].count("'same_top_token': 1.0") == 2


@pytest.mark.slow
def test_runs_from_start_to_end_with_another_model(tmp_path):
    """The prompt that is shown is that model's own."""
    folder = tiny_dense.make_model_dir(tmp_path / "model", "llama")
    tasks = tiny_random.write_tasks(tmp_path / "tasks.jsonl", 40)
    settings = {
        "data.prompt_style": "brief", "model.max_seq_length": 1024, "model.lora_rank": 4,
        "sft.gradient_accumulation_steps": 1, "grpo.num_generations": 4,
        "grpo.gradient_accumulation_steps": 2, "grpo.generation_batch_size": 0,
        "grpo.max_completion_length": 12, "grpo.eval_steps": 0, "grpo.early_stopping_patience": 0,
        "evaluation.max_new_tokens": 12,
    }
    shown = execute(tmp_path, settings, MODEL_NAME=folder, DATASET=tasks, NUM_EVAL_TASKS=4)
    check_run(tmp_path / "run", 4, "completions.jsonl")
    assert shown["cell-09"].rstrip().endswith("<|im_start|>assistant")
    assert "<|channel|>" not in shown["cell-09"] and "<|start|>" not in shown["cell-09"]


@pytest.mark.slow
def test_an_error_of_the_user_s_is_one_line_and_no_traceback(tmp_path):
    command = [
        sys.executable, "-m", "papermill", str(NOTEBOOK), str(tmp_path / "executed.ipynb"),
        "--no-progress-bar", "-p", "PRESET", "cpu", "-p", "DATASET", "nowhere.jsonl",
        "-p", "OUTPUT_DIR", str(tmp_path / "run"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    cells = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
    (error,) = [
        output for cell in cells if cell.cell_type == "code" for output in cell.outputs
        if output.output_type == "error"
    ]
    assert error.traceback == [
        "error: nowhere.jsonl: cannot be read (No such file or directory); check the path"
    ]
