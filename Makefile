# `make demo` and `make test` set up what they need; `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --dist loadfile
READY := $(VENV)/.ready

.PHONY: help demo deploy-demo test coverage test-slow grid check setup clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: $(READY)  ## create .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedwsa needs Python 3.11 or newer; try: make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## clients of three sizes, from two initialisations, with and without WSA
	$(BIN)/fedwsa --multirun experiment=demo_standard,demo_wave wsa=off,on

deploy-demo: setup  ## a server and two nodes as separate programs, with TLS and keys
	$(BIN)/python -m experiments.deploy

test: setup  ## the tests that take seconds
	$(PYTEST) -n 2 -m 'not slow and not grid'

coverage: setup  ## the same with coverage of fedwsa/, at least 90 %
	$(PYTEST) -n 2 -m 'not slow and not grid' --cov --cov-report=term

# Four on two cores: much of them is waiting for programs to start and to end.
test-slow: setup  ## the others: commands and what kills them, deployments, studies, the wheel
	$(PYTEST) -n 4 -m slow

grid: setup  ## every strategy on every model, in every way and every world: over an hour
	$(BIN)/python -m pytest -n 2 -m grid

check: setup  ## lint, format, types, import floors, tables of the documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -p no:cacheprovider tests/test_floors.py
	$(BIN)/python -m experiments.reports.check docs

clean:  ## remove .venv and caches; run folders stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
