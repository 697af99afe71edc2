"""The warnings of GRPO: rules over the rows of metrics.csv, and what to do where one holds.

They read rows alone, so they can be tested on rows and hold for any run.
"""

from collections.abc import Callable
from statistics import fmean
from typing import NamedTuple

MAX_SAMPLER_KL = 0.1
"""Nats a token between the sampler and the trainer above which importance weights are mostly noise."""
Row = dict[str, float]


class Finding(NamedTuple):
    """A warning rule's finding."""

    kind: str
    message: str


def _column(rows: list[Row], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def _lasts(rows: list[Row], least: float, *names: str) -> bool:
    """Return whether columns sum to `least` or more in each of the last three rows that have them."""
    last = [sum(row[name] for name in names) for row in rows if names[0] in row][-3:]
    return len(last) == 3 and min(last) >= least


def _dead_groups(rows: list[Row]) -> bool:
    last = _column(rows, "frac_reward_zero_std")[-5:]
    return len(last) == 5 and min(last) > 0.999


def _length_collapse(rows: list[Row]) -> bool:
    lengths = _column(rows, "completions/mean_length")
    return len(lengths) >= 8 and fmean(lengths[-3:]) < 0.4 * fmean(lengths[:5])


def _dropped_calls(rows: list[Row]) -> tuple[float, float] | None:
    ratios = _column(rows, "rollouts/calls_per_gold")
    if len(ratios) < 8:
        return None
    start, now = fmean(ratios[:5]), fmean(ratios[-3:])
    return (now, start) if now < 0.75 * start else None


def _kl_blow_up(rows: list[Row]) -> tuple[float] | None:
    values = _column(rows, "kl_to_sft") or _column(rows, "kl_to_base")
    # Against the start and not against the step before: a slow rise ends as far away as a jump.
    rose = len(values) > 1 and values[-1] > max(0.5, 5 * fmean(values[:-1][:10]))
    return (values[-1],) if rose else None


def _result_falls(rows: list[Row], by: float, reward_rises: bool) -> tuple[float] | None:
    figures = _column(rows, "heldout/db_match") or _column(rows, "heldout/success")
    fell = max(figures) - figures[-1] if figures else 0.0
    rewards = _column(rows, "reward")
    rises = len(rewards) >= 10 and fmean(rewards[-5:]) > fmean(rewards[:5])
    return (fell,) if fell >= by and rises == reward_rises else None


def _parse_rate_falls(rows: list[Row]) -> bool:
    rates = _column(rows, "rollouts/parsed")
    return len(rates) >= 10 and fmean(rates[-5:]) < fmean(rates[:5]) - 0.1


def _sampler_apart(rows: list[Row]) -> tuple[float] | None:
    last = _column(rows, "sampling/kl")[-3:]
    return (fmean(last),) if len(last) == 3 and fmean(last) > MAX_SAMPLER_KL else None


def _never_writes(rows: list[Row]) -> bool:
    last = _column(rows, "episodes/writes_per_gold")[-3:]
    return len(last) == 3 and max(last) < 0.1


class Rule(NamedTuple):
    """What a run is warned of."""

    holds: Callable[[list[Row]], tuple[float, ...] | bool | None]
    """Whether it holds at the last row; the figures of the message where it has any."""
    message: str


RULES = {
    "dead_groups": Rule(
        _dead_groups,
        "every group had zero variance for 5 steps, so nothing is learned: raise grpo.temperature, "
        "set grpo.resample_rounds=2, or train SFT longer (shorter if every reward is at its maximum)",
    ),
    "clipping": Rule(
        # A conversation may well end with what somebody else said, which counts as clipped.
        lambda rows: not _column(rows, "turn_failures/cut_off")
        and _lasts(rows, 0.5, "completions/clipped_ratio"),
        "half of the completions or more are cut at grpo.max_completion_length: raise it, or train "
        "SFT longer so that answers end",
    ),
    "cut_turns": Rule(
        lambda rows: _lasts(rows, 0.5, "turn_failures/cut_off"),
        "half of the conversations or more end in a turn that is cut at agent.max_turn_tokens: raise "
        "it, or train SFT longer so that turns end",
    ),
    "context_full": Rule(
        lambda rows: _lasts(rows, 0.5, "turn_failures/context_full"),
        "half of the conversations or more outgrow model.max_seq_length, with which SFT left the "
        "longer ones out: raise it",
    ),
    "length_collapse": Rule(
        _length_collapse,
        "completions are less than 0.4 times as long as at the start: read the sample rollouts for "
        "what is left out, and lower grpo.learning_rate",
    ),
    "dropped_calls": Rule(
        _dropped_calls,
        "plans hold {:.2f} calls for each gold call, {:.2f} at the start: the policy drops calls to "
        "dodge penalties; lower grpo.learning_rate or raise grpo.outcome_reward_weight",
    ),
    "kl_blow_up": Rule(
        _kl_blow_up,
        "the KL to the reference policy rose to {:.2f}: lower grpo.learning_rate, raise grpo.beta, "
        "or set grpo.max_kl to stop in time",
    ),
    "reward_without_result": Rule(
        lambda rows: _result_falls(rows, 0.05, reward_rises=True),
        "the reward rises while held-out results fell by {:.2f} from its best: read the sample "
        "rollouts for what is rewarded, and set grpo.early_stopping_patience=3",
    ),
    # A small fall alone may be noise: 0.15 is 2.5 standard errors of a share of 64 tasks.
    "result_falls": Rule(
        lambda rows: _result_falls(rows, 0.15, reward_rises=False),
        "held-out results fell by {:.2f} from its best: lower grpo.learning_rate, and set "
        "grpo.early_stopping_patience=3",
    ),
    "parse_rate_falls": Rule(
        _parse_rate_falls,
        "fewer completions are valid JSON than at the start: lower grpo.learning_rate or "
        "grpo.temperature",
    ),
    "sampler_apart": Rule(
        _sampler_apart,
        "what samples and what trains are {:.2f} nats a token apart (KL), more than rounding "
        "explains: set model.vllm_model to the weights that model.model_name was made from, or "
        "model.sampling=fast",
    ),
    "talks_for_ever": Rule(
        lambda rows: _lasts(
            rows, 0.5, "endings/turn_limit", "endings/call_limit", "endings/customer_gave_up"
        ),
        "half of the conversations or more end at agent.max_turns or with a customer who lost "
        "patience: read the sample conversations, and train SFT longer",
    ),
    "never_writes": Rule(
        _never_writes,
        "conversations make less than one change for ten that are asked for: train SFT longer, or "
        "lower grpo.learning_rate",
    ),
    "always_transfers": Rule(
        lambda rows: _lasts(rows, 0.5, "episodes/needless_transfers"),
        "half of the conversations or more are handed to a person who is not needed: lower "
        "grpo.learning_rate, or train SFT longer",
    ),
    "confirms_nothing": Rule(
        lambda rows: _lasts(rows, 0.5, "episodes/unconfirmed_writes"),
        "half of the changes or more are made without the customer's yes: lower "
        "grpo.learning_rate, and read the violations in trajectories.jsonl",
    ),
}


def find_warnings(rows: list[Row]) -> list[Finding]:
    """Return a finding for each rule that holds at the last of the GRPO stage's rows, oldest first."""
    findings = []
    for kind, rule in RULES.items():
        if found := rule.holds(rows):
            figures = found if isinstance(found, tuple) else ()
            findings.append(Finding(kind, rule.message.format(*figures)))
    return findings
