"""Write an evaluation's episodes as one HTML file that needs nothing else: list, filters, details.

Episodes are JSON in the page, every `<` of it escaped, and its script sets text alone, never HTML:
what a model or a customer wrote can do nothing there. With another run's rows the page opens with the
differences and the tasks that flipped, and each episode shows both conversations side by side.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import write_text_atomic
from data_reader import Task
from envs.retail import RetailDatabase
from scoring.reward import replay_gold
from scoring.transcript import replay

MAX_TEXT_CHARACTERS = 20_000
"""Of one message; what is longer is cut in the page and whole in trajectories.jsonl."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Episodes</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<style>
body{font:14px/1.45 system-ui,sans-serif;margin:0;display:flex;height:100vh;color:#222}
#left{width:24rem;border-right:1px solid #ccc;display:flex;flex-direction:column}
#filters{padding:.6rem;border-bottom:1px solid #ccc;display:grid;gap:.3rem}
#list{overflow:auto;flex:1}#list div{padding:.35rem .6rem;cursor:pointer;border-bottom:1px solid #eee}
#list .open{background:#e8f0fe}.pass::before{content:"\\2713  ";color:#080}
.fail::before{content:"\\2717  ";color:#b00}
#right{flex:1;overflow:auto;padding:1rem}pre,.text{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;
unicode-bidi:isolate}pre{font:12px/1.4 ui-monospace,monospace;max-height:20rem;overflow:auto}
.m{border-left:4px solid #999;padding:.3rem .6rem;margin:.5rem 0;background:#fafafa}
.user{border-color:#1a73e8}.assistant{border-color:#188038}.tool{border-color:#b06000}
.link{cursor:pointer;color:#1a73e8}.sides{display:flex;gap:1rem}.sides>div{flex:1;min-width:0}
.who{font-size:12px;color:#666}h2{font-size:1rem;margin:1rem 0 .3rem}
</style>
<div id="left"><div id="filters"><b id="count"></b>
<button id="overview">Overview of the two runs</button>
<select id="result"><option value="">all results</option><option value="true">success</option>
<option value="false">failure</option></select>
<select id="ending"><option value="">all endings</option></select>
<input id="search" placeholder="text in task or conversation"></div><div id="list"></div></div>
<div id="right">Choose an episode.</div>
<script id="comparison" type="application/json">__COMPARISON__</script>
<script id="episodes" type="application/json">__EPISODES__</script>
<script>
"use strict";
const episodes = JSON.parse(document.getElementById("episodes").textContent);
const comparison = JSON.parse(document.getElementById("comparison").textContent);
const at = id => document.getElementById(id);
function add(parent, tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  parent.appendChild(node);
  return node;
}
const name = episode => episode.task_id + ", trial " + episode.trial;
function overview() {
  document.querySelectorAll("#list .open").forEach(node => node.classList.remove("open"));
  const right = at("right");
  right.replaceChildren();
  add(right, "h2", "Two runs");
  add(right, "pre", comparison);
  for (const [title, won] of [["Solved by the second run alone", true],
                              ["Solved by the first run alone", false]]) {
    const flipped = episodes.filter(e => e.other && e.success !== won && e.other.success === won);
    add(right, "h2", title + ": " + flipped.length);
    for (const episode of flipped)
      add(right, "div", name(episode), "link").onclick = () => open(episode);
  }
}
const show = value => typeof value === "string" ? value : JSON.stringify(value, null, 1);
function open(episode, row) {
  document.querySelectorAll("#list .open").forEach(node => node.classList.remove("open"));
  if (row) row.classList.add("open");
  const right = at("right");
  right.replaceChildren();
  add(right, "h2", name(episode));
  add(right, "h2", "Task");
  add(right, "div", episode.task, "text");
  const sides = add(right, "div", undefined, "sides");
  for (const side of [episode, episode.other]) if (side) draw(add(sides, "div"), side);
}
function draw(right, episode) {
  add(right, "h2", episode.success ? "success" : "failure");
  add(right, "pre", show(episode.figures));
  add(right, "h2", "Conversation");
  for (const message of episode.messages) {
    const box = add(right, "div", undefined, "m " + message.role);
    add(box, "div", message.role, "who");
    if (message.content) add(box, message.role === "tool" ? "pre" : "div", message.content, "text");
    for (const call of message.calls) add(box, "pre", call.join(" "));
  }
  add(right, "h2", "Store after the conversation (records that changed)");
  add(right, "pre", show(episode.changed));
  add(right, "h2", "Store after the gold calls");
  add(right, "pre", show(episode.gold_changed));
}
function refresh() {
  const words = at("search").value.toLowerCase();
  const shown = episodes.filter(e => (!at("result").value || String(e.success) === at("result").value)
    && (!at("ending").value || e.termination === at("ending").value)
    && (!words || JSON.stringify(e).toLowerCase().includes(words)));
  at("count").textContent = shown.length + " of " + episodes.length + " episodes";
  at("list").replaceChildren();
  for (const episode of shown) {
    const row = add(at("list"), "div", episode.task_id + " #" + episode.trial + ", "
      + episode.termination, episode.success ? "pass" : "fail");
    row.onclick = () => open(episode, row);
  }
}
for (const ending of [...new Set(episodes.map(e => e.termination))].sort())
  add(at("ending"), "option", ending).value = ending;
for (const id of ["result", "ending", "search"]) at(id).oninput = refresh;
refresh();
at("overview").hidden = !comparison;
at("overview").onclick = overview;
if (comparison) overview();
else if (at("list").firstChild) at("list").firstChild.click();
</script></html>
"""


def write_viewer(
    path: Path, rows: Sequence[Mapping[str, Any]], tasks: Sequence[Task], db: RetailDatabase,
    other_rows: Sequence[Mapping[str, Any]] = (), comparison: str = "",
) -> None:
    """Write the page of an evaluation of these tasks, or of two side by side.

    Args:
        rows: Lines of `trajectories.jsonl`.
        other_rows: The other run's lines, shown beside those of the same task and trial.
        comparison: What the page of two runs opens with, such as the paired differences.
    """
    by_id = {task.task_id: task for task in tasks}
    others = {(row["task_id"], row["trial"]): row for row in other_rows}
    episodes = []
    for row in rows:
        task = by_id[row["task_id"]]
        other = others.get((row["task_id"], row["trial"]))
        beside = {"other": _episode(other, task, db)} if other else {}
        episodes.append(_episode(row, task, db) | beside)
    data = {"__COMPARISON__": _data(comparison), "__EPISODES__": _data(episodes)}
    write_text_atomic(path, re.sub("|".join(data), lambda match: data[match[0]], _PAGE))


def _data(value: Any) -> str:
    # "<" can stand in JSON texts alone, where its escape means the same.
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")


def _episode(row: Mapping[str, Any], task: Task, db: RetailDatabase) -> dict[str, Any]:
    return {
        "task_id": row["task_id"], "trial": row["trial"], "success": row["success"],
        "termination": row["termination"], "task": task.instruction or task.query,
        "figures": {key: value for key, value in row.items() if key != "messages"},
        "messages": [_cut(message) for message in row["messages"]],
        "changed": replay(row["messages"], db).changed_records,
        "gold_changed": replay_gold(task, db).changed_records,
    }


def _cut(message: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"role": message["role"], "content": (message["content"] or "")[:MAX_TEXT_CHARACTERS]}
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return shown | {"calls": [[c["name"][:200], c["arguments"][:MAX_TEXT_CHARACTERS]] for c in calls]}
