"""README and docs stay true: links resolve, the file tree matches, every command is one that exists.

Commands of this project are parsed by their own argument parsers (tests/test_docs_commands.py runs
them), those of other programs (docker, git, vllm, ...) only checked for the files they name. Figures
are compared with the results file, the executed notebook or the log entry that they come from.
"""

import contextlib
import doctest
import importlib
import io
import json
import operator
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import configs
import task_generator
import task_tester
import train_script

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


PARSERS = {
    "train_script.py": train_script.parse_arguments,
    "task_tester.py": lambda words: task_tester.build_parser().parse_args(words),
    "task_generator.py": task_generator.parse_arguments,
}
FOREIGN = ("accelerate", "cd", "docker", "export", "git", "hf", "jupyter", "pip", "sudo", "tensorboard",
           "tau2", "torchrun", "vf-eval", "vllm", "trl", "source", ".venv/bin/python", "python3.11", "nvidia-smi")


def commands_of(path):
    """Return the command lines of a document's bash blocks, continuation lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


COMMANDS = sorted({(path.name, line) for path in DOCUMENTS for line in commands_of(path)})


def words_of(line):
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


@pytest.mark.parametrize("path", [
    "configs:get_preset", "data_reader:gold_completion", "data_reader:read_tasks",
    "envs.retail.episode:Episode", "envs.retail.store:RetailDatabase.load",
    "scoring.parse:parse_plan", "scoring.reward:max_reward", "scoring.reward:score_completion",
])
def test_example_of_a_docstring_runs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, _, attributes = path.partition(":")
    module = importlib.import_module(name)
    shown = operator.attrgetter(attributes)(module)
    (example,) = doctest.DocTestFinder(recurse=False).find(shown, path, globs=vars(module).copy())
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples)) and example.examples


def test_there_are_documents_and_commands():
    assert len(DOCUMENTS) >= 6
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[f"{n}: {c[:60]}" for n, c in COMMANDS])
def test_command_is_one_that_exists(name, line):
    words = words_of(line)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert targets and all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
        return
    if words[0].endswith(".sh"):
        assert os.access(ROOT / words[0], os.X_OK), f"{name}: no such program: {line}"
        return
    scripts = [i for i, word in enumerate(words) if word.endswith(".py") and not word.startswith("-")]
    if words[0] not in ("python", "torchrun", "accelerate") or not scripts:
        assert words[0] in (*FOREIGN, "python"), f"{name}: unknown program in: {line}"
        requirements = [word for word in words if re.fullmatch(r"requirements.*\.txt", word)]
        assert all((ROOT / word).is_file() for word in requirements)
        return
    script, rest = words[scripts[0]], words[scripts[0] + 1:]
    assert (ROOT / script).is_file(), f"{name}: no such script in: {line}"
    if script in PARSERS:
        PARSERS[script](rest)  # exits when an option is unknown


BENCHMARKS = sorted(
    # What benchmarks and tests share is no command.
    path.name for path in (ROOT / "benchmarks").glob("*.py")
    if path.name not in ("logprobs.py", "controls.py")
)


def show_help(script):
    """Do what `python benchmarks/SCRIPT --help` does, as if nothing of the project were imported."""
    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    folder = ROOT / "benchmarks"
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests"))]
    sys.argv = [str(folder / script), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as end:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert not end.value.code and "usage" in shown.getvalue().lower()


@pytest.mark.slow
@pytest.mark.parametrize("script", BENCHMARKS)
def test_benchmark_has_help(script, tmp_path):
    """In a fork of a process that has imported torch and TRL, which would take 5 s each time."""
    import resume_run
    import trl

    assert trl.GRPOTrainer and trl.SFTTrainer  # TRL imports them when they are named
    process_id = os.fork()
    if not process_id:
        resume_run.be_child(tmp_path / "log.txt", lambda: show_help(script))
    assert os.waitpid(process_id, 0)[1] == 0, (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def tree_names(text):
    """Return the paths of the file tree; a room is a folder, its modules are indented below it."""
    block = re.search(r"^```text\n(.*?)^```", text, re.M | re.S).group(1)
    names, room = [], ""
    for indent, name in re.findall(r"^( *)(\S+)", block, re.M):
        room = room if indent else name
        names.append(room + name if indent else name)
    return names


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git")
def test_tree_matches_git():
    listed = tree_names((ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    missing = [name for name in listed if not (ROOT / name).exists()]
    assert not missing, f"ARCHITECTURE.md names what is not there: {missing}"
    folders = ("tests", "benchmarks", "models")
    modules = {n for n in tracked if n.endswith(".py") and not n.startswith(folders)}
    modules = {n for n in modules if not n.endswith("__init__.py")}
    assert modules <= set(listed), f"not in ARCHITECTURE.md: {sorted(modules - set(listed))}"


def test_where_to_change_names_places_that_are_there():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.search(r"^\|---.*?\n(.*?)^$", text, re.M | re.S).group(1).splitlines()
    assert len(rows) == 10
    for row in rows:
        words = re.findall(r"`([^` ]+)`", row)
        files = [word for word in words if "/" in word or word.endswith(".py")]
        missing = [name for name in files if not (ROOT / name).is_file()]
        code = "".join((ROOT / name).read_text(encoding="utf-8") for name in files if name not in missing)
        missing += [word for word in words if word not in files and word.lstrip("@") not in code]
        assert not missing, row


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def inline_settings(text):
    """Return the settings that inline code and commands name, such as `sft.max_steps=1`."""
    return re.findall(r"\b((?:model|data|sft|grpo|evaluation)\.[a-z_]+)=([^\s`,|]+)", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_settings_exist_and_take_the_values(path):
    text = path.read_text(encoding="utf-8")
    for name, value in inline_settings(text):
        if not value.startswith(("log:", "range:", "choice:", "資料夾", "值")):
            # One that depends on others (patience on eval_steps) is checked in their company.
            company = {
                "grpo.eval_steps": 12, "grpo.early_stopping_patience": 0, "grpo.beta": 0.01,
                "grpo.num_generations": 2,
            }
            configs.with_overrides(configs.get_preset("cpu"), company | {name: fitting(name, value)})
    stages = {name: getattr(configs.get_preset("cpu"), name) for name in ("model", "sft", "grpo")}
    for stage, name in re.findall(r"`(model|sft|grpo)\.([a-z_]+)`", text):
        assert hasattr(stages[stage], name), f"{path.name} names {stage}.{name}"


def fitting(name, value):
    """Return the value; a size of generate calls must be whole steps of the preset, so 64 stands in."""
    return 64 if name == "grpo.generation_batch_size" and value.isdecimal() else value


def test_testing_guide_names_every_test_file():
    text = (ROOT / "docs" / "模型測試指南.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named == {path.stem for path in (ROOT / "tests").glob("test_*.py")}


# -- figures and their sources ------------------------------------------------------------------

RESULTS = ROOT / "benchmarks" / "results"
LOG = (ROOT / "LOG.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def millions(value):
    return f"{value / 1e6:.0f} M"


def whole(value):
    return f"{value:,.0f}"


def one_digit(value):
    return f"{value:.1f}"


def two_digits(value):
    return f"{value:.2f}"


def three_digits(value):
    return f"{value:.3f}"


def interval(estimate):
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**estimate)


def difference(estimate):
    return "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**estimate)


def ratio(pair):
    """Return how many times less CPU time fast sampling takes."""
    return f"{pair['plain_sampled_cpu_s'] / pair['fast_sampled_cpu_s']:.1f}"


def step_and_first(run):
    return f"{run['seconds_per_step']:.2f} ({run['first_step_seconds']:.1f})"


H100 = "gpu_rollouts_h100_fast"

# Document, the words around the figure ({} stands for it), results file, path in it, how it is written.
FIGURES = [
    ("README.md", "{} three-call completions/s", "score_throughput", "completions_per_s_median", whole),
    ("README.md", "3,500 tasks in {} s", "generator_speed", "runs/0/seconds", one_digit),
    ("README.md", "GRPO step takes {} s", "gpu_rollouts", "first_step_seconds", whole),
    ("README.md", "in GRPO {} tokens/s", "gpu_rollouts", "ours/tokens_per_s", whole),
    ("README.md", "without it {} tokens/s against", H100, "ours/tokens_per_s", whole),
    ("README.md", "against {} with transformers", H100, "plain_generate/tokens_per_s", whole),
    ("README.md", "8 completions in {} h", "gpu_rollouts", "full_grpo_hours", two_digits),
    ("docs/GPU.md", "**{} tokens/s**; alone 9,672", "gpu_rollouts", "ours/tokens_per_s", whole),
    ("docs/GPU.md", "alone {} |", "vllm_adapters", "mxfp4_marlin_compiled/adapter_tokens_per_s", whole),
    ("docs/GPU.md", "**{} tokens/s**, 20.2 GiB", H100, "ours/tokens_per_s", whole),
    ("docs/GPU.md", "2,400 tokens/s**, {} GiB", H100, "fast_generate/peak_gib", one_digit),
    ("docs/GPU.md", "54.7 GiB | {} / 4,985", "gpu_rollouts_h200", "ours/tokens_per_s", whole),
    ("docs/GPU.md", "/ {} tokens/s, 54.7 GiB", H100, "fast_resident_generate/tokens_per_s", whole),
    ("docs/GPU.md", "3,938 tokens/s, {} GiB", H100, "fast_resident_generate/peak_gib", one_digit),
    ("docs/GPU.md", "2,861 / {} |", "gpu_rollouts_h200", "fast_resident_generate/tokens_per_s", whole),
    ("docs/GPU.md", "**{} tokens/s**, 18.1 GiB", "gpu_kernels", "sampling_24_layers/packed64/tok/s",
     whole),
    ("docs/GPU.md", "1,189 tokens/s**, {} GiB", "gpu_kernels", "sampling_24_layers/packed64/peak",
     one_digit),
    ("docs/GPU.md", "not run | **{} s**: sampling", "gpu_rollouts", "ours/seconds_per_step", two_digits),
    ("docs/GPU.md", "sampling {}, log-probabilities and rewards 0.41", "gpu_rollouts",
     "ours/sampling_seconds_per_step", two_digits),
    ("docs/GPU.md", "rewards {}, update 1.04", "gpu_rollouts",
     "ours/logprob_and_reward_seconds_per_step", two_digits),
    ("docs/GPU.md", "update {}; 46.1 GiB", "gpu_rollouts", "ours/update_seconds_per_step", two_digits),
    ("docs/GPU.md", "update 1.04; {} GiB", "gpu_rollouts", "ours/peak_gib", one_digit),
    ("docs/GPU.md", "compiled | **{} s**: sampling", H100, "ours/seconds_per_step", two_digits),
    ("docs/GPU.md", "sampling {}, log-probabilities and rewards 0.91", H100,
     "ours/sampling_seconds_per_step", two_digits),
    ("docs/GPU.md", "and rewards {}, update 2.45", H100, "ours/logprob_and_reward_seconds_per_step",
     two_digits),
    ("docs/GPU.md", "update {}; 20.5 GiB", H100, "ours/update_seconds_per_step", two_digits),
    ("docs/GPU.md", "| {} s with the KL term", "gpu_rollouts_h200", "ours/seconds_per_step", one_digit),
    ("docs/GPU.md", "call | **{} tokens/s**", H100, "plain_generate/tokens_per_s", whole),
    ("docs/GPU.md", "**{} hours** with `fast`", H100, "full_grpo_hours", two_digits),
    ("docs/GPU.md", "against {} with generate", H100, "baseline_full_grpo_hours", two_digits),
    ("docs/GPU.md", "generate | **{} hours**", "gpu_rollouts", "full_grpo_hours", two_digits),
    ("docs/GPU.md", "not run | **{} s**; compiled", "gpu_rollouts", "first_step_seconds", whole),
    ("docs/GPU.md", "compiled {} s |", "gpu_compile", "runs/rollouts_compiled/ours/first_step_seconds",
     whole),
    ("docs/GPU.md", "3.4 to 3.5 s, {} GiB", "gpu_compile", "runs/sft_partial/rows_8/peak_gib", one_digit),
    ("docs/GPU.md", "takes {} s in the figures", "gpu_rollouts", "ours/generate_calls/1/seconds", one_digit),
    ("docs/GPU.md", "plain forward is {} from", H100, "logprobs/plain_to_exact/mean", three_digits),
    ("docs/GPU.md", "padded update {},", H100, "logprobs/update_to_exact/mean", three_digits),
    ("docs/GPU.md", "`fast` sampler {}: **", H100, "logprobs/sampler_to_exact/mean", three_digits),
    ("docs/GPU.md", "8.8 s, not {})", "gpu_compile",
     "runs/update_24_partial/update_padded/update_seconds_per_step", one_digit),
    ("docs/GPU.md", "8 rows a pass / 16 | {} / not run", "gpu_compile",
     "runs/update_24_compiled/update_shared_prefix", step_and_first),
    ("docs/GPU.md", "/ not run | {} / **1.75", "gpu_compile",
     "runs/update_24_partial/update_shared_prefix", step_and_first),
    ("docs/GPU.md", "2.09 (10.6) / **{}** |", "gpu_compile",
     "runs/update_24_partial16/update_shared_prefix", step_and_first),
    ("docs/GPU.md", "padded, 8 rows a pass / 16 | {} /", "gpu_compile",
     "runs/update_24_compiled/update_padded", step_and_first),
    ("docs/GPU.md", "/ not run | {} / 5.46", "gpu_compile", "runs/update_24_partial/update_padded",
     step_and_first),
    ("docs/GPU.md", "(19.2) / {} |", "gpu_compile", "runs/update_24_partial16/update_padded",
     step_and_first),
    ("docs/GPU.md", "| SFT, 8 rows a pass | {}, second", "gpu_compile",
     "runs/sft_compiled/rows_8/steps_s", lambda s: f"{s[2]:.2f} ({s[0]:.1f}"),
    ("docs/GPU.md", "second 45.4) | {}) |", "gpu_compile", "runs/sft_partial/rows_8/steps_s",
     lambda s: f"{s[2]:.2f} ({s[0]:.1f}"),
    ("docs/GPU.md", "Start: {} s on an H200", "vllm_adapters", "mxfp4_marlin_compiled/ready_s", whole),
    ("docs/GPU.md", "merged 16-bit {} the same", "serving", "cases/0/same_text", three_digits),
    ("docs/GPU.md", "19.8 GiB | {} /", "gpu_presets", "24gb/sft_peak_gib", one_digit),
    ("docs/GPU.md", "17.9 / {} GiB", "gpu_presets", "24gb/grpo_peak_gib", one_digit),
    ("docs/GPU.md", "128 tokens | not run | {} /", "gpu_presets", "24gb_shared_prefix/sft_peak_gib",
     one_digit),
    ("docs/GPU.md", "| not run | 20.1 / {} GiB", "gpu_presets", "24gb_shared_prefix/grpo_peak_gib",
     one_digit),
    ("docs/GPU.md", "cap of 14.0, 64 tokens | {} /", "gpu_presets", "t4/sft_peak_gib", one_digit),
    ("docs/GPU.md", "13.7 / {} GiB", "gpu_presets", "t4/grpo_peak_gib", one_digit),
    ("docs/MULTI_GPU.md", "| 1 | {} |", "scaling", "rows/0/sft_rows_per_s", two_digits),
    ("docs/MULTI_GPU.md", "3.23 | {} (2 tasks", "scaling", "rows/0/tasks_per_s", two_digits),
    ("docs/MULTI_GPU.md", "(2 tasks in a step of {} s)", "scaling", "rows/0/seconds_per_step",
     two_digits),
    ("docs/MULTI_GPU.md", "4.03 s) | {} |", "scaling", "rows/0/tokens_per_s", whole),
    ("docs/MULTI_GPU.md", "2,646 | {} SFT", "scaling", "rows/0/sft_peak_gib", one_digit),
    ("docs/MULTI_GPU.md", "17.1 SFT, {} GRPO", "scaling", "rows/0/peak_gib", one_digit),
    ("docs/MULTI_GPU.md", "| 2 | {} |", "scaling", "rows/1/sft_rows_per_s", two_digits),
    ("docs/MULTI_GPU.md", "6.11 | {} (4 tasks", "scaling", "rows/1/tasks_per_s", two_digits),
    ("docs/MULTI_GPU.md", "(4 tasks in a step of {} s)", "scaling", "rows/1/seconds_per_step",
     two_digits),
    ("docs/MULTI_GPU.md", "4.48 s) | {} |", "scaling", "rows/1/tokens_per_s", whole),
    ("docs/MULTI_GPU.md", "5,102 | {} SFT", "scaling", "rows/1/sft_peak_gib", one_digit),
    ("docs/MULTI_GPU.md", "16.9 SFT, {} GRPO", "scaling", "rows/1/peak_gib", one_digit),
    ("docs/GPU.md", "experts ({} trainable", "gpu_presets", "24gb/trainable",
     lambda value: f"{value / 1e6:.1f} M"),
    ("docs/GPU.md", "attention alone {})", "gpu_presets", "t4/trainable",
     lambda value: f"{value / 1e6:.1f} M"),
    ("docs/AGENT_TRAINING.md", "an SFT step takes {} s on two cores", "cpu_sft", "agent/cpu_sinks/mean_s",
     one_digit),
    ("docs/AGENT_TRAINING.md", "own attention {} s", "cpu_sft", "agent/eager/mean_s", one_digit),
    ("docs/GPU.md", "on a CPU {} times less CPU time", "cpu_sampling", "32 rows", ratio),
    ("docs/GPU.md", "at 32 rows, {} at 128", "cpu_sampling", "128 rows", ratio),
    ("docs/TRAINING_METHODOLOGY.md", "completions takes {} CPU seconds", "cpu_step",
     "median_seconds/shared/step_cpu_s", one_digit),
    ("docs/TRAINING_METHODOLOGY.md", "one thread against {} (`benchmarks/cpu_step.py`", "cpu_step",
     "median_seconds/padded/step_cpu_s", one_digit),
    ("docs/TRAINING_METHODOLOGY.md", "attention alone is {}", "gpu_presets", "t4/trainable", millions),
    ("docs/TRAINING_METHODOLOGY.md", "with the experts {}", "gpu_presets", "24gb/trainable", millions),
    ("docs/TRAINING_METHODOLOGY.md", "64 rows take {} of", "gpu_kernels", "sampling_24_layers",
     lambda runs: two_digits(runs["streamed64"]["s"] / runs["streamed128"]["s"])),
    ("docs/TRAINING_METHODOLOGY.md", "{} s of a step's 4.64 s", H100,
     "ours/sampling_seconds_per_step", two_digits),
    ("docs/TRAINING_METHODOLOGY.md", "1.28 s of a step's {} s", H100, "ours/seconds_per_step",
     two_digits),
    ("docs/TRAINING_METHODOLOGY.md", "has {} at temperature 0.7", "troubleshooting",
     "groups/equal at temperature 0.7", two_digits),
    ("docs/IMPLEMENTATION_SUMMARY.md", "{} GiB against 20.2", "gpu_kernels",
     "sampling_24_layers/streamed64/peak", one_digit),
    ("docs/IMPLEMENTATION_SUMMARY.md", "18.1 GiB against {} GiB", "gpu_kernels",
     "sampling_24_layers/streamed128/peak", one_digit),
    ("docs/IMPLEMENTATION_SUMMARY.md", "{} GiB reserved after loading", "gpu_presets",
     "t4/load_peak_gib", one_digit),
    ("docs/IMPLEMENTATION_SUMMARY.md", "against {} GiB with the experts", "gpu_presets",
     "24gb/load_peak_gib", one_digit),
    ("docs/IMPLEMENTATION_SUMMARY.md", "all equal: {} of 128", "troubleshooting",
     "groups/equal at temperature 1.0", two_digits),
    ("docs/IMPLEMENTATION_SUMMARY.md", "against {} at 0.7", "troubleshooting",
     "groups/equal at temperature 0.7", two_digits),
    ("docs/IMPLEMENTATION_SUMMARY.md", "once: {} left", "troubleshooting",
     "groups/equal at temperature 1.0, replaced once", two_digits),
    ("docs/IMPLEMENTATION_SUMMARY.md", "{} after one epoch", "cpu_recipes",
     "held_out/sft/exact_match", three_digits),
    ("docs/IMPLEMENTATION_SUMMARY.md", "{} after two (small", "cpu_recipes",
     "held_out/after/2/exact_match", three_digits),
    ("docs/IMPLEMENTATION_SUMMARY.md", "{} tokens/s against 145", H100,
     "ours/tokens_per_s", whole),
    ("docs/IMPLEMENTATION_SUMMARY.md", "tokens/s against {} with", H100,
     "plain_generate/tokens_per_s", whole),
    ("docs/IMPLEMENTATION_SUMMARY.md", "{} times less CPU time at 32", "cpu_sampling", "32 rows", ratio),
    ("docs/IMPLEMENTATION_SUMMARY.md", "{} tokens/s against 1,511", "gpu_kernels",
     "sampling_24_layers/streamed128/tok/s", whole),
    ("docs/IMPLEMENTATION_SUMMARY.md", "tokens/s against {} at 64", "gpu_kernels",
     "sampling_24_layers/streamed64/tok/s", whole),
]


def figure_at(name, path):
    """Return what stands at a path such as "runs/0/seconds"; a key may hold a slash itself."""
    found, words = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")), path.split("/")
    while words:
        if isinstance(found, list):
            found = found[int(words.pop(0))]
            continue
        size = next(n for n in range(1, len(words) + 1) if "/".join(words[:n]) in found)
        found = found["/".join(words[:size])]
        words = words[size:]
    return found


@pytest.mark.parametrize(("document", "words", "name", "path", "write"), FIGURES,
                         ids=[f"{row[0]}: {row[1]}" for row in FIGURES])
def test_figure_is_that_of_its_results_file(document, words, name, path, write):
    text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
    expected = words.format(write(figure_at(name, path)))
    assert expected in text, f"{document} must say {expected!r}, as {name}.json has it at {path}"


def notebook_output():
    cells = json.loads((ROOT / "gpt_oss_20b_tau_bench_rl_training.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", [])) for output in outputs)


def test_results_table_is_that_of_the_executed_notebook():
    names = {"exact match": "exact_match_rate", "store as gold leaves it (db match)": "db_match_rate",
             "action F1": "action_f1", "JSON parse success": "json_parse_success"}
    output, final, words = notebook_output(), {}, " ".join(README.split())
    estimate = r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]"
    for title, name in names.items():
        (row,) = re.findall(rf"^\| {re.escape(title)} \| ((?:{estimate}(?: \| )?){{3}}) \|$", README, re.M)
        (found,) = re.findall(rf"^{name} +({estimate}) +({estimate}) +({estimate})$", output, re.M)
        assert tuple(row.split(" | ")) == found, title
        final[title] = [float(figure) for figure in re.findall(r"[\d.]+", found[-1])]
    guide = (ROOT / "docs" / "模型測試指南.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```", guide, re.M | re.S)
    assert list(json.loads(example)["model"]["exact_match_rate"].values()) == final["exact match"]
    for title, name in (("exact match", "exact_match_rate"), ("db match", "db_match_rate")):
        (gain,) = re.findall(rf"SFT\+GRPO minus SFT, {name}: (\S+ \[\S+, \S+\]) \(paired\)", output)
        assert f"{title} {gain}" in words
    kept = re.findall(r"the adapter of step (\d+) is kept", output)
    told = f"adapter of step {kept[0]} was kept" if kept else "the last adapter was kept"
    (num_tasks,) = set(re.findall(r"^(\d+) held-out tasks, 95 %", output, re.M))
    assert told in words and f"{num_tasks} held-out tasks" in words
    (parameters,) = re.findall(r"merged_model: 0 of ([\d,]+) parameters", output)
    assert f"({int(parameters.replace(',', '')) / 1e6:.1f} M parameters" in words


# RESULTS.md is written by a program from its rows (tests/test_results_page.py).
@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name != "RESULTS.md"], ids=lambda path: path.name)
def test_other_measured_figures_are_in_the_log_or_a_result(path):
    """Figures with intervals, and durations of whole runs, that no results file of FIGURES gives."""
    text = " ".join(path.read_text(encoding="utf-8").split())
    sources = " ".join((LOG + README).split()) if path.name != "README.md" else " ".join(LOG.split())
    bound = {row[1].format(row[4](figure_at(row[2], row[3]))) for row in FIGURES}
    sources += " ".join(bound) + (" " + notebook_output() if path.name == "README.md" else "")
    for figure in re.findall(r"[+-]?\d\.\d{3} \[[+-]?\d\.\d{3}, [+-]?\d\.\d{3}\]|\d+ min \d+ s", text):
        assert figure in sources, f"{path.name}: {figure} has no source"
