"""Harmony text: equal to the stock template when rendered, read without repair when parsed."""

import json
import time
from pathlib import Path

import pytest

from envs.retail import TOOL_SCHEMAS
from prompting import harmony
from prompting.harmony import parse_completion, render_completion, render_prompt

ANSWER = '{"tool_calls":[]}'
FINAL = f"<|channel|>final<|message|>{ANSWER}<|return|>"
FORMS = Path(__file__).resolve().parents[2] / "shared" / "field" / "harmony" / "forms.jsonl"
CONVERSATIONS = {
    "developer and user": [
        {"role": "developer", "content": "Answer with JSON.\nObey."},
        {"role": "user", "content": 'Hi, "it\'s" me: <b>Zoë</b> & co.\n\nBye '},
    ],
    "user only": [{"role": "user", "content": "Hello"}],
    "system first": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}],
    "earlier answer": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
}


def stock_rendering(messages, tools=None, reasoning="low", date="2025-06-28"):
    """Render TRL's copy of the stock template with transformers' jinja settings, date frozen."""
    template_module = pytest.importorskip("trl.chat_template_utils")
    chat = pytest.importorskip("transformers.utils.chat_template_utils")
    template = chat._compile_jinja_template(template_module.gptoss_chat_template)
    return template.render(
        messages=messages, tools=tools, add_generation_prompt=True, reasoning_effort=reasoning,
        strftime_now=lambda _: date,
    )


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("with_tools", [False, True])
def test_render_prompt_equals_stock_template(name, with_tools):
    tools = list(TOOL_SCHEMAS.values()) if with_tools else None
    messages = CONVERSATIONS[name]
    assert render_prompt(messages, tools=tools) == stock_rendering(messages, tools=tools)


def test_render_prompt_takes_reasoning_and_date():
    messages = CONVERSATIONS["user only"]
    text = render_prompt(messages, reasoning="high", date="2026-01-02")
    assert text == stock_rendering(messages, reasoning="high", date="2026-01-02")
    assert "Reasoning: high" in text and "2026-01-02" in text


def test_every_tool_summary_stays_inside_its_comment():
    lines = harmony.render_tools(TOOL_SCHEMAS.values()).split("\n")
    assert sum(line.startswith("type ") for line in lines) == 16
    outside = [line for line in lines if line and not line.startswith(("//", "type ", "})", "}"))]
    assert all(line.endswith((",", "{")) or line == "## functions" for line in outside)


def test_two_line_summary_is_refused():
    tool = {"type": "function", "function": {
        "name": "f", "description": "One.\nTwo.", "parameters": {"properties": {}, "required": []}}}
    with pytest.raises(ValueError, match="tool f: the description must be one line"):
        harmony.render_tools([tool])


@pytest.mark.parametrize("token", harmony.SPECIAL_TOKENS)
def test_control_tokens_never_enter_a_prompt(token):
    with pytest.raises(ValueError, match="user message: contains the control token"):
        render_prompt([{"role": "user", "content": f"a{token}b"}])
    with pytest.raises(ValueError, match="control token"):
        render_completion(f"{{}}{token}")


def test_unknown_role_is_refused():
    with pytest.raises(ValueError, match="message role 'tool'"):
        render_prompt([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}])


