"""The page of an evaluation: whatever was written in a conversation is text there."""

import json
import re
import shutil
import subprocess

import pytest

from agent.viewer import MAX_TEXT_CHARACTERS, write_viewer
from envs.retail import RetailDatabase
from prompting.dialogue import assistant_message
from tests.tiny_random import make_tasks

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</script><script>document.title='owned'</script><!-- <script> ]]> \u202egnorw\u202c \u2028 "
    "</pre></div><b>bold __EPISODES__"
)


def write_page(path, text):
    task = make_tasks(1)[0]
    messages = [
        {"role": "user", "content": text}, assistant_message("", [(text, text)]),
        {"role": "tool", "tool_call_id": "call_0", "content": text}, assistant_message(text),
    ]
    row = {"task_id": task.task_id, "trial": 0, "success": False, "termination": "turn_limit",
           "messages": messages}
    write_viewer(path, [row, row | {"trial": 1, "success": True}], [task], RetailDatabase.load())
    return path.read_text(encoding="utf-8")


def data_of(page):
    [data] = re.findall(r'id="episodes" type="application/json">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def test_hostile_text_stays_inside_of_the_data(tmp_path):
    page, plain = write_page(tmp_path / "a.html", HOSTILE), write_page(tmp_path / "b.html", "x")
    assert page.count("<") == plain.count("<")
    episode = data_of(page)[0]
    assert [m["content"] for m in episode["messages"]] == [HOSTILE, "", HOSTILE, HOSTILE]
    assert episode["messages"][1]["calls"] == [[HOSTILE[:200], HOSTILE]]
    assert "innerHTML" not in page and "http://" not in page and "https://" not in page


def test_a_megabyte_of_text_is_cut(tmp_path):
    page = write_page(tmp_path / "a.html", "<b>" * 350_000)
    assert len(page) < 30 * MAX_TEXT_CHARACTERS
    assert len(data_of(page)[0]["messages"][0]["content"]) == MAX_TEXT_CHARACTERS


def in_browser(path):
    """Return a page as a browser has it once its script has run."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={path.parent}/profile", "--virtual-time-budget=3000", "--dump-dom",
         f"file://{path}"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout


@pytest.mark.slow
def test_a_browser_shows_hostile_text_as_text(tmp_path):
    write_page(tmp_path / "a.html", HOSTILE)
    shown = in_browser(tmp_path / "a.html")
    assert "<title>Episodes</title>" in shown and "2 of 2 episodes" in shown
    body = shown.partition('<div id="right">')[2].partition("<script")[0]
    assert body.count("&lt;script&gt;") >= 4 and "<img" not in body and "<b>bold" not in body
