"""Imports point down: the contracts of pyproject.toml, and what the modules at the root may import."""

import ast
import os
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


def test_private_names_of_trainers_are_in_one_module():
    found = set()
    for path in [*ROOT.glob("training/*.py"), *ROOT.glob("gptoss/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                owner = ast.unparse(node.value)
                if owner.rpartition(".")[2] in ("trainer", "args", "arguments"):
                    found.add((path.stem, node.attr))
            if isinstance(node, ast.ClassDef) and any("Trainer" == ast.unparse(b)[-7:] for b in node.bases):
                found |= {(path.stem, f.name) for f in node.body if getattr(f, "name", "")[:1] == "_"}
    assert {module for module, _ in found} == {"trl_private"}
    assert {"_setup_devices", "_get_train_sampler", "_prepare_inputs"} <= {name for _, name in found}


@pytest.mark.parametrize(("capability", "given", "used"), [
    ((8, 0), {}, "partial"), ((9, 0), {"UNSLOTH_COMPILE_DISABLE": "0"}, "0"), ((7, 5), {}, "None"),
])
def test_unsloth_leaves_layers_uncompiled_unless_asked(tmp_path, capability, given, used):
    (tmp_path / "unsloth.py").write_text("import os; print(os.environ.get('UNSLOTH_COMPILE_DISABLE'))\n")
    code = "import torch; torch.cuda.is_available = lambda: True; " \
           f"torch.cuda.get_device_capability = lambda: {capability}; import gptoss"
    environment = {k: v for k, v in os.environ.items() if k != "UNSLOTH_COMPILE_DISABLE"} | given
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )
    assert done.stdout.split() == [used], done.stderr
