"""The model card of what a run leaves: `README.md` of the adapter, merged and exported folders."""

import json
from pathlib import Path
from typing import Any

from common.files import read_json, write_text_atomic
from configs import is_gpt_oss
from scoring.metrics import format_estimate

STAGE_NAMES = {"base": "base", "sft": "SFT", "sft_grpo": "SFT+GRPO"}
ROWS = {
    "exact_match_rate": "exact match",
    "success_rate": "success",
    "db_match_rate": "store as gold leaves it (db match)",
    "outputs_told_rate": "every answer said",
    "violation_rate": "violations of the policy",
    "action_f1": "action F1",
    "json_parse_success": "JSON parse success",
}

MODES = {
    "plan": (
        "to answer a retail customer's request with a plan of tool calls", "gold tool calls",
        "a reward that executes the tools", "the answer's final message is one JSON object "
        '`{"tool_calls": [{"name": ..., "arguments": ...}]}`',
    ),
    "agent": (
        "to serve a retail customer in conversation, one tool call or message at a time",
        "conversations that end as gold does", "whole conversations on a store",
        "each answer is one call, whose result follows, or words to the customer",
    ),
}
"""By mode: what for, what SFT and GRPO train on, and what an answer is."""


def _evaluation(metrics: dict[str, Any], differences: dict[str, Any]) -> list[str]:
    if not metrics:
        return ["Not evaluated."]
    stages = [stage for stage in STAGE_NAMES if stage in metrics]
    count = metrics[stages[-1]]["num_tasks"]
    lines = [
        f"{count} held-out tasks of customers that no training task knows, greedy decoding, "
        "95 % bootstrap intervals:",
        "",
        "| metric | " + " | ".join(STAGE_NAMES[stage] for stage in stages) + " |",
        "|---" * (len(stages) + 1) + "|",
    ]
    known = [name for name in ROWS if name in metrics[stages[0]]]
    for name in known:
        cells = [format_estimate(metrics[stage][name]) for stage in stages]
        lines.append(f"| {ROWS[name]} | " + " | ".join(cells) + " |")
    for pair, figures in differences.items():
        gains = [f"{ROWS[name]} {format_estimate(figures[name], '+')}" for name in known[:2]]
        lines += ["", f"{pair}, task by task: {', '.join(gains)}."]
    return lines


def model_card(run_dir: Path, adapter: bool) -> str:
    """Return the card's Markdown, with the hub's metadata on top.

    Args:
        run_dir: The run's folder; config.json, evaluation.json and evaluation_details.json are read.
        adapter: The folder holds a LoRA adapter; otherwise complete weights.
    """
    settings = read_json(run_dir / "config.json", {})["settings"]
    model, data, sft, grpo = (settings[name] for name in ("model", "data", "sft", "grpo"))
    base = model["model_name"]
    mode = settings.get("mode", "plan")  # runs from before agent mode have none
    purpose, gold, rollouts, answer = MODES[mode]
    on_hub, gpt_oss = not Path(base).exists(), is_gpt_oss(base)
    details = read_json(run_dir / "evaluation_details.json", {})
    metadata = {
        "base_model": base if on_hub else None,
        "library_name": "peft" if adapter else "transformers",
        "license": "apache-2.0" if gpt_oss else None,  # another model has a license of its own
        "pipeline_tag": "text-generation",
        "tags": [
            *(["gpt-oss"] if gpt_oss else []), "tool-use", "customer-service", "tau-bench", "sft", "grpo",
            "lora",
        ],
    }
    # JSON values are YAML values.
    head = [f"{name}: {json.dumps(value)}" for name, value in metadata.items() if value]
    reach = model["lora_reach"] if gpt_oss else model["lora_reach"].replace("experts", "MLP")
    prompts = "are harmony text" if gpt_oss else "follow the model's chat template"
    kind = "LoRA adapter" if adapter else "complete weights, the adapter folded in"
    package, loader = (
        ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    )
    paths = dict.fromkeys((data["dataset_path"], data.get("grpo_dataset_path")))
    files = [f"`{path}`" for path in paths if path]
    option = " --mode agent" if mode == "agent" else ""
    use = [
        "```python", f"from {package} import {loader}", "",
        f'model = {loader}.from_pretrained("PATH_OF_THIS_FOLDER")', "```",
    ]
    lines = [
        "---", *head, "---", "",
        "# Retail customer-service agent", "",
        f"`{base}` fine-tuned {purpose} (tau-bench's retail tools). This folder: {kind}.", "",
        "## Training", "",
        f"- Data: {' and '.join(files)}, retail tasks, split by customer.",
        f"- SFT on {gold}: {_length(sft)}, learning rate {sft['learning_rate']:g}.",
        f"- GRPO with {rollouts}: {_length(grpo)}, groups of "
        f"{grpo['num_generations']}, temperature {grpo['temperature']:g}, learning rate "
        f"{grpo['learning_rate']:g}.",
        f"- LoRA rank {model['lora_rank']} on {reach.replace('+', ' and ')}; "
        f"seed {settings['seed']}.", "",
        "## Evaluation", "",
        *_evaluation(read_json(run_dir / "evaluation.json", {}), details.get("differences", {})), "",
        f"Made by `python train_script.py --preset {settings['preset']}{option}`; the run's "
        "`config.json` has every setting, version and hash.", "",
        "## Use", "", *use, "",
        f"Prompts {prompts}; {answer}.", "",
        "## Limits", "",
        "The shop, its customers and their words are generated: the model has learned this shop's "
        "tools and rules, not customer service. Nothing stops it from proposing a call that a "
        "customer did not ask for; check calls before they are executed.", "",
    ]
    return "\n".join(lines)


def _length(stage: dict[str, Any]) -> str:
    if stage["max_steps"] == 0:
        return "skipped"
    if stage["max_steps"] > 0:
        return f"{stage['max_steps']} steps"
    epochs = stage["num_train_epochs"]
    return f"{epochs:g} epoch" + ("s" if epochs != 1 else "")


def write_model_cards(run_dir: Path) -> None:
    """Write the card into each model folder that the run has so far."""
    for name in ("final_model", "merged_model"):
        folder = run_dir / name
        if folder.is_dir():
            card = model_card(run_dir, adapter=(folder / "adapter_config.json").is_file())
            write_text_atomic(folder / "README.md", card)
