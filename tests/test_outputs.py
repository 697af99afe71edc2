"""Nothing of a user's is lost: every command on every kind of place that is not its own.

The scripts of `../shared/field/scripts` are run where that folder is there.
"""

import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import tiny_random

import task_generator
import task_tester
import train_script
from agent import compare
from common import outputs, run_folder
from common.files import RunError, build_folder
from data_reader import gold_completion
from envs.retail import make_store
from envs.retail.store import DEFAULT_DATA_DIR, store_files
from gptoss import nf4
from gptoss.preflight import ModelError
from tasks.audit import report as audit_report
from training.pipeline import prepare_run, run_pipeline

ROOT = Path(__file__).resolve().parent.parent
FIELD = ROOT.parent / "shared" / "field" / "scripts"
needs_field = pytest.mark.skipif(not FIELD.is_dir(), reason="../shared/field is not here")


def sums(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by its path there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A finished run, a base model, a store, tasks, answers, and a stranger's folder."""
    world = tmp_path_factory.mktemp("world")
    run_pipeline(tiny_random.tiny_config(world, sft__max_steps=1, grpo__max_steps=1))
    tasks = tiny_random.make_tasks(40)
    rows = [{"task_id": t.task_id, "completion": gold_completion(t)} for t in tasks]
    (world / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(DEFAULT_DATA_DIR, world / "store")
    users = json.loads((world / "store/users.json").read_text())
    users["mei_lin_1"] = next(iter(users.values()))
    (world / "store/users.json").write_text(json.dumps(users))
    for name in (
        "evaluation.json", "completions.jsonl", "users.json", "scores.jsonl", "report.md", "study.db",
        "tau2_results.json", "t.jsonl", "other.yield.json", "plots/new_tools.png", "checkpoint-500/model.bin",
        "notes.txt",
    ):
        path = world / "stranger" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"years of work: {name}")
    shutil.copytree(world / "stranger/checkpoint-500", world / "trainer/checkpoint-500")
    (world / "FILE").write_text("more work")
    assert command("agent", world, world / "played") == 0
    return world


def command(name: str, world: Path, output: Path, *more: str) -> int:
    """Run a command in this process with its output at a place; return its exit code."""
    tasks, given = str(world / "tasks.jsonl"), [*more]
    model = str(world / "run/final_model")
    here = f"={output}"  # as a word of its own, a leading dash would be an option
    try:
        if name == "evaluate":
            return task_tester.main(["evaluate", "--model", model, "--tasks", tasks, "--limit", "2",
                                     "--output" + here, *given])
        if name in ("agent", "tau2"):
            played = tasks if name == "agent" else "tau2"
            return task_tester.main(["evaluate", "--mode", "agent", "--policy", "oracle", "--tasks", played,
                                     "--limit", "1", "--output" + here, *given])
        if name == "score":
            return task_tester.main(["score", "--tasks", tasks, "--completions",
                                     str(world / "answers.jsonl"), "--data-dir", str(world / "store"),
                                     "--output" + here, *given])
        if name == "audit":
            return task_tester.main(["audit", tasks, "--data-dir", str(world / "store"),
                                     "--report" + here, *given])
        if name == "report":
            return audit_report.main([tasks, "--data-dir", str(world / "store"),
                                      "--output" + here, *given])
        if name == "generator":
            task_generator.main(["--num-tasks", "2", "--seed", "1", "--data-dir", str(world / "store"),
                                 "--output" + here, *given])
            return 0
        if name == "trajectories":
            task_generator.main(["trajectories", "--tasks", str(world / "tasks.jsonl"), "--data-dir",
                                 str(world / "store"), "--output" + here, *given])
            return 0
        if name == "compare":
            played = str(world / "played")
            return compare.main([played, played, "--tasks", tasks, "--data-dir", str(world / "store"),
                                 "--output" + here, *given])
        if name == "make_store":
            return make_store.main(["--num-users", "2", "--num-orders", "3", "--output-dir" + here])
        if name == "export":
            return train_script.main(["export", "--model", model, "--format", "16bit",
                                      "--output" + here])
        settings = [f"model.model_name={world / 'model'}", "model.num_threads=1"]
        words = ["sweep"] if name == "sweep" else []
        words += ["--preset", "cpu", "--dataset", tasks, "--output-dir" + here, *given]
        return train_script.main(words + [w for s in settings for w in ("--set", s)])
    except SystemExit as stopped:
        return stopped.code or 0


def error_line(capsys) -> str:
    """Return the one line of an error, below argparse's usage where that comes with it."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1, error
    return lines[0]


WRITERS = ("score", "audit", "report", "generator", "trajectories", "compare")
FILES = (
    "tasks.jsonl", "answers.jsonl", "store/users.json", "run/evaluation.json", "run/config.json",
    "run/final_model/adapter_config.json", "run/final_model/new.jsonl", "run/sft/adapter/deep/new.md",
    "model/config.json", "FILE", "stranger", "stranger/t.jsonl", "FILE/below", "/proc/none/x.md",
)
FOLDERS = ("run/final_model", "run/merged_model", "run/checkpoint-1", "model", "stranger", "FILE",
           "tasks.jsonl", "FILE/below", "/proc/none/x", "run/final_model/new")
REFUSED = [
    *((name, place) for name in WRITERS for place in FILES if (name, place) != ("audit", "answers.jsonl")),
    *(("compare", f"played/{name}") for name in ("trajectories.jsonl", "evaluation.json", "episodes.html")),
    *(("train --mode=agent", place) for place in (*FOLDERS, "trainer", "played")),
    ("audit", "stranger/new.md"), ("report", "stranger/new.md"), ("generator", "stranger/other.jsonl"),
    *((name, place) for name in ("evaluate", "agent", "tau2") for place in (*FOLDERS, "run")),
    *(("export", place) for place in (*FOLDERS, "run", "store", ".", "trainer")),
    *(("make_store", place) for place in ("store", "stranger", "run/final_model", "FILE", "FILE/below",
                                          "/proc/none/x")),
    *(("train", place) for place in (*FOLDERS, "trainer")),
    *(("train --resume", place) for place in (*FOLDERS, "trainer")),
    *(("sweep", place) for place in (*FOLDERS, "run")),
]


@pytest.mark.parametrize(("name", "place"), REFUSED, ids=lambda value: str(value))
def test_nothing_is_lost(world, capsys, name, place):
    before = sums(world)
    name, *more = name.split()
    assert command(name, world, world / place, *more) in (1, 2)
    error = error_line(capsys)
    assert "--overwrite" not in error or name not in ("train", "export", "sweep", "make_store")
    assert sums(world) == before


@pytest.mark.parametrize(("name", "place"), [
    *((name, place) for name in WRITERS for place in FILES[:9]
      if place != "answers.jsonl" or name == "score" if (name, place) != ("generator", "tasks.jsonl")),
    *(("evaluate", place) for place in ("run", "run/final_model", "model")),
])
def test_overwrite_takes_no_input_no_run_and_no_model(world, capsys, name, place):
    before = sums(world)
    assert command(name, world, world / place, "--overwrite") in (1, 2)
    error_line(capsys)
    assert sums(world) == before


@pytest.mark.parametrize(("name", "place", "replaced"), [
    ("score", "s.jsonl", ["s.jsonl"]), ("audit", "r.md", ["r.md"]), ("report", "r.md", ["r.md"]),
    ("generator", "t.jsonl", ["t.jsonl", "t.yield.json"]), ("evaluate", ".", ["evaluation.json"]),
])
def test_overwrite_replaces_a_strangers_file(world, tmp_path, capsys, name, place, replaced):
    for kept in (*replaced, "notes.txt"):
        (tmp_path / kept).write_text("theirs")
    assert command(name, world, tmp_path / place) == 1
    assert capsys.readouterr().err.rstrip().endswith("or replace it with --overwrite")
    assert sums(tmp_path) == dict.fromkeys((*replaced, "notes.txt"), hashlib.sha256(b"theirs").hexdigest())
    assert command(name, world, tmp_path / place, "--overwrite") == 0
    assert all((tmp_path / kept).read_text() != "theirs" for kept in replaced)
    assert (tmp_path / "notes.txt").read_text() == "theirs"


NAMES = ("My Drive", "it's \"so\"", "-rf", "\u00fc \u7a7a", "$HOME", "a;b#c", "[x]*?")


@pytest.mark.parametrize("name", ["evaluate", "agent", "make_store", *WRITERS])
@pytest.mark.parametrize("folder", ["-rf", "it's \"My Drive\" \u00fc $HOME [x]*?"])
def test_an_own_output_is_replaced_until_it_is_edited(world, tmp_path, monkeypatch, capsys, name, folder):
    monkeypatch.chdir(tmp_path)
    place = Path(folder)
    if name not in ("evaluate", "agent", "make_store"):
        place.mkdir()
        place /= folder + ".md"
    for _ in range(2):
        assert command(name, world, place) == 0, capsys.readouterr().err
    written = {"evaluate": place / "completions.jsonl", "agent": place / "episodes.html",
               "make_store": place / "users.json"}.get(name, place)
    with open(written, "a", encoding="utf-8") as file:
        file.write("\n")
    before = sums(tmp_path)
    assert command(name, world, place) == 1
    assert "not what an earlier run of this command wrote" in capsys.readouterr().err
    assert sums(tmp_path) == before


@pytest.mark.slow
def test_an_export_is_replaced_until_something_is_added(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = Path("-my \"export\" \u00fc [1]")
    for _ in range(2):
        assert command("export", world, place) == 0, capsys.readouterr().err
    (place / "notes.txt").write_text("mine")
    before = sums(tmp_path)
    assert command("export", world, place) == 1
    assert "something else than an earlier export (notes.txt)" in capsys.readouterr().err
    assert sums(tmp_path) == before


@pytest.mark.slow
def test_a_run_and_its_plots_at_an_awkward_path(world, tmp_path, monkeypatch):
    """What a run leaves is what clearing removes, and a second run loses nothing of the first."""
    monkeypatch.chdir(tmp_path)
    place = Path("-it's \"My Drive\" \u00fc [1]")
    (place / "plots").mkdir(parents=True)
    (place / "plots" / "mine.png").write_text("mine")
    (place / "README.md").write_text("mine")
    config = tiny_random.tiny_config(
        world, output_dir=str(place), sft__max_steps=1, grpo__max_steps=1)
    run_pipeline(config)
    first = set(sums(place).values())
    prepare_run(config)
    assert first <= set(sums(tmp_path).values())
    run_pipeline(config)
    shutil.copytree(world / "trainer/checkpoint-500", place / "checkpoint-500")
    run_folder.clear_run(place)
    assert sorted(sums(place)) == ["README.md", "checkpoint-500/model.bin", "plots/mine.png"]


@pytest.mark.parametrize("name", ["sft/adapter", "completions.jsonl", "merged_model"])
def test_an_input_is_not_moved_aside(world, tmp_path, name):
    place = Path(shutil.copytree(world / "run", tmp_path / "run"))
    before = sums(place)
    key = "data.dataset_path" if name.endswith("jsonl") else "model.model_name"
    if name.endswith("jsonl"):
        shutil.copy(world / "tasks.jsonl", place / name)
        before = sums(place)
    config = tiny_random.tiny_config(
        world, output_dir=str(place), **{key.replace(".", "__"): str(place / name)})
    with pytest.raises(RunError, match="lies in the earlier run"):
        prepare_run(config)
    assert sums(place) | {"run.lock": ""} == before | {"run.lock": ""}


def test_neighbours_of_a_folder_that_is_built_are_kept(tmp_path):
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="in the way"):
        build_folder(tmp_path / "model", lambda part: None)
    assert (tmp_path / "model.tmp" / "thesis.tex").exists()
    (tmp_path / "base-bnb-4bit").mkdir()
    (tmp_path / "base-bnb-4bit" / "config.json").write_text("{}")
    tiny_random.make_model_dir(tmp_path / "base")
    with pytest.raises(ModelError, match="is where the 4-bit copy of"):
        nf4.pack_checkpoint(tmp_path / "base")
    assert (tmp_path / "base-bnb-4bit" / "config.json").exists()


def test_a_store_error_advises_no_loss(tmp_path):
    from envs.retail import DatabaseError, RetailDatabase

    (tmp_path / "users.json").write_text("{")
    with pytest.raises(DatabaseError, match="in another folder with .* NEW_FOLDER"):
        RetailDatabase.load(tmp_path)
    with pytest.raises(DatabaseError, match="--output-dir '.*My Drive'"):
        RetailDatabase.load(tmp_path / "My Drive")


def test_the_committed_outputs_are_known_as_such():
    """`make data` and make_store.py replace the files that ship, until somebody edits them."""
    outputs.check_files("task_generator.py", [
        ROOT / f"{name}{end}" for name in ("dataset", "3.5k") for end in (".jsonl", ".yield.json")])
    outputs.check_files("audit report", audit_report.report_files(ROOT / audit_report.OWN_REPORT))
    outputs.check_files("make_store.py", store_files())


# -- a run's lock ------------------------------------------------------------------------------


HOLD = ("import sys, time; from pathlib import Path; from common.run_folder import lock_run\n"
        "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)")


@pytest.fixture
def living(world, tmp_path):
    """A finished run's folder that another process holds; the process comes with it."""
    place = Path(shutil.copytree(world / "run", tmp_path / "run"))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(place)], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    yield place, holder
    holder.kill()
    holder.wait()


