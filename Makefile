# `make` or `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# PYTHON makes the environment; eval.sh reads a variable of that name too, and must take the environment's own.
unexport PYTHON

.DEFAULT_GOAL := help
.PHONY: demo test extras-test slow-test slurm-test faults faults-quick lint pages docs wheel-check constraints bench study clean help

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

test: $(VENV)/.installed-dev ## the tests, a process for each core
	python -m pytest -n auto --dist loadfile -m "not slow and not slurm and not faults"

extras-test: $(VENV)/.installed-dev ## the tests of optional packages (gguf, loggers, quantisers), with all of them
	bash scripts/extras_test.sh

slow-test: $(VENV)/.installed-dev ## the tests marked slow, and more and other examples of those that draw them
	python -m pytest -m "slow and not faults"
	python -m pytest -n auto -m "hypothesis and not faults" --hypothesis-profile=search

slurm-test: $(VENV)/.installed-dev ## a sweep on a real one-node SLURM cluster (Debian, root)
	bash scripts/slurm_up.sh --install
	python -m pytest -m slurm tests/slurm

FAULTS := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg python -m pytest tests/faults

faults: $(VENV)/.installed-dev ## every fault many times, about half an hour: writes docs/faults.md
	$(FAULTS) -m faults --times 6 --page docs/faults.md

faults-quick: $(VENV)/.installed-dev ## a few of every fault
	$(FAULTS) -m "faults and not slow"

lint: $(VENV)/.installed-dev ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(VENV)/bin/pip install -r requirements-docs.txt
	@touch $@

pages: $(VENV)/.installed-dev ## write the pages made from the code: every key, every name, the picture of a resample
	python -m scripts.docs.keys
	python -m scripts.docs.api
	python -m scripts.docs.draw_resample

docs: $(VENV)/.installed-docs ## the documentation site, built strictly into site/html
	python -m scripts.docs.collect
	mkdocs build --strict

wheel-check: $(VENV)/.installed ## build the wheel, install it elsewhere and use it there
	bash scripts/wheel_check.sh

constraints: $(VENV)/.installed-dev ## write this environment's versions to constraints.txt, once `make test` passed in it
	{ python -c 'import platform; print("# Versions that the tests passed with, on Python", platform.python_version())'; \
	  echo "# written by: make constraints; used by: PIP_CONSTRAINT=constraints.txt make test, or pip install -c"; \
	  pip freeze | sed 's/+cpu$$//'; } > constraints.txt

bench: $(VENV)/.installed-dev ## measure speed and memory on this machine: writes benchmarks/results
	python benchmarks/run.py

study: export RUNS ?= runs
study: $(VENV)/.installed ## the capacity study's small form, about ten minutes on two cores: prints its table
	python jobrunner.py --fn studies/capacity/small.yaml --local 2
	python -m studies.capacity.measure $(RUNS)/capacity-small/phone_book --records $(RUNS)/capacity-small/records
	python -m studies.report $(RUNS)/capacity-small/records

clean: ## remove the environment, the demo, the site and the caches
	rm -rf $(VENV) demo site .pytest_cache .mypy_cache .ruff_cache
