# `make` or `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: demo test slow-test slurm-test faults faults-quick lint bench clean help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 18

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) \
	  || { echo "error: no venv module: install python3-venv, or make $(VENV) yourself"; exit 1; }
	$(VENV)/bin/pip install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(VENV)/bin/pip install -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.installed ## train, evaluate, score, tabulate and draw on the bundled model and data: no downloads of either
	bash scripts/demo.sh

test: $(VENV)/.installed-dev ## the tests
	python -m pytest -m "not slow and not slurm"

slow-test: $(VENV)/.installed-dev ## the tests marked slow
	python -m pytest -m slow

slurm-test: $(VENV)/.installed-dev ## a sweep on a real one-node SLURM cluster (Debian, root)
	bash scripts/slurm_up.sh --install
	python -m pytest -m slurm tests/slurm

# E2E_DIR and ELI5_DIR name the real data; without them the bundled texts stand in
faults: $(VENV)/.installed ## every fault many times, under two hours: writes docs/faults.md
	python -m scripts.faults $(if $(E2E_DIR),--e2e $(E2E_DIR)) $(if $(ELI5_DIR),--eli5 $(ELI5_DIR))

faults-quick: $(VENV)/.installed ## a few of every fault
	python -m scripts.faults --quick

lint: $(VENV)/.installed-dev ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

bench: $(VENV)/.installed-dev ## measure speed and memory on this machine: writes benchmarks/results
	python benchmarks/run.py

clean: ## remove the environment, the demo and the caches
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
