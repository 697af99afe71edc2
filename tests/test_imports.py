"""Imports point down: the contracts of pyproject.toml, and what the modules at the root may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"agent", "common", "envs", "gptoss", "prompting", "scoring", "tasks", "training"}
MODULES = {path.stem for path in ROOT.glob("*.py")}
ALLOWED = {
    "configs": {"common"},
    "data_reader": {"common", "envs", "prompting"},
    "task_generator": {"agent", "common", "data_reader", "envs", "scoring", "tasks"},
    "task_tester": (ROOMS | MODULES) - {"task_generator", "train_script"},
    "train_script": (ROOMS | MODULES) - {"task_generator", "task_tester"},
}


def test_contracts_hold():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_at_the_root_import_only_what_is_below(module):
    imported = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported & (ROOMS | MODULES) <= ALLOWED[module]
