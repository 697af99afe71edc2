"""The notebook's pipeline without Jupyter, for the shell, torchrun and accelerate.

Exit code 0: done. 1: data, model or run folder cannot be used. 2: wrong usage. 130: interrupted.
`--set stage.field=value` reaches every setting.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import configs
from common import versions
from common.user_error import UserError, print_error, system_error

EPILOG = """examples:
  python train_script.py --preset cpu
  python train_script.py --preset cpu --mode agent --output-dir outputs/agent
  python train_script.py --preset 24gb --dataset my_tasks.jsonl --set grpo.learning_rate=1e-5
  python train_script.py --preset cpu --output-dir outputs/run2 --resume
  torchrun --nproc_per_node=2 train_script.py --preset 80gb
  python train_script.py chat --model outputs/tau_bench_rl/final_model
  python train_script.py export --model outputs/tau_bench_rl/final_model --format mxfp4 \\
      --output outputs/mxfp4_model
  python train_script.py sweep --help
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are printed once, however many processes torchrun started."""

    def error(self, message: str) -> NoReturn:
        print_error(f"{self.format_usage()}{self.prog}: error: {message}")
        self.exit(2)


COMMANDS = ("train", "chat", "export", "sweep")


def build_parser(command: str = "train") -> argparse.ArgumentParser:
    """Return the parser of all commands; without a command it takes the options of `train`.

    Args:
        command: `sweep` adds the options of a sweep, which come from `training`.
    """
    options = argparse.ArgumentParser(add_help=False)
    configs.add_run_arguments(options, configs.RunConfig.output_dir)
    options.add_argument(
        "--mode", choices=configs.MODES, default="plan",
        help="plan: one answer with all calls (default); agent: conversations with a customer",
    )
    options.add_argument(
        "--resume", action="store_true", help="resume a run that was killed, from its checkpoints"
    )
    texts: dict[str, Any] = {
        "description": "Evaluate, SFT, evaluate, GRPO, evaluate, save, plot.", "epilog": EPILOG,
        "formatter_class": argparse.RawDescriptionHelpFormatter, "parents": [options],
    }
    parser = _Parser(prog="train_script.py", **texts)
    parser.set_defaults(run=train)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    commands.add_parser("train", help="run the pipeline (default)", prog=parser.prog, **texts)
    talk = commands.add_parser(
        "chat", help="talk to a trained model",
        description="Talk to a trained model and see its calls run.",
    )
    talk.set_defaults(run=chat)
    talk.add_argument("--model", required=True, metavar="DIR", help="model or adapter folder")
    _add_export(commands)
    found: dict[str, Any] = {}
    if command == "sweep":
        from training.sweep_space import build_sweep_parser

        own = build_sweep_parser()
        found = {
            "parents": [own], "add_help": False, "description": own.description,
            "epilog": own.epilog, "formatter_class": own.formatter_class,
        }
    sweeper = commands.add_parser("sweep", help="search for better settings", **found)
    sweeper.set_defaults(run=sweep)
    return parser


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export", help="write a trained model for serving",
        description="Write a trained model for serving, load it again and compare the two.",
    )
    parser.set_defaults(run=export)
    parser.add_argument("--model", required=True, metavar="DIR", help="adapter or model folder")
    parser.add_argument(
        "--format", required=True, choices=("16bit", "mxfp4", "gguf", "adapter"),
        help="16bit (2 bytes a parameter; 4 on a CPU), mxfp4 (experts in 4.25 bits), gguf (mxfp4 "
        "and a model.gguf beside it), or adapter (alone, as vLLM reads it)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--llama-cpp", default="llama.cpp", metavar="DIR",
        help="llama.cpp's sources, whose converter gguf needs (llama.cpp)",
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of one command, `run` its function; the words may leave out `train`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] not in (["-h"], ["--help"]) and not {*words[:1]} & {*COMMANDS}:
        words = ["train", *words]
    return build_parser(words[0]).parse_args(words)


def train(arguments: argparse.Namespace) -> int:
    """Run the pipeline; return the exit code."""
    try:
        config = configs.config_from_arguments(arguments)
    except configs.ConfigError as error:
        print_error(f"error: {error}")
        return 2
    from training.pipeline import run_pipeline

    if arguments.preset == "auto" and os.environ.get("RANK", "0") == "0":
        print(configs.describe_device(config.model.model_name))
    if arguments.resume and not (Path(config.output_dir) / "config.json").exists():
        print(f"no earlier run in {config.output_dir}: a new one begins")
    run_pipeline(config, arguments.resume)
    from accelerate import PartialState  # not before training: Unsloth comes first

    # Several processes on GPUs: NCCL warns of a leak when they end without this.
    PartialState().destroy_process_group()
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"done: {config.output_dir} holds final_model, evaluation.json and plots")
    return 0


def chat(arguments: argparse.Namespace) -> int:
    """Talk to a trained model; return the exit code."""
    from training.chat import run_chat

    return run_chat(arguments.model)


def export(arguments: argparse.Namespace) -> int:
    """Write a trained model for serving; return the exit code."""
    from gptoss.export import run_export

    return run_export(arguments.model, arguments.format, arguments.output, arguments.llama_cpp)


def sweep(arguments: argparse.Namespace) -> int:
    """Search for better settings; return the exit code."""
    from training.sweep import run_sweep

    return run_sweep(arguments)


def check_versions() -> bool:
    """Warn of packages that differ from their pins; say whether none is known not to work."""
    gpu = versions.has_gpu_stack()
    broken = versions.find_broken(gpu)
    if os.environ.get("RANK", "0") == "0":
        for line in versions.component_lines(gpu):
            # The broken one is reported below, with what happens.
            if (" WRONG" in line or " MISSING" in line) and line.split()[0] != broken.split(" ")[0]:
                print(f"warning: {line}", file=sys.stderr)
    if broken:
        print_error(f"error: {broken}")
    return not broken


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Words after the program's name; None takes those of the process.
    """
    arguments = parse_arguments(argv)
    command = arguments.run
    if not check_versions():
        return 1
    try:
        return command(arguments)
    except KeyboardInterrupt:
        again = "; start again with --resume to go on" if command is train else ""
        print(f"\nstopped{again}", file=sys.stderr)
        return 130
    except UserError as error:
        lines = str(error).splitlines()
        print_error("error: " + ("; ".join(lines) if len(lines) <= 3 else str(error)))
        return 1
    except OSError as error:
        from common.files import disk_full_error, is_disk_full

        folder = Path(getattr(arguments, "output_dir", None) or ".")
        if not is_disk_full(error, folder):
            if error.filename is None:  # no file of the user's
                raise
            print_error(f"error: {system_error(error, folder)}")
            return 1
        again = "disk full; free some space and start again"
        print_error(f"error: {disk_full_error(folder) if command is train else again}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
