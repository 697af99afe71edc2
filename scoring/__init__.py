"""The scorer's parts: parse a plan, score it, sum scores up; `task_tester` is the public face."""
