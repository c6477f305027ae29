# On a machine with Python 3.11 or later and make:  make run  serves the example,  make test  runs every test.
# Another interpreter or environment:  make test PYTHON=python3.13 VENV=.venv-3.13.  More arguments:  make test ARGS="-k guard"

VENV   ?= .venv
PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done),python3)
BIN    := $(VENV)/bin
ARGS   ?=
# Tests wait as much as they compute: six at a time keep two cores busy. The cases of one file stay together: some share a server.
SPREAD ?= -n 6 --dist loadscope --no-loadscope-reorder
BENCH  ?= raw flask django io recycle memory startup

PIP    := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
NATIVE := bjoern fastpysgi gunicorn_h1c uwsgi

.DEFAULT_GOAL := help
.PHONY: help run test coverage soak fuzz lint format docs bench wheel-test clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=/path/to/python")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[fast,flask]'
	@touch $@

# The pip that comes with Python 3.11 does not know dependency groups yet.
$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) --editable . --group dev
	@touch $@ $(VENV)/.run

run: $(VENV)/.run  ## serve the example Flask application
	$(BIN)/flask --app examples/flask_app.py run-prefork $(ARGS)

test: $(VENV)/.dev  ## run every test
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

coverage: $(VENV)/.dev  ## hold that unit tests alone enter every branch of the two state machines
	$(BIN)/python -m pytest tests/unit -q --cov=prefork.supervisor --cov=prefork.http1.connection --cov=prefork.http1.heads --cov-branch \
		--cov-report=term-missing --cov-fail-under=100 $(ARGS)

soak: $(VENV)/.dev  ## let everything happen at random for 15 minutes, and count; ARGS="--minutes 1 --seed 7"
	$(BIN)/python tests/soak.py $(ARGS)

fuzz: $(VENV)/.dev  ## look for requests and answers that break a promise, 15 minutes; ARGS="--seconds 60"
	@$(PIP) --group fuzz || echo "atheris cannot be installed here: hypothesis looks instead, without the guidance of coverage"
	$(BIN)/python tests/fuzz.py $(ARGS)

lint: $(VENV)/.dev  ## style, types, direction of imports, generated pages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tests examples docs
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.dev  ## put the code into the form that lint asks for
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.dev  ## write the pages that are made from the code
	$(BIN)/python docs/generate.py

bench:  ## measure side by side with other servers, in .venv-bench; BENCH="raw flask" chooses
	@$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.bench
	.venv-bench/bin/python benchmarks/bench.py $(BENCH) $(ARGS)

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(PIP) --upgrade 'pip>=25.1'
	$(PIP) --editable . --group bench
	@for peer in $(NATIVE); do $(PIP) $$peer || echo "$$peer cannot be built here, so it is left out"; done
	@touch $@

wheel-test: $(VENV)/.dev  ## build sdist and wheel, and try the wheel in a clean environment
	tests/wheel.sh $(BIN)/python

clean:  ## remove what tools left
	rm -rf dist build bench-results .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .fuzz .import_linter_cache .grimp_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environments too
	rm -rf $(VENV) .venv-bench
