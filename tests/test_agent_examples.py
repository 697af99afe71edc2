"""What the notebook shows of agent mode."""

from agent.examples import print_success_rates, show_conversation
from agent.policies import scripted_policy
from data_reader import read_tasks
from envs.retail import RetailDatabase

DB = RetailDatabase.load()
TASKS = read_tasks("dataset.jsonl")[:12]


def test_a_conversation_is_shown_to_its_end(capsys):
    show_conversation(TASKS[0], DB)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("customer  ") and any(line.startswith("  call  ") for line in lines)
    assert "success True" in lines[-1]


def test_success_rates_of_oracle_and_nothing(capsys):
    policies = {name: scripted_policy(name) for name in ("oracle", "nothing")}
    print_success_rates(TASKS, DB, policies)
    _, oracle, nothing = capsys.readouterr().out.splitlines()
    assert oracle.split()[:2] == ["oracle", "1.000"] and nothing.split()[:2] == ["nothing", "0.000"]
