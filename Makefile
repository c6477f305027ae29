# Two commands do everything on a fresh machine: make run, make test. PYTHON and VENV choose another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test lint format docs bench wheel-test clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[fast,flask,django]' --group dev
	touch $@

run: $(VENV)/.installed
	$(BIN)/flask --app examples/flask_app.py run-prefork

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

wheel-test: $(VENV)/.installed
	sh tests/wheel.sh $(BIN)/python

bench:
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade pip
	.venv-bench/bin/python -m pip install --quiet --editable . --group bench
	cd benchmarks && ../.venv-bench/bin/python bench.py raw flask --servers prefork,granian-wsgi-bt4,gunicorn-gthread-h1c,bjoern

clean:
	rm -rf .venv .venv-3.* .venv-bench dist bench-results benchmarks/bench-results
