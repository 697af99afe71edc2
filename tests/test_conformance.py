"""Recorded action lists: our tools do to tau-bench's store what tau-bench's own tools did."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from envs.retail import TOOL_SCHEMAS, Episode, RetailDatabase

TAUBENCH_DIR = Path(__file__).resolve().parents[2] / "shared" / "taubench"
NUM_CASES = 1_676

pytestmark = pytest.mark.skipif(
    not TAUBENCH_DIR.is_dir(), reason="tau-bench's data is not beside the repository"
)


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha(content: Any) -> str:
    """Hash an observation as the recording does: text that is JSON (a number) is decoded first."""
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except json.JSONDecodeError:
            pass
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]


def test_every_recorded_case_agrees() -> None:
    database = RetailDatabase.load(TAUBENCH_DIR)
    with gzip.open(TAUBENCH_DIR / "replay_train.jsonl.gz", "rt", encoding="utf-8") as stream:
        cases = [json.loads(line) for line in stream]
    assert len(cases) == NUM_CASES
    gold: dict[Any, str] = {}
    faults = []
    for case in cases:
        episode = Episode(database)
        for number, (action, step) in enumerate(zip(case["actions"], case["steps"], strict=True)):
            observation = episode.call(action["name"], action["arguments"])
            if observation.ok != step["ok"]:
                faults.append((case["case_id"], number, "ok", observation.content))
            elif observation.ok and sha(observation.content) != step["observation_sha"]:
                faults.append((case["case_id"], number, "observation", observation.content))
        # The recording leaves out a kind of record of which none has changed.
        changed = canonical({k: v for k, v in episode.changed_records().items() if v})
        if changed != canonical(case["changed_records"]):
            faults.append((case["case_id"], "changed_records", changed))
        task = (case["case_id"].split("-")[0], case["task_index"])
        if case["kind"] == "gold":
            gold[task] = changed
        if (changed == gold[task]) != case["db_matches_gold"]:
            faults.append((case["case_id"], "db_matches_gold", changed))
    assert not faults, f"{len(faults)} faults, the first: {faults[:3]}"


def test_schemas_have_the_names_parameters_and_enums_of_taubench() -> None:
    expected = json.loads((TAUBENCH_DIR / "tool_schemas.json").read_text(encoding="utf-8"))
    ours = []
    for name, schema in TOOL_SCHEMAS.items():
        parameters = json.loads(json.dumps(schema["function"]["parameters"]))
        for specification in parameters["properties"].values():
            del specification["description"]
        ours.append({"name": name, "parameters": parameters})
    assert ours == sorted(expected, key=lambda tool: tool["name"])
