"""Two evaluations side by side: paired differences, both conversations, one line for errors."""

import json
import re

import pytest

from agent.compare import main
from task_tester import main as task_tester


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for policy in ("nothing", "oracle"):
        words = ["evaluate", "--mode", "agent", "--policy", policy, "--tasks", "dataset.jsonl",
                 "--limit", "12", "--output", str(folder / policy)]
        assert task_tester(words) == 0
    return folder


def words_of(runs, output):
    return [str(runs / "nothing"), str(runs / "oracle"), "--tasks", "dataset.jsonl",
            "--output", str(output)]


def test_differences_and_both_conversations(runs, tmp_path, capsys):
    page = tmp_path / "compare.html"
    assert main(words_of(runs, page)) == 0
    assert "success_rate: +1.000 [+1.000, +1.000]" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    [data] = re.findall(r'id="episodes" type="application/json">(.*?)</script>', text, re.DOTALL)
    episodes = json.loads(data)
    assert len(episodes) == 12
    for episode in episodes:
        assert not episode["success"] and episode["other"]["success"]
        assert episode["other"]["messages"] != episode["messages"]
    assert main(words_of(runs, page)) == 0, "its own page may be replaced"


def test_errors_are_one_line_and_nothing_is_lost(runs, tmp_path, capsys):
    strange = tmp_path / "page.html"
    strange.write_text("mine")
    assert main(words_of(runs, strange)) == 1
    assert main([str(tmp_path), *words_of(runs, tmp_path / "c.html")[1:]]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and strange.read_text() == "mine"
    assert "trajectories.jsonl: cannot be read" in lines[1]