@pytest.mark.parametrize(("name", "below"), [
    ("train", "."), ("train --resume", "."), ("evaluate", "."), ("export", "merged_model"),
    ("export", "best_adapter"), ("score", "warnings.jsonl"), ("generator", "grpo_rows"),
    ("evaluate", "checkpoint-9"),
])
def test_a_living_run_is_left_alone(world, living, capsys, name, below):
    place, _ = living
    before = sums(place)
    name, *more = name.split()
    assert command(name, world, place / below, *more) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "running there" in error or "going on" in error or "holds config.json" in error
    assert sums(place) == before
    with pytest.raises(RunError, match="nothing was removed"):
        run_folder.clear_run(place)
    assert sums(place) == before
    assert command("score", world, place / "my scores.jsonl") == 0


def test_a_killed_run_leaves_no_lock_and_one_process_shares_it(world, living):
    place, holder = living
    config = tiny_random.tiny_config(world, output_dir=str(place), sft__max_steps=1, grpo__max_steps=1)
    with pytest.raises(RunError, match="another run is running there; wait for its end"):
        prepare_run(config, resume=True)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    run = prepare_run(config, resume=True)
    assert run_folder.is_living(place)
    again = prepare_run(config, resume=True)
    assert again.lock is run.lock
    del run, again
    assert not run_folder.is_living(place)


