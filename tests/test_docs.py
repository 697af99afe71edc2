"""README and docs stay true: links resolve, the file tree matches, every command is one that exists.

Commands of this project are parsed by their own argument parsers; the quick ones are run as written.
Commands of other programs (docker, git, vllm, ...) are only checked for the files they name.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import task_generator
import task_tester
import train_script
from training.sweep_space import build_sweep_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def parse_train(words):
    if words[:1] == ["chat"]:
        train_script.build_chat_parser().parse_args(words[1:])
    elif words[:1] == ["export"]:
        train_script.build_export_parser().parse_args(words[1:])
    elif words[:1] == ["sweep"]:
        build_sweep_parser().parse_args(words[1:])
    else:
        train_script.build_parser().parse_args(words)


PARSERS = {
    "train_script.py": parse_train,
    "task_tester.py": lambda words: task_tester.build_parser().parse_args(words),
    "task_generator.py": task_generator.parse_arguments,
}
FOREIGN = ("accelerate", "cd", "docker", "export", "git", "jupyter", "pip", "sudo", "tensorboard",
           "torchrun", "vllm", "trl", "source", ".venv/bin/python", "python3.11", "nvidia-smi")


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


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_benchmark_has_help(script):
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr[-500:]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def tree_names(text):
    """Return the paths of README's file tree; indentation by two spaces a level."""
    block = re.search(r"^```text\n(.*?)^```", text, re.M | re.S).group(1)
    names, parents = [], []
    for line in block.splitlines():
        match = re.match(r"^( *)(\S+)", line)
        if match:
            depth = len(match.group(1)) // 2
            parents[depth:] = [match.group(2)]
            names.append("".join(parents[: depth + 1]))
    return names


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git")
def test_tree_matches_git():
    listed = set(tree_names((ROOT / "README.md").read_text(encoding="utf-8")))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    tracked = [name for name in tracked if name and not name.startswith('"')]
    for name in listed:
        assert (ROOT / name).exists(), f"README's tree names {name}"
    top = {name.split("/")[0] + ("/" if "/" in name else "") for name in tracked}
    top -= {".ci/", ".gitignore", ".dockerignore"}
    assert top <= listed, f"not in README's tree: {sorted(top - listed)}"
    modules = {n for n in tracked if re.fullmatch(r"(training|tasks|scoring|envs/retail)/\w+\.py", n)}
    modules = {n for n in modules if not n.endswith("__init__.py")}
    assert modules <= listed, f"not in README's tree: {sorted(modules - listed)}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.slow
@pytest.mark.parametrize("line", [
    "python task_tester.py audit dataset.jsonl",
    "python task_tester.py audit 3.5k.jsonl --json",
    "python task_generator.py --num-tasks 50 --seed 7 --output {tmp}/mine.jsonl",
    "python envs/retail/make_store.py --seed 11 --output-dir {tmp}/store",
    "python task_tester.py score --tasks dataset.jsonl --completions {tmp}/c.jsonl --json",
])
def test_quick_commands_run(line, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"task_id": "retail-1-0", "completion": "no plan"}\n')
    words = shlex.split(line.replace("{tmp}", str(tmp_path)))
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-1000:]
