"""What a sweep varies (fields with a range or a list of values), and its command line."""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import configs

if TYPE_CHECKING:
    import optuna

OBJECTIVES = ("exact_match_rate", "db_match_rate")
EPILOG = """swept values:
  log:LOW:HIGH      a number on a logarithmic scale   grpo.learning_rate=log:1e-6:1e-4
  range:LOW:HIGH    a number (whole for whole fields)  grpo.temperature=range:0.6:1.2
  choice:A,B,...    one of the values                  grpo.beta=choice:0,0.01,0.05

examples:
  python train_script.py sweep --preset cpu --num-trials 20
  python train_script.py sweep --param grpo.learning_rate=log:1e-6:1e-4 --set grpo.max_steps=100

Started again with the same options, a killed sweep resumes; a larger --num-trials adds trials.
"""


@dataclass(frozen=True)
class Parameter:
    """One swept field."""

    path: str
    """Dotted name of the field, such as "grpo.learning_rate"."""
    kind: str
    """"log", "range" or "choice"."""
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str | float | int | bool, ...] = ()
    is_whole: bool = False
    """Whether a range holds whole numbers only."""

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """Return the range as the study stores it."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.choices)
        if self.is_whole:
            low, high = int(self.low), int(self.high)
            return distributions.IntDistribution(low, high, log=self.kind == "log")
        return distributions.FloatDistribution(self.low, self.high, log=self.kind == "log")

    def contains(self, value: Any) -> bool:
        """Return whether a value can be drawn."""
        if self.kind == "choice":
            return value in self.choices
        return self.low <= value <= self.high


DEFAULT_SPACE = (
    Parameter("grpo.learning_rate", "log", 1e-6, 1e-3),
    Parameter("grpo.temperature", "range", 0.6, 1.2),
    Parameter("grpo.beta", "choice", choices=(0.0, 0.005, 0.01, 0.05)),
    # Advantages are scaled, so only the ratio of the two reward weights matters: one stays at 1.
    Parameter("grpo.outcome_reward_weight", "range", 0.0, 4.0),
)
"""What is swept when no --param is given."""


def parse_parameter(text: str, base: configs.RunConfig) -> Parameter:
    """Read one --param, with the field's type and its allowed values checked.

    Args:
        text: `STAGE.FIELD=log:LOW:HIGH`, `=range:LOW:HIGH` or `=choice:A,B,...`.
        base: Settings that every trial starts from.

    Raises:
        ConfigError: The text is malformed, the field is unknown or not to be swept, or a bound or
            a choice does not fit the field.
    """
    path, separator, spec = text.partition("=")
    kind, colon, rest = spec.partition(":")
    if not separator or not colon or kind not in ("log", "range", "choice"):
        raise configs.ConfigError(
            f"--param {text}: write STAGE.FIELD=log:LOW:HIGH, =range:LOW:HIGH or =choice:A,B"
        )
    stage = path.partition(".")[0]
    if stage not in ("model", "sft", "grpo"):
        raise configs.ConfigError(
            f"--param {text}: only fields of model, sft and grpo are swept; trials with other data "
            "or evaluation settings could not be compared"
        )
    words = rest.split("," if kind == "choice" else ":")
    if len(words) < 2 or (kind != "choice" and len(words) != 2):
        raise configs.ConfigError(f"--param {text}: give two values or more to a choice, LOW and "
                                  "HIGH to a range")
    values = [typed_value(base, path, word) for word in words]
    if kind == "choice":
        if len(set(values)) < len(values):
            raise configs.ConfigError(f"--param {text}: a value is given twice")
        return Parameter(path, kind, choices=tuple(values))
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise configs.ConfigError(f"--param {text}: {path} is no number; use choice:A,B")
    low, high = values
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise configs.ConfigError(f"--param {text}: LOW must be a number below HIGH")
    if kind == "log" and low <= 0:
        raise configs.ConfigError(f"--param {text}: LOW must be above 0 on a logarithmic scale")
    return Parameter(path, kind, low, high, is_whole=isinstance(low, int))


def typed_value(base: configs.RunConfig, path: str, word: str | None = None) -> Any:
    """Return a value, given as text, in its field's type; None takes the field's value in `base`.

    Raises:
        ConfigError: The field is unknown, or the value does not fit it.
    """
    stage, _, name = path.partition(".")
    return getattr(getattr(configs.with_overrides(base, {path: word}), stage), name)


def build_sweep_parser() -> argparse.ArgumentParser:
    """Return the parser of the sweep command."""
    parser = argparse.ArgumentParser(
        prog="train_script.py sweep", epilog=EPILOG,
        description="Try settings on the training users, compare them on the validation users.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    configs.add_run_arguments(parser, "outputs/sweep")
    parser.set_defaults(mode="plan", output_dir="outputs/sweep")
    parser.add_argument(
        "--num-trials", type=int, default=20, metavar="N",
        help="trials in all (20); the first ones are drawn at random, the later ones where earlier "
        "ones did well",
    )
    parser.add_argument(
        "--param", action="append", default=[], metavar="STAGE.FIELD=RANGE", dest="parameters",
        help="sweep this field, instead of the defaults: "
        + ", ".join(p.path for p in DEFAULT_SPACE) + "; may be repeated",
    )
    parser.add_argument(
        "--objective", choices=OBJECTIVES, default=OBJECTIVES[0],
        help="what is compared; exact_match_rate (default) also tells answers apart where gold "
        "writes nothing",
    )
    return parser


@dataclass(frozen=True)
class Sweep:
    """A sweep as the command line asks for it."""

    base: configs.RunConfig
    """Settings of every trial, before the swept ones."""
    space: tuple[Parameter, ...]
    """What varies."""
    objective: str
    num_trials: int
    folder: Path
    words: tuple[str, ...] = ()
    """Words of the command line that make the base settings, for the closing advice."""

    @property
    def shares_sft(self) -> bool:
        """Whether one SFT adapter serves all trials: nothing that varies reaches it."""
        return all(parameter.path.startswith("grpo.") for parameter in self.space)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when the sweep is resumed."""
        settings = json.loads(self.base.to_json())
        for name in ("output_dir", "show_progress", "merge_model"):
            del settings[name]
        space = [[p.path, p.kind, p.low, p.high, list(p.choices)] for p in self.space]
        return {"settings": settings, "space": space, "objective": self.objective}

    def trial_dir(self, number: int) -> Path:
        """Return the run folder of a trial."""
        return self.folder / "trials" / f"{number:03d}"

    def trial_config(self, number: int, values: dict[str, Any]) -> configs.RunConfig:
        """Return the settings of a trial."""
        return configs.with_overrides(
            self.base, values | {"output_dir": str(self.trial_dir(number)), "merge_model": False}
        )


def sweep_from_arguments(arguments: argparse.Namespace) -> Sweep:
    """Return the sweep that the command line asks for.

    Raises:
        ConfigError: A setting or a swept range does not fit.
    """
    if arguments.num_trials < 1:
        raise configs.ConfigError(f"--num-trials {arguments.num_trials}: must be 1 or more")
    base = configs.config_from_arguments(arguments)
    space = tuple(parse_parameter(text, base) for text in arguments.parameters)
    paths = [parameter.path for parameter in space]
    if len(set(paths)) < len(paths):
        raise configs.ConfigError("--param: a field is given twice; give each one range")
    words = ["--preset", base.preset]
    if arguments.dataset:
        words += ["--dataset", arguments.dataset]
    for text in arguments.overrides:
        words += ["--set", text]
    return Sweep(
        base, space or DEFAULT_SPACE, arguments.objective, arguments.num_trials,
        Path(base.output_dir), tuple(words),
    )