# -- make and install.sh -----------------------------------------------------------------------


STUB = """#!/bin/sh
case "$*" in
  *run_folder*) exec {python} "$@" ;;
  *version_info*) echo 3.11 ;;
  *importlib.metadata*) echo "${{TORCH:-}}" ;;
  *ensurepip*) exit ${{NO_VENV:-0}} ;;
  '-m venv '*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *'--index-url '*) echo "$*" >> {calls}; echo 'noise of pip' >&2; exit ${{NO_INDEX:-0}} ;;
  *) printf '%s\\n' "$@" >> {calls} ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what `make` needs, with a stub in the place of Python."""
    place = tmp_path / "my checkout"
    place.mkdir()
    for name in ("Makefile", "install.sh", "requirements-cpu.txt", "requirements.txt"):
        shutil.copy(ROOT / name, place)
    shutil.copytree(ROOT / "common", place / "common", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "stub").write_text(STUB.format(python=sys.executable, calls=shlex.quote(str(tmp_path / "calls"))))
    (place / "stub").chmod(0o755)
    return place


def make(place: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "PYTHON=./stub", *words], cwd=place, capture_output=True, text=True,
                          env=os.environ | variables, timeout=60)


@pytest.mark.parametrize("name", [*(f"T/{name}" for name in NAMES), "-rf", "--"])
def test_make_train_and_clean_take_any_path(world, checkout, name):
    done = make(checkout, "train", f"OUTPUT_DIR={name}", "PRESET=cpu")
    assert done.returncode == 0, done.stderr
    assert f"done: {name} holds" in done.stdout
    calls = (checkout.parent / "calls").read_text().splitlines()
    assert calls[calls.index("OUTPUT_DIR") + 1] == name
    place = checkout / name
    assert f"{place}/notebook.ipynb" in calls
    shutil.copytree(world / "run", place, dirs_exist_ok=True)
    (place / "notes.txt").write_text("mine")
    for neighbour in ("T/My", "Drive", "T/Drive", "x", "T"):
        (checkout / neighbour).mkdir(parents=True, exist_ok=True)
        (checkout / neighbour / "thesis.tex").write_text("years of work")
    before = {path for path in checkout.rglob("*") if path.is_file() and place not in path.parents}
    assert make(checkout, "clean", f"OUTPUT_DIR={name}").returncode == 0
    after = {path for path in checkout.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert after >= {path for path in before if "__pycache__" not in path.parts}
    assert [path.name for path in place.iterdir()] == ["notes.txt"]


def test_make_clean_and_train_leave_a_strangers_folder(world, checkout):
    shutil.copytree(world / "stranger", checkout / "theirs")
    (checkout / "theirs" / "notebook.ipynb").write_text('{"metadata": {}}')
    before = sums(checkout / "theirs")
    done = make(checkout, "clean", "OUTPUT_DIR=theirs")
    assert done.returncode != 0 and "theirs: holds no run; nothing was removed" in done.stderr
    done = make(checkout, "train", "OUTPUT_DIR=theirs")
    assert done.returncode != 0 and "was not written by `make train`" in done.stderr
    assert sums(checkout / "theirs") == before
    assert make(checkout, "clean", "OUTPUT_DIR=none").returncode == 0


@pytest.mark.parametrize(("name", "words"), [
    ("FILE", "cannot be written (File exists); choose another OUTPUT_DIR"),
    ("FILE/below", "cannot be written (Not a directory); choose another OUTPUT_DIR"),
    ("/proc/none/x", "cannot be written (No such file or directory); choose another OUTPUT_DIR"),
    ("model", "holds config.json of a model, no run; choose another OUTPUT_DIR"),
    ("model/below", ""), ("trainer", "holds checkpoint-500 of a run but no config.json"),
    ("x" * 300, "File name too long"), ("", "OUTPUT_DIR: is empty; name a folder"),
])
def test_make_train_refuses_a_place_in_one_line(world, checkout, name, words):
    for kind in ("FILE", "trainer", "model"):
        copy = shutil.copytree if (world / kind).is_dir() else shutil.copy
        copy(world / kind, checkout / kind)
    before = sums(checkout)
    done = make(checkout, "train", f"OUTPUT_DIR={name}", "PRESET=cpu")
    assert (done.returncode == 0) == (words == ""), done.stderr
    if words:
        (error,) = [x for x in done.stderr.splitlines() if not re.match(r"make(\[\d+\])?: ", x)]
        assert words in error
        assert {k: v for k, v in sums(checkout).items() if k in before} == before
        cleared = make(checkout, "clean", f"OUTPUT_DIR={name}")
        assert cleared.returncode == 0 or "; " in cleared.stderr
        assert {k: v for k, v in sums(checkout).items() if k in before} == before


def install(place: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "install.sh", "./stub", "requirements-cpu.txt"], cwd=place,
                          capture_output=True, text=True, env=os.environ | variables, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the usual index has a CPU build")
@pytest.mark.parametrize(("no_index", "words"), [
    ("0", "torch: the CPU build, from https://download.pytorch.org/whl/cpu"),
    ("1", "torch: https://download.pytorch.org/whl/cpu does not answer; taken from where pip is set"),
])
def test_install_takes_the_cpu_build_where_it_can(checkout, no_index, words):
    done = install(checkout, NO_INDEX=no_index)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(words) and done.stdout.count("\n") == 1
    calls = (checkout.parent / "calls").read_text()
    assert "--timeout 10 --retries 0 --no-deps torch==" in calls
    assert calls.rstrip().endswith("-r\nrequirements-cpu.txt")
    pin = re.search(r"^torch==(\S+)", (ROOT / "requirements-cpu.txt").read_text(), re.M)[1]
    done = install(checkout, TORCH=pin)
    assert (done.returncode, done.stdout) == (0, "")


def test_install_without_the_venv_package_is_one_line(checkout):
    done = install(checkout, NO_VENV="1")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "-m venv is missing; on Debian and Ubuntu: sudo apt-get install python3.11-venv" in done.stderr
    assert not (checkout / ".venv").exists()


# -- the scripts of the field ------------------------------------------------------------------


@needs_field
@pytest.mark.slow
def test_outputs_of_the_field(world):
    done = subprocess.run(["bash", FIELD / "outputs.sh", world / "run", sys.executable], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and all(line.startswith("kept   (exit 1)") for line in lines), done.stdout


@needs_field
@pytest.mark.slow
def test_two_runs_of_the_field(tmp_path):
    """With smaller steps, given by the program that the script takes for Python."""
    began, python = time.monotonic(), tmp_path / "python"
    settings = "--set sft.per_device_train_batch_size=2 --set model.num_threads=1"
    settings += " --set grpo.max_gold_probability=1"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@" {settings}\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", FIELD / "two_runs.sh", python], cwd=ROOT,
                          capture_output=True, text=True, timeout=900)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, (done.stdout, done.stderr, time.monotonic() - began)
    for second, first in (lines[:2], lines[2:]):
        assert "exit 1: error: " in second and "another run is running there" in second
        assert "exit 0: done: " in first


