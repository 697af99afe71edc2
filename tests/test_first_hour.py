"""The pages of the first hour are short and listed; the page of a new tool works as written.

So do those of an endpoint and of another model, with stand-ins. All other commands are run by
tests/test_docs_commands.py with those of the other documents.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_chat_server import FakeChatServer, Reply
from test_docs_commands import run_chat, run_train

import task_tester
from agent.compare import main as run_compare
from tests import tiny_dense

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "first_hour").glob("*.md"))
MAX_LINES = 30


def test_six_pages_are_listed_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(PAGES) == 6
    assert not [page.name for page in PAGES if f"(docs/first_hour/{page.name})" not in readme]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_holds_commands(page):
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert "```bash\n" in text and "](../" in text


@pytest.mark.slow
def test_the_tool_of_the_page_is_added_and_passes_the_audit(tmp_path):
    """The method goes to the end of the class, then snippet and commands run in their order."""
    text = (ROOT / "docs" / "first_hour" / "OWN_TOOL.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(py|python|bash)\n(.*?)^```", text, re.M | re.S))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("common", "envs", "prompting", "scoring", "tasks", "agent"):
        shutil.copytree(ROOT / name, copy / name)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)
    (copy / "outputs").mkdir()
    with open(copy / "envs" / "retail" / "tools" / "reads.py", "a", encoding="utf-8") as file:
        file.write("\n" + blocks["py"])
    shown = subprocess.run(
        [sys.executable, "-c", blocks["python"]], cwd=copy, capture_output=True, text=True, check=True
    )
    commands = blocks["bash"].replace("python ", f"{sys.executable} ")
    shown = subprocess.run(
        ["sh", "-ec", commands], cwd=copy, capture_output=True, text=True, timeout=300
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Count a customer's orders." in shown.stdout
    assert re.search(r"^num_valid +1$", shown.stdout, re.M)


def commands_of(name):
    """Return the commands of a page as words, without comments."""
    text = (ROOT / "docs" / "first_hour" / name).read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.slow
def test_the_page_of_an_endpoint_works_with_one_on_loopback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
    with FakeChatServer(lambda request: Reply("How can I help you?")) as server:
        for words in commands_of("ENDPOINT.md"):
            words = [
                server.base_url if word.endswith("/v1") else word.replace("outputs/", f"{tmp_path}/")
                for word in words
            ]
            if words[:2] == ["python", "task_tester.py"]:
                assert task_tester.main([*words[2:], "--limit", "2"]) == 0
            elif words[:2] == ["python", "-m"]:
                run_compare(words[3:])
            else:
                assert words[0] in ("vllm", "export")
    hosted = tmp_path / "hosted"
    assert json.loads((hosted / "usage.json").read_text())["policy"]["num_requests"] > 0
    assert (hosted / "episodes.html").is_file() and (tmp_path / "hosted.html").is_file()
    assert "sk-of-a-test" not in "".join(p.read_text() for p in hosted.iterdir())


@pytest.mark.slow
def test_the_page_of_another_model_works_with_a_random_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("dataset.jsonl", "3.5k.jsonl"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
        Path(name).write_text("".join(lines[:24]), encoding="utf-8")
    folder = tiny_dense.make_model_dir(tmp_path / "outputs" / "my_model", "llama")
    for words in commands_of("ANOTHER_MODEL.md"):
        words = [
            word.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(folder)) for word in words[1:]
        ]
        if words[:2] == ["train_script.py", "chat"]:
            run_chat(words[1:], capsys)
        elif words[0] == "train_script.py":
            own = ["--set", "model.lora_rank=4", "--set", "data.prompt_style=brief"]
            run_train([*words[1:], *own, "--set", "grpo.generation_batch_size=0"], capsys)
        else:  # the full prompt is too long for a tokenizer of bytes
            task_tester.build_parser().parse_args(words[1:])
