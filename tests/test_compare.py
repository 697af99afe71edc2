"""Two evaluations side by side: paired differences, both conversations, one line for errors."""

import json
import re

import pytest

from agent.compare import main
from task_tester import main as task_tester
from tests.test_viewer import in_browser


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


@pytest.mark.slow
def test_a_browser_shows_the_overview_first(runs, tmp_path):
    page = tmp_path / "compare.html"
    assert main(words_of(runs, page)) == 0
    shown = in_browser(page)
    right = shown.partition('<div id="right">')[2].partition("<script")[0]
    assert "success_rate: +1.000 [+1.000, +1.000]" in right
    assert "Solved by the second run alone: 12" in right and "Solved by the first run alone: 0" in right
    assert right.count('class="link"') == 12 and "Conversation" not in right


def test_errors_are_one_line_and_nothing_is_lost(runs, tmp_path, capsys):
    strange = tmp_path / "page.html"
    strange.write_text("mine")
    assert main(words_of(runs, strange)) == 1
    assert main([str(tmp_path), *words_of(runs, tmp_path / "c.html")[1:]]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and strange.read_text() == "mine"
    assert "trajectories.jsonl: cannot be read" in lines[1]


@pytest.mark.parametrize("line", ['{"x":1}', "5", "null", '"s"', "{"])
def test_a_damaged_line_is_named(runs, tmp_path, capsys, line):
    damaged = tmp_path / "run"
    damaged.mkdir()
    good = (runs / "oracle" / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (damaged / "trajectories.jsonl").write_text(f"{good}\n{line}\n")
    words = [str(damaged), *words_of(runs, tmp_path / "c.html")[1:]]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "trajectories.jsonl" in error and "evaluate again" in error


def test_messages_that_are_no_list_are_named(runs, tmp_path, capsys):
    row = json.loads((runs / "oracle" / "trajectories.jsonl").read_text().splitlines()[0])
    (tmp_path / "trajectories.jsonl").write_text(json.dumps(row | {"messages": 7}) + "\n")
    assert main([str(tmp_path), *words_of(runs, tmp_path / "c.html")[1:]]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_page_that_cannot_be_written_is_one_line(runs, capsys):
    assert main(words_of(runs, "/proc/none/d.html")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "/proc/none/d.html" in error