# -- inputs that are something else, and writes that fail ---------------------------------------


def read_from(name: str, world: Path, given: str, output: Path) -> int:
    """Run a command with one of its inputs replaced; return its exit code."""
    tasks, answers, model = (str(world / n) for n in ("tasks.jsonl", "answers.jsonl", "run/final_model"))
    train = ["--preset", "cpu", f"--output-dir={output}/run", "--set", f"model.model_name={world / 'model'}"]
    evaluate = ["evaluate", "--limit", "1", f"--output={output}/e"]
    oracle = [*evaluate, "--mode", "agent", "--policy", "oracle"]
    run, words = {
        "audit": (task_tester.main, ["audit", "--", given]),
        "audit --data-dir": (task_tester.main, ["audit", tasks, f"--data-dir={given}"]),
        "audit --run": (task_tester.main, ["audit", tasks, f"--run={given}"]),
        "audit --against": (task_tester.main, ["audit", tasks, f"--against={given}"]),
        "audit --trajectories": (task_tester.main, ["audit", tasks, f"--trajectories={given}"]),
        "score --tasks": (task_tester.main, ["score", f"--tasks={given}", "--completions", answers]),
        "score --completions": (task_tester.main, ["score", "--tasks", tasks, f"--completions={given}"]),
        "evaluate --model": (task_tester.main, [*evaluate, f"--model={given}", "--tasks", tasks]),
        "evaluate --tasks": (task_tester.main, [*evaluate, "--model", model, f"--tasks={given}"]),
        "agent --tasks": (task_tester.main, [*oracle, f"--tasks={given}"]),
        "agent --data-dir": (task_tester.main, [*oracle, "--tasks", tasks, f"--data-dir={given}"]),
        "compare": (compare.main, [f"--tasks={tasks}", f"--output={output}/c.html", "--", given, given]),
        "compare --tasks": (compare.main, [f"--tasks={given}", f"--output={output}/c.html", model, model]),
        "report": (audit_report.main, [f"--output={output}/r.md", "--", given]),
        "generator --data-dir": (task_generator.main, [
            "--num-tasks", "1", "--seed", "1", f"--data-dir={given}", f"--output={output}/g.jsonl"]),
        "trajectories --tasks": (task_generator.main, [
            "trajectories", f"--tasks={given}", f"--output={output}/t.jsonl"]),
        "chat": (train_script.main, ["chat", f"--model={given}"]),
        "export": (train_script.main, [
            "export", f"--model={given}", "--format", "16bit", f"--output={output}/x"]),
        "export --llama-cpp": (train_script.main, [
            "export", "--model", model, "--format", "gguf", f"--llama-cpp={given}", f"--output={output}/x"]),
        "train --dataset": (train_script.main, [*train, f"--dataset={given}"]),
        "train model": (train_script.main, [
            *train[:-2], "--dataset", tasks, "--set", f"model.model_name={given}"]),
        "train store": (train_script.main, [*train, "--dataset", tasks, "--set", f"data.data_dir={given}"]),
    }[name]
    try:
        return run(words)
    except SystemExit as stopped:
        return stopped.code or 0


