# make demo   the main job on the bundled model and data, no downloads of either
# make test   the tests        make lint   ruff and mypy        make slurm-test   against a real SLURM cluster (Debian, root)
# make faults   every fault many times, under two hours: docs/faults.md        make faults-quick   a few of each
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test slow-test slurm-test faults faults-quick lint bench clean help

help:
	@sed -n 's/^# //p' Makefile

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

demo: $(VENV)/.installed
	bash scripts/demo.sh

test: $(VENV)/.installed-dev
	python -m pytest -m "not slow and not slurm"

slow-test: $(VENV)/.installed-dev
	python -m pytest -m slow

slurm-test: $(VENV)/.installed-dev
	bash scripts/slurm_up.sh --install
	python -m pytest -m slurm tests/slurm

# E2E_DIR and ELI5_DIR name the real data; without them the bundled texts stand in
faults: $(VENV)/.installed
	python -m scripts.faults $(if $(E2E_DIR),--e2e $(E2E_DIR)) $(if $(ELI5_DIR),--eli5 $(ELI5_DIR))

faults-quick: $(VENV)/.installed
	python -m scripts.faults --quick

lint: $(VENV)/.installed-dev
	ruff check .
	ruff format --check .
	mypy

bench: $(VENV)/.installed-dev
	python benchmarks/run.py

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