@pytest.mark.parametrize("text, final, analysis, complete, reason", [
    (FINAL, ANSWER, "", True, "one final message"),
    ("<|start|>assistant" + FINAL, ANSWER, "", True, "the prompt's end given along"),
    (f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{FINAL}", ANSWER, "Hm.", True,
     "thinking first"),
    (f"<|channel|>final <|constrain|>JSON<|message|>{ANSWER}<|return|>", ANSWER, "", True,
     "the released model names the content type"),
    (FINAL + "<|endoftext|><|endoftext|>", ANSWER, "", True, "padded"),
    (FINAL + FINAL, ANSWER, "", True, "nothing counts after the turn"),
    (f"<|channel|>final<|message|>{ANSWER}", ANSWER, "", False, "cut off"),
    (f"<|channel|>final<|message|>{ANSWER}<|end|>", ANSWER, "", False, "no stop token"),
    (f"<|channel|>final<|message|>{ANSWER}<|endoftext|>x<|return|>", ANSWER, "", False,
     "end of text is not the end of a turn"),
    ("<|channel|>final<|message|><|return|>", "", "", True, "empty message"),
    (f"<|channel|>final<|message|>{ANSWER}<|end|><|start|>assistant{FINAL}",
     f"{ANSWER}\n{ANSWER}", "", True, "two final messages: none is picked"),
    (f"<|channel|>final<|message|>a<|channel|>final<|message|>{ANSWER}<|return|>",
     f"a<|channel|>final<|message|>{ANSWER}", "", True, "no header inside a body"),
    (f"prose<|channel|>final<|message|>{ANSWER}<|return|>", "", "", True, "prose in the header"),
    (f"<|channel|>final my answer<|message|>{ANSWER}<|return|>", "", "", True, "prose in header"),
    (f"<|channel|>final to=functions.think<|message|>{ANSWER}<|return|>", "", "", True,
     "a final message has no recipient"),
    (f"<|message|>{ANSWER}<|return|>", "", "", True, "no channel"),
    (f"<|channel|>Final<|message|>{ANSWER}<|return|>", "", "", True, "no such channel"),
    (f"<|start|>user{FINAL}", "", "", True, "somebody else speaks"),
    (f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}", "", "Hm.", False, "no <|start|>"),
    (f"final{ANSWER}", "", "", False, "special tokens were stripped"),
    (ANSWER, "", "", False, "no message at all"),
    ("", "", "", False, "empty"),
    ("<|start|>", "", "", False, "nothing said"),
    ("<|return|>", "", "", False, "nothing said"),
])
def test_parse_completion(text, final, analysis, complete, reason):
    parsed = parse_completion(text)
    assert (parsed.final, parsed.analysis, parsed.complete) == (final, analysis, complete), reason
    assert parsed.tool_calls == []


CALL_BODY = '<|message|>{"order_id":"#W1"}<|call|>'
CALL = {"name": "get_order_details", "arguments": {"order_id": "#W1"}}


@pytest.mark.parametrize("header", [
    "<|channel|>commentary to=functions.get_order_details <|constrain|>json",
    "<|channel|>commentary to=functions.get_order_details<|constrain|>json",
    "<|channel|>commentary to=functions.get_order_details json",
    "<|channel|>analysis to=functions.get_order_details code",
    " to=functions.get_order_details<|channel|>commentary json",
    " to=functions.get_order_details<|channel|>commentary <|constrain|>json",
    "<|start|>assistant to=functions.get_order_details<|channel|>commentary json",
])
def test_both_forms_of_a_native_call_are_read(header):
    parsed = parse_completion(header + CALL_BODY)
    assert parsed.tool_calls == [CALL] and parsed.complete and parsed.final == ""


TO = "to=functions.get_order_details"


@pytest.mark.parametrize("header, reason", [
    (f"<|channel|>commentary {TO}<|channel|>commentary <|constrain|>json", "channel twice"),
    (f"<|channel|>commentary {TO} <|channel|>commentary json", "channel twice"),
    (f"<|channel|><|channel|>commentary {TO} json", "channel twice"),
    (f" {TO}<|channel|>commentary<|channel|>analysis json", "channel twice"),
    (f" {TO}<|channel|>commentary {TO} json", "recipient twice"),
    (f"<|channel|>commentary {TO} {TO} json", "recipient twice"),
    (f" {TO}<|constrain|>json<|channel|>commentary", "content type before the channel"),
    (f"<|channel|>commentary <|constrain|>json {TO}", "recipient behind the content type"),
    (f"<|channel|>commentary {TO}<|constrain|><|constrain|>json", "constrain twice"),
    (f"<|channel|>commentary {TO}<|constrain|>", "no content type"),
    (f"<|channel|>commentary {TO} json json", "content type twice"),
    (f"<|channel|>commentary {TO}<|startoftext|> json", "control token in the name"),
    (f"<|channel|>commentary <|constrain|>{TO}", "no content type"),
    ("<|channel|>commentary to= json", "nobody is named"),
    ("<|channel|>commentary to=functions. json", "no tool is named"),
    (" to=functions.<|channel|>commentary json", "no tool is named"),
    ("<|channel|>analysis to=functions. <|constrain|>json", "no tool is named"),
    (f"{TO}<|channel|>commentary json", "no blank behind the role"),
    (f"<|start|>assistantassistant {TO}<|channel|>commentary json", "role twice"),
    (f"<|start|>assistant assistant {TO}<|channel|>commentary json", "role twice"),
])
def test_a_malformed_header_says_nothing(header, reason):
    for body in (CALL_BODY, "<|message|>" + CALL_BODY):
        parsed = parse_completion(header + body)
        assert (parsed.tool_calls, parsed.final) == ([], ""), reason
    final = (header + CALL_BODY).replace("commentary", "final")
    assert parse_completion(final).final == "", reason


