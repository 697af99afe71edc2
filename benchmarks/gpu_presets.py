"""Measure the peak GPU memory of SFT and GRPO in every GPU preset, under a cap of that memory.

    python benchmarks/gpu_presets.py --model MODEL --output benchmarks/results/gpu_presets.json

Each preset runs `gpu_pipeline.py` in a process of its own, all at once on one large GPU, each held
to its cap by PyTorch. `reserved_gib` is what the allocator took from the GPU; the CUDA context,
about 0.5 GiB, comes on top. Times are worthless here, as the processes share the GPU. A 16-bit
model is packed to 4 bits before they start: they must not write its copy all at once.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CAPS_GIB = {"t4": 14.0, "24gb": 22.0, "80gb": 78.0}
"""GiB of the card (14.6, 22.5 to 23.6, 79.2) less the context."""

PACK = """
import sys
from pathlib import Path
import training  # Unsloth, before anything that it patches
from gptoss.nf4 import holds_fused_experts, pack_checkpoint
if holds_fused_experts(Path(sys.argv[1])):
    pack_checkpoint(Path(sys.argv[1]))
"""
"""Run in a process of its own, as importing `training` would keep part of the GPU's memory."""


def start(preset: str, arguments: argparse.Namespace) -> tuple[Path, subprocess.Popen]:
    """Start one preset; its figures come as a JSON file beside the output."""
    path = arguments.output.with_name(f"{arguments.output.stem}_{preset}.json")
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gpu_pipeline.py"), "--preset", preset,
        "--output", str(path), "--run-dir", f"{arguments.work_dir}/{preset}",
        "--memory-gib", str(CAPS_GIB[preset]), "--sft-steps", "2", "--grpo-steps", "5",
        "--eval-tasks", "0", "--completion-tokens", str(arguments.completion_tokens),
    ]
    if arguments.model:
        command += ["--model", arguments.model]
    for text in arguments.set:
        command += ["--set", text]
    with open(f"{arguments.work_dir}/{preset}.log", "w", encoding="utf-8") as log:
        # Unsloth writes generated code into a folder; processes must not share it.
        cache = {"UNSLOTH_COMPILE_LOCATION": f"{arguments.work_dir}/{preset}_compiled"}
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **cache}
        )
    return path, process


def main() -> None:
    """Run the presets side by side and gather their peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder or hub name (the presets')")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work-dir", default="outputs/gpu_presets")
    parser.add_argument("--presets", default="t4,24gb,80gb")
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--timeout-s", type=float, default=540)
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    arguments = parser.parse_args()
    Path(arguments.work_dir).mkdir(parents=True, exist_ok=True)
    if arguments.model and Path(arguments.model).is_dir():
        packing = subprocess.run([sys.executable, "-c", PACK, arguments.model], cwd=ROOT)
        if packing.returncode:
            sys.exit(f"error: {arguments.model} could not be packed to 4 bits, see above")
    runs = {preset: start(preset, arguments) for preset in arguments.presets.split(",")}
    summary: dict[str, dict] = {}
    for preset, (path, process) in runs.items():
        try:
            code = process.wait(timeout=arguments.timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "stopped at the time limit"
        figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        summary[preset] = {
            "cap_gib": CAPS_GIB[preset], "exit_code": code, "device": figures.get("device"),
            "trainable": figures.get("trainable"),
        }
        for part in ("load", "sft", "grpo"):
            if part in figures:
                summary[preset][f"{part}_peak_gib"] = figures[part]["reserved_gib"]
        arguments.output.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