COMMANDS = (
    "audit", "audit --data-dir", "audit --run", "audit --against", "audit --trajectories",
    "score --tasks", "score --completions", "evaluate --model", "evaluate --tasks", "agent --tasks",
    "agent --data-dir", "compare", "compare --tasks", "report", "generator --data-dir",
    "trajectories --tasks", "chat", "export", "export --llama-cpp", "train --dataset", "train model",
    "train store",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [
    "stranger", "FILE/below", "loop", "none/such", "-none", "a\nb\x1b[31m", "x" * 300, "x/" * 3000,
    "na\udcffme", "/dev/null", " ",
])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_input_that_is_something_else_is_one_line(world, tmp_path, monkeypatch, capsys, name, kind):
    given = kind
    if kind in ("stranger", "FILE/below"):
        given = str(world / kind)
    elif kind == "loop":
        given = str(tmp_path / "loop")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before, output = sums(world), tmp_path / "output"
    output.mkdir()
    assert read_from(name, world, given, output) in (1, 2)
    error = error_line(capsys)
    assert error.isprintable() and len(error) < 1200 and ";" in error
    assert sums(world) == before
    assert {path.name for path in output.rglob("*")} <= {"run", "run.lock", "config.json"}


@pytest.mark.parametrize("option", ["--dataset", "--output-dir"])
def test_an_empty_path_is_no_default(world, capsys, option):
    assert train_script.main(["--preset", "cpu", f"{option}="]) == 2
    assert f"{option}: is empty; name a path" in error_line(capsys)


