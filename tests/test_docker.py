"""Docker files and requirements agree: nothing is pinned twice, nothing named that is not there.

The images themselves are not built here; see docs/GPU.md.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import train_script
from common.versions import GPU_ONLY, KNOWN_TO_BREAK, read_pins
from gptoss.vllm_engine import VERSION

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
PINS = read_pins(ROOT / "requirements.txt")
CPU_PINS = read_pins(ROOT / "requirements-cpu.txt")


def instructions(path: Path) -> list[str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def test_one_pin_for_cpu_and_gpu():
    """Torch alone differs: the GPU stack has the version that its figures were measured with."""
    both = PINS.keys() & CPU_PINS.keys()
    assert {name for name in both if PINS[name] != CPU_PINS[name]} == {"torch"}
    assert PINS.keys() - CPU_PINS.keys() == {*GPU_ONLY, "vllm"} and PINS["vllm"] == VERSION
    assert not CPU_PINS.keys() - PINS.keys()
    assert PINS["unsloth"] == PINS["unsloth_zoo"]


def test_no_pin_is_a_version_that_is_known_to_break():
    for name, versions, stacks, _ in KNOWN_TO_BREAK:
        for gpu in stacks:
            pin = (PINS if gpu else CPU_PINS)[name]
            assert not SpecifierSet(versions).contains(pin), (name, pin)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_takes_its_versions_from_requirements(path):
    text = "\n".join(instructions(path))
    for name, version in re.findall(r"\b([A-Za-z][\w-]*)==(\d[\w.]*)", text):
        assert PINS[name.replace("-", "_")] == version, f"{path.name} pins {name} by itself"
    assert "requirements.txt" in text
    for line in instructions(path):
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
        if line.startswith("CMD"):
            python, script, *words = json.loads(line.removeprefix("CMD"))
            assert python == "python" and script == "train_script.py"
            train_script.parse_arguments(words)
    assert f"docker build -f docker/{path.name} " in (ROOT / "docs" / "GPU.md").read_text()


def test_the_spark_image_keeps_the_vendors_torch():
    """Its two greps split requirements.txt into Unsloth, without dependencies, and the rest."""
    text = (ROOT / "docker" / "Dockerfile.dgx-spark").read_text()
    commands = re.findall(r"grep -E[vo] '[^']+' requirements.txt", text)
    assert len(commands) == 2
    rest, unsloth = (
        subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True).stdout
        for command in commands
    )
    assert unsloth.split() == [f"{name}=={PINS[name]}" for name in ("unsloth", "unsloth_zoo")]
    kept = {name.replace("-", "_") for name in re.findall(r"^([\w-]+)==", rest, re.M)}
    assert kept == PINS.keys() - {"torch", "unsloth", "unsloth_zoo"}


def test_images_do_not_take_the_hosts_packages_and_runs():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", ".git", "outputs/*"} <= set(ignored)
