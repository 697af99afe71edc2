"""The model card says what the run's files say, and leaves the folder marked whole."""

import json
from pathlib import Path

import configs
from common.files import is_complete, mark_complete
from gptoss.model_card import write_model_cards

ESTIMATE = {"value": 0.5, "low": 0.25, "high": 0.75}
METRICS = {"num_tasks": 9} | dict.fromkeys(
    ("exact_match_rate", "db_match_rate", "action_f1", "json_parse_success"), ESTIMATE
)


def make_run(folder: Path, model_name: str, mode: str = "plan") -> None:
    config = configs.with_overrides(
        configs.get_preset("cpu", mode), {"model.model_name": model_name, "grpo.max_steps": 7}
    )
    facts = {"settings": json.loads(config.to_json())}
    gain = {"exact_match_rate": ESTIMATE, "db_match_rate": ESTIMATE}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "evaluation.json").write_text(json.dumps({"sft": METRICS, "sft_grpo": METRICS}))
    (folder / "evaluation_details.json").write_text(
        json.dumps({"differences": {"SFT+GRPO minus SFT": gain}})
    )
    for name in ("final_model", "merged_model"):
        (folder / name).mkdir()
        (folder / name / "README.md").write_text("a fine-tuned version of None")
    (folder / "final_model" / "adapter_config.json").write_text("{}")
    mark_complete(folder / "final_model")


def test_cards_of_adapter_and_merged_model(tmp_path):
    make_run(tmp_path, "unsloth/gpt-oss-20b")
    write_model_cards(tmp_path)
    adapter = (tmp_path / "final_model" / "README.md").read_text()
    merged = (tmp_path / "merged_model" / "README.md").read_text()
    assert 'base_model: "unsloth/gpt-oss-20b"' in adapter and 'library_name: "peft"' in adapter
    assert 'library_name: "transformers"' in merged and "AutoModelForCausalLM" in merged
    assert "| exact match | 0.500 [0.250, 0.750] | 0.500 [0.250, 0.750] |" in adapter
    assert "SFT+GRPO minus SFT, task by task: exact match +0.500 [+0.250, +0.750]" in adapter
    assert "GRPO with a reward that executes the tools: 7 steps" in adapter
    assert "- Data: `3.5k.jsonl` and `dataset.jsonl`, retail" in adapter
    assert "one JSON object `{" in adapter and "--mode agent" not in adapter
    assert is_complete(tmp_path / "final_model")


def test_a_local_base_is_no_hub_name(tmp_path):
    make_run(tmp_path, configs.TINY_MODEL_PATH)
    write_model_cards(tmp_path)
    assert "base_model:" not in (tmp_path / "final_model" / "README.md").read_text()


def test_a_card_of_agent_mode_speaks_of_conversations(tmp_path):
    make_run(tmp_path, "unsloth/gpt-oss-20b", "agent")
    write_model_cards(tmp_path)
    card = (tmp_path / "final_model" / "README.md").read_text()
    assert "serve a retail customer in conversation" in card and "--preset cpu --mode agent`" in card
    assert "GRPO with whole conversations on a store: 7 steps" in card
    assert "plan of tool calls" not in card and "JSON object" not in card