def command_on_a_full_disk(name: str, world: Path, output: Path) -> tuple[int, str]:
    """Run a command in a fork whose files may have 600 bytes; return its exit code and what it says.

    The limit fails writes as a full disk does, for root too.
    """
    reader, writer = os.pipe()
    process_id = os.fork()
    if not process_id:
        code = 70
        try:
            sys.stdout, sys.stderr = open(os.devnull, "w"), open(writer, "w")
            os.dup2(writer, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
            code = command(name, world, output)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]), text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), [
    ("score", "s.jsonl"), ("audit", "r.md"), ("report", "r.md"), ("generator", "t.jsonl"),
    ("make_store", "store"), ("agent", "e"), ("evaluate", "e"), ("export", "x"), ("train", "run"),
])
def test_a_write_that_fails_midway_is_one_line_and_loses_nothing(world, tmp_path, name, place):
    code, said = command_on_a_full_disk(name, world, tmp_path / place)
    lines = [line for line in said.splitlines() if line and "Loading weights" not in line]
    assert code in (1, 2) and len(lines) == 1, said
    assert str(tmp_path / place) in lines[0] and ";" in lines[0]
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
    if name != "train":
        assert command(name, world, tmp_path / place) == 0  # once there is room


def odd_places(folder: Path) -> dict[str, Path]:
    loop = folder / "loop"
    loop.symlink_to(loop)
    return {
        "leads to itself": loop, "File name too long": folder / ("x" * 300),
        "is no text in UTF-8": folder / "na\udcffme", "record": folder / ".written_by.json",
    }


@pytest.mark.parametrize("kind", ["leads to itself", "File name too long", "is no text in UTF-8", "record"])
def test_places_that_no_file_can_have_are_refused(tmp_path, kind):
    mine = tmp_path / "mine.txt"
    mine.write_text("x")
    outputs.record("score", [mine])
    before = (tmp_path / outputs.RECORD_NAME).read_bytes()
    with pytest.raises(outputs.OutputError, match=kind) as error:
        outputs.check_files("score", [odd_places(tmp_path)[kind]], overwrite=True)
    assert "\n" not in str(error.value)
    assert (tmp_path / outputs.RECORD_NAME).read_bytes() == before


def test_a_generator_output_with_too_long_a_name_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        task_generator.main(["--num-tasks", "2", "--seed", "1", "--output", str(tmp_path / ("x" * 300))])
    error = capsys.readouterr().err
    assert stop.value.code in (1, 2) and error.count("\n") == 1 and "File name too long" in error
