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

.PHONY: help install train test test-fast tensorboard data audit clean

help:
	@echo "make install      create .venv and install $(REQUIREMENTS)"
	@echo "make train        install, then execute the notebook (PRESET=$(PRESET), OUTPUT_DIR=$(OUTPUT_DIR))"
	@echo "make test         install, then run every test"
	@echo "make test-fast    the tests without the slow ones"
	@echo "make tensorboard  watch the run in a browser"
	@echo "make data         generate dataset.jsonl and 3.5k.jsonl again"
	@echo "make audit        check both datasets against the tools"

install: $(STAMP)

$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	@touch $@

train: install
	@mkdir -p $(OUTPUT_DIR)
	$(BIN)/python -m papermill $(NOTEBOOK) $(OUTPUT_DIR)/notebook.ipynb -p PRESET $(PRESET) -p OUTPUT_DIR $(OUTPUT_DIR) \
		--log-output --no-progress-bar --no-request-save-on-cell-execute
	@# Text that came in pieces would show a line break at each of them.
	@$(BIN)/python -m nbconvert --log-level WARN --to notebook --inplace --coalesce-streams $(OUTPUT_DIR)/notebook.ipynb
	@echo "done: $(OUTPUT_DIR) holds the adapter (final_model), the merged model, plots and evaluation.json"

test: install
	$(BIN)/python -m pytest -m "" -n 2 --dist loadfile --no-loadscope-reorder

test-fast: install
	$(BIN)/python -m pytest

tensorboard: install
	$(BIN)/python -m tensorboard.main --logdir $(OUTPUT_DIR)

data: install
	$(BIN)/python task_generator.py --num-tasks 800 --seed 1 --output dataset.jsonl
	$(BIN)/python task_generator.py --num-tasks 3500 --seed 2 --output 3.5k.jsonl
	$(BIN)/python -m tasks.audit.report

audit: install
	$(BIN)/python task_tester.py audit dataset.jsonl
	$(BIN)/python task_tester.py audit 3.5k.jsonl

clean:
	rm -rf $(OUTPUT_DIR)
