# `make train` on a fresh machine: installs what is missing into .venv, then executes the notebook.
# Variables: PYTHON (3.11 or 3.12), PRESET (auto, cpu, t4, 24gb, 80gb), OUTPUT_DIR.
PYTHON ?= python3
PRESET ?= auto
OUTPUT_DIR ?= outputs/tau_bench_rl
NOTEBOOK := gpt_oss_20b_tau_bench_rl_training.ipynb
BIN := .venv/bin
# The CPU list leaves Unsloth out: it pulls CUDA packages and does not import without a GPU.
REQUIREMENTS := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo requirements.txt || echo requirements-cpu.txt)
STAMP := .venv/.installed-$(REQUIREMENTS)
# What a user gives reaches the shell as variables, so that no character of a path means anything to it.
export RUN_DIR := $(value OUTPUT_DIR)
export RUN_PRESET := $(value PRESET)
export GOALS := $(MAKECMDGOALS)

.PHONY: help install train test test-fast tensorboard data audit clean

help:
	@echo "make install      create .venv and install $(REQUIREMENTS)"
	@echo "make train        install, then execute the notebook (PRESET=$$RUN_PRESET, OUTPUT_DIR=$$RUN_DIR)"
	@echo "make test         install, then run every test"
	@echo "make test-fast    the tests without the slow ones"
	@echo "make tensorboard  watch the run in a browser"
	@echo "make data         generate dataset.jsonl and 3.5k.jsonl again"
	@echo "make audit        check both datasets against the tools"
	@echo "make clean        remove what a run wrote to OUTPUT_DIR ($$RUN_DIR)"

install: $(STAMP)

$(STAMP): $(REQUIREMENTS)
	@sh install.sh "$(PYTHON)" $(REQUIREMENTS)
	@touch $@

train: install
	@$(BIN)/python -m common.run_folder check "$$RUN_DIR"
	@# papermill takes a path with a leading dash for stdout, nbconvert reads [ and * as patterns.
	@# Coalesced, as text that came in pieces would show a line break at each of them.
	@set -e; here=$$PWD; mkdir -p -- "$$RUN_DIR"; place=$$(CDPATH= cd -- "$$RUN_DIR" && pwd); \
	$(BIN)/python -m papermill -r PRESET "$$RUN_PRESET" -r OUTPUT_DIR "$$RUN_DIR" --log-output --no-progress-bar \
		--no-request-save-on-cell-execute $(NOTEBOOK) "$$place/notebook.ipynb"; \
	cd "$$place"; "$$here/$(BIN)/python" -m nbconvert --log-level WARN --to notebook --inplace --coalesce-streams notebook.ipynb
	@printf 'done: %s holds the adapter (final_model), the merged model, plots and evaluation.json\n' "$$RUN_DIR"

test: install
	$(BIN)/python -m pytest -m "" -n 2 --dist loadfile --no-loadscope-reorder

test-fast: install
	$(BIN)/python -m pytest

tensorboard: install
	$(BIN)/python -m tensorboard.main --logdir="$$RUN_DIR"

data: install
	$(BIN)/python task_generator.py --num-tasks 800 --seed 1 --output dataset.jsonl
	$(BIN)/python task_generator.py --num-tasks 3500 --seed 2 --output 3.5k.jsonl
	mv dataset.yield.json 3.5k.yield.json docs/
	$(BIN)/python -m tasks.audit.report

audit: install
	$(BIN)/python task_tester.py audit dataset.jsonl
	$(BIN)/python task_tester.py audit 3.5k.jsonl

clean:
	@python=$(BIN)/python; test -x $$python || python="$(PYTHON)"; "$$python" -m common.run_folder clear "$$RUN_DIR"
