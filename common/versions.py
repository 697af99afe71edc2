"""Compare the installed packages with the pins, before anything heavy is imported.

Warns about versions that differ from their pins, refuses those known not to work. Torch is not
imported here: a wrong version of one package can make the import of another fail, with an error that
says nothing of versions.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = (
    "torch", "unsloth", "unsloth_zoo", "trl", "transformers", "peft", "bitsandbytes", "accelerate",
    "datasets",
)
GPU_ONLY = ("unsloth", "unsloth_zoo", "bitsandbytes")
NEEDED = (*(name for name in COMPONENTS if name not in GPU_ONLY), "tensorboard", "matplotlib")
"""What a run imports sooner or later; plots are drawn at its end, hours in."""
KNOWN_TO_BREAK = (
    ("trl", "==1.15.0", (False,), "training crashes on a machine without triton"),
    ("trl", ">1.15.0", (True,), "Unsloth refuses it"),
    ("transformers", ">5.17.0", (True,), "Unsloth refuses it"),
    ("datasets", ">=5", (True,), "Unsloth refuses it"),
    ("datasets", "<4.7", (True, False), "TRL refuses it"),
    ("torch", ">=2.15", (True,), "Unsloth refuses it"),
)
"""Package, versions, with the GPU stack or without or both, and what happens there."""


def has_gpu_stack() -> bool:
    """Say whether this machine is meant to train on a GPU: Unsloth or NVIDIA's driver is there."""
    return importlib.util.find_spec("unsloth") is not None or bool(shutil.which("nvidia-smi"))


def driver_lists_gpu() -> bool:
    """Say whether NVIDIA's driver is there and lists a GPU."""
    if not shutil.which("nvidia-smi"):
        return False
    return "GPU " in subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout


def why_gpu_is_unused() -> str:
    """Say why torch cannot use the GPU that this machine seems to have, and the remedy.

    Empty without NVIDIA's driver, as no GPU is missed there.
    """
    if not driver_lists_gpu():
        return ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden} hides the GPU: unset it"
    if (installed("torch") or "").endswith("+cpu"):
        return (
            "torch cannot use the GPU, as it is built for CPUs only: pip uninstall torch, then pip "
            f"install -r {requirements_name(gpu=True)}"
        )
    pin = read_pins(ROOT / requirements_name(gpu=True))["torch"]
    return (
        "torch cannot use the GPU, most likely because the driver is older than torch's CUDA 13 "
        "needs (driver 580 or later, `nvidia-smi` shows it): update the driver, or install "
        f"torch=={pin} built for CUDA 12 in its place (docs/GPU.md)"
    )


def requirements_name(gpu: bool) -> str:
    """Return the name of the requirements file whose pins apply."""
    return "requirements.txt" if gpu else "requirements-cpu.txt"


def read_pins(path: Path) -> dict[str, str]:
    """Return the exact pins (`name==version`) of a requirements file."""
    pins = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9_.-]+)==([^\s;#]+)", line):
            pins[match[1].replace("-", "_")] = match[2]
    return pins


def component_lines(gpu: bool) -> list[str]:
    """Describe every component against its pin, the GPU stack's or the CPU's, one line each.

    Such as `trl 1.14.2 (pinned)`; a line with WRONG or MISSING names the command that fixes it.
    """
    name_of_file = requirements_name(gpu)
    pins = read_pins(ROOT / name_of_file)
    names = [name for name in COMPONENTS if gpu or name not in GPU_ONLY]
    return [_component_line(name, pins.get(name), name_of_file) for name in names]


def installed(name: str) -> str | None:
    """Return the version of an installed package, None when there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _component_line(name: str, pin: str | None, file_name: str) -> str:
    version = installed(name)
    if version is None:
        return f"{name} MISSING: {_install_remedy(file_name)}"
    # Wheels for one CUDA version carry it as a local part: 2.11.0+cu130 is 2.11.0.
    if pin is None:
        return f"{name} {version}"
    if version.split("+")[0] == pin.split("+")[0]:
        return f"{name} {version} (pinned)"
    return f"{name} {version} WRONG, the pin is {pin}: pip install -r {file_name}"


def find_broken(gpu: bool) -> str:
    """Say which package is missing, or of a version known not to work here, and the remedy; "" if none.

    Args:
        gpu: Whether the GPU stack is meant, so that Unsloth trains.
    """
    if missing := find_missing(NEEDED, gpu):
        return missing
    remedy = f"pip install -r {requirements_name(gpu)}"
    for name, versions, stacks, happens in KNOWN_TO_BREAK:
        if gpu in stacks and SpecifierSet(versions).contains(installed(name), prereleases=True):
            return f"{name} {installed(name)}: {happens}; {remedy}"
    return ""


def find_missing(names: tuple[str, ...], gpu: bool) -> str:
    """Name the first of these packages that is not installed, in one line as `find_broken` does."""
    for name in names:
        if installed(name) is None:
            return f"{name} is not installed: {_install_remedy(requirements_name(gpu))}"
    return ""


def _install_remedy(file_name: str) -> str:
    """Say how packages get here: from the environment of `make install` if it is there, else by pip."""
    made = ROOT / ".venv"
    if (made / "bin" / "activate").is_file() and made.resolve() != Path(sys.prefix).resolve():
        return "source .venv/bin/activate"
    return f"pip install -r {file_name}"