@pytest.mark.parametrize("text, final, calls", [
    ("<|channel|>final<|message|><|message|>{}<|return|>", "<|message|>{}", []),
    (f"<|channel|>commentary {TO} json<|message|><|message|>{{}}<|call|>", "",
     [{"name": "get_order_details", "arguments": "<|message|>{}"}]),
    (f"<|channel|>commentary {TO} json{CALL_BODY}<|call|>", "", [CALL]),
    (f"<|start|>assistant<|start|>assistant<|channel|>commentary {TO} json{CALL_BODY}", "", [CALL]),
    (f"<|channel|>final<|message|><|message|>{ANSWER}<|return|>", f"<|message|>{ANSWER}", []),
    ("<|channel|>final <|constrain|> json\n<|message|>{}<|return|>", "{}", []),
])
def test_doubled_tokens_behind_the_header_are_read_as_written(text, final, calls):
    parsed = parse_completion(text)
    assert (parsed.final, parsed.tool_calls) == (final, calls)


@pytest.mark.skipif(not FORMS.is_file(), reason="shared/field is not beside the repository")
def test_forms_of_the_field():
    for line in FORMS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        parsed = parse_completion(row["text"])
        assert (parsed.final, parsed.tool_calls) == (row["final"], row["tool_calls"]), row["form"]


def test_several_native_calls_are_all_kept():
    native = "<|channel|>commentary to=functions.get_order_details <|constrain|>json" + CALL_BODY
    thought = "<|channel|>analysis<|message|>One.<|end|><|start|>assistant"
    again = "<|start|>assistant"
    parsed = parse_completion(f"{thought}{native}{again}{native}{again}{FINAL}")
    assert parsed.tool_calls == [CALL, CALL]
    assert (parsed.analysis, parsed.final) == ("One.", ANSWER)


@pytest.mark.parametrize("arguments", ["not json", "[1]", "[" * 100_000, "1" * 5_000, '"\\ud800"',
    '{"a":1,"a":1}', '{"a":{"b":1,"b":2}}', '{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}',
    '{"a":' * 40 + "1" + "}" * 40,
])
def test_arguments_that_are_no_object_stay_text(arguments):
    text = f"<|channel|>commentary to=functions.f json<|message|>{arguments}<|call|>"
    assert parse_completion(text).tool_calls == [{"name": "f", "arguments": arguments}]


def test_preamble_and_other_recipients_say_nothing():
    preamble = "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant"
    browser = "<|channel|>commentary to=browser.search json<|message|>{}<|call|>"
    parsed = parse_completion(preamble + browser)
    assert (parsed.final, parsed.tool_calls) == ("", [])


def test_completion_round_trip():
    text = json.dumps({"tool_calls": [{"name": "think", "arguments": {"thought": "é \"x\"\n"}}]})
    parsed = parse_completion(render_completion(text))
    assert (parsed.final, parsed.complete) == (text, True)


@pytest.mark.parametrize("piece", [
    "<|start|>", "<|channel|>", "<|message|>", "<|", "<|channel|>final<|message|>", "to= ",
    " ", "<|channel|>final ", "\ud800",
    "<|start|>assistant<|channel|>analysis<|message|>x<|end|>",
])
def test_long_garbage_is_read_in_linear_time(piece):
    start_s = time.process_time()
    parse_completion(piece * (2_000_000 // len(piece)))
    assert time.process_time() - start_s < 5.0
