"""What the notebook shows of agent mode."""

from agent.examples import print_success_rates, show_conversation
from agent.policies import ScriptedPolicy, oracle, scripted_policy
from data_reader import read_tasks
from envs.retail import RetailDatabase

DB = RetailDatabase.load()
TASKS = read_tasks("dataset.jsonl")[:12]


def test_a_conversation_is_shown_to_its_end(capsys):
    show_conversation(TASKS[0], DB)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("customer  ") and any(line.startswith("  call  ") for line in lines)
    assert "success True" in lines[-1] and "reward 1.2 of 1.2 (success +1, progress +0.2)" in lines[-1]
    assert any(line.startswith(("changed orders/", "changed users/")) for line in lines)


def test_what_a_conversation_breaks_is_named(capsys):
    show_conversation(TASKS[0], DB, policy=ScriptedPolicy(lambda talk: oracle(talk, asks=False)))
    last = capsys.readouterr().out.splitlines()[-1]
    assert "violation -0.1" in last and "violations: unconfirmed_write: " in last
    show_conversation(TASKS[0], DB, policy=scripted_policy("nothing"))
    assert "changed nothing\n" in capsys.readouterr().out


def test_success_rates_of_oracle_and_nothing(capsys):
    policies = {name: scripted_policy(name) for name in ("oracle", "nothing")}
    print_success_rates(TASKS, DB, policies)
    _, oracle, nothing = capsys.readouterr().out.splitlines()
    assert oracle.split()[:2] == ["oracle", "1.000"] and nothing.split()[:2] == ["nothing", "0.000"]
