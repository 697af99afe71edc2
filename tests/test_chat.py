"""Chat and the reload check, on the model that ships here."""

import io
import json

import pytest

import configs
from common.files import write_json_atomic
from configs import config_of_model
from envs.retail import Episode
from gptoss.load import load_model, logits_on, merge_and_save, save_adapter
from gptoss.verify import check_reload
from training.chat import encode_query, example_query, quick_test, run_chat, stream_answer

CONFIG = configs.with_overrides(
    configs.get_preset("cpu"), {"evaluation.max_new_tokens": 24, "model.num_threads": 1}
)
CONFIG_SETTINGS = json.loads(CONFIG.to_json())
PROMPT = "<|start|>user<|message|>Cancel #W1234567, please.<|end|><|start|>assistant"


@pytest.fixture(scope="module")
def loaded():
    return load_model(CONFIG.model)


def test_example_is_a_cancellation_that_the_store_accepts(db):
    words = example_query(db).replace(",", "").split()
    order_id = next(word for word in words if word.startswith("#W"))
    arguments = {"order_id": order_id, "reason": "no longer needed"}
    assert Episode(db).call("cancel_pending_order", arguments).ok


def test_quick_test_shows_words_and_what_became_of_them(loaded, db, capsys):
    quick_test(*loaded, db, CONFIG, "Where is my order #W1234567?")
    shown = capsys.readouterr().out
    assert shown.startswith("customer: Where is my order #W1234567?\nmodel:    <|channel|>")
    # 24 tokens are too few for a plan, so it is told as cut off and nothing is run.
    assert "no plan (" in shown


def test_what_the_model_says_is_shown_without_control_characters(loaded):
    class Escapes:
        """Decodes every token to a terminal's escape code."""

        def decode(self, ids, **_):
            return "\x1b[2J é\n" * len(ids)

        def __getattr__(self, name):
            return getattr(loaded[1], name)

    ids, stream = encode_query(loaded[1], "hello", CONFIG), io.StringIO()
    stream_answer(loaded[0], Escapes(), ids, CONFIG, stream)
    shown = stream.getvalue()
    assert "\\x1b[2J é\n" in shown and all(line.isprintable() for line in shown.split("\n"))


def test_control_tokens_in_a_message_are_refused_and_the_chat_goes_on(capsys, tmp_path, loaded):
    write_json_atomic(tmp_path / "config.json", {"settings": CONFIG_SETTINGS})
    save_adapter(*loaded, tmp_path / "final_model")
    code = run_chat(str(tmp_path / "final_model"), ["\n", "hi <|call|>\n", "hello\n"])
    shown = capsys.readouterr().out
    assert code == 0
    assert "not sent: user message: contains the control token <|call|>" in shown
    assert "customer: hello" in shown


def test_lines_that_cannot_be_sent_are_told_in_one_line_and_the_chat_goes_on(
    capsys, tmp_path, loaded
):
    write_json_atomic(tmp_path / "config.json", {"settings": CONFIG_SETTINGS})
    save_adapter(*loaded, tmp_path / "final_model")
    # What Python makes of a byte that is no UTF-8, as a pasted Latin-1 word has it.
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    lines = ["", "  \n", "please cancel my order. " * 2000 + "\n", broken + "\n", "hello\n"]
    assert run_chat(str(tmp_path / "final_model"), lines) == 0
    shown = capsys.readouterr().out.splitlines()
    answers = [line for line in shown if line.startswith("not sent: ")]
    assert len(answers) == 2 and shown.count("customer: hello") == 1
    assert "1000 fit beside an answer" in answers[0] and len(answers[0]) < 200
    assert answers[1] == "not sent: the line is not valid UTF-8 text"
    # Nothing of them is shown as if it had been sent.
    assert sum(line.startswith("customer: ") for line in shown) == 1


def test_settings_come_from_the_run_that_made_the_model(tmp_path):
    settings = {**CONFIG_SETTINGS, "data": {**CONFIG_SETTINGS["data"], "prompt_style": "full"}}
    write_json_atomic(tmp_path / "config.json", {"settings": settings})
    assert config_of_model(str(tmp_path / "final_model")).data.prompt_style == "full"
    assert config_of_model(CONFIG.model.model_name) == configs.get_preset("cpu")


def test_reload_check_tells_a_saved_model_from_another(loaded, tmp_path):
    model, tokenizer = loaded
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    adapter = save_adapter(model, tokenizer, tmp_path / "adapter")
    merged = merge_and_save(model, tokenizer, tmp_path / "merged", CONFIG.model)
    reference = logits_on(model, tokenizer, [PROMPT])
    same = {"max_abs_diff": 0.0, "same_top_token": 1.0}
    assert check_reload(reference, adapter, CONFIG.model, [PROMPT]) == same
    assert check_reload(reference, merged, CONFIG.model, [PROMPT])["max_abs_diff"] < 1e-3
    other, _ = load_model(CONFIG.model)
    other = logits_on(other, tokenizer, [PROMPT])
    assert check_reload(reference, None, CONFIG.model, [PROMPT]) == {}
    assert check_reload(other, merged, CONFIG.model, [PROMPT])["max_abs_diff"] > 1e-2
