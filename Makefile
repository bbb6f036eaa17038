# What a person runs, and CI runs the same. Needs Python 3.11 or newer and make; everything else goes into $(VENV).

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
JOBS   ?= 3

BIN   := $(VENV)/bin
STAMP := $(VENV)/.ready
# The evaluation engines have an environment of their own.
ENGINES := .venv-engines

.DEFAULT_GOAL := help
.PHONY: help setup run up eval-demo test test-system lint types bench chaos engines lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## everything that the project needs, into .venv
	@:

run: setup  ## the tour: a real model on the CPU, questions through the queue, a stream cut and resumed
	@$(BIN)/tailrace demo $(ARGS)

up: setup  ## the whole stack, with a local model, until Ctrl-C
	@$(BIN)/tailrace up --local-model $(ARGS)

# A home of its own, whose cache has the answers that are whole: a second run is faster.
eval-demo: setup  ## an evaluation: 120 questions to a real model on the CPU and to a recorded one, and a report in runs/
	@TAILRACE_PROVIDERS=examples/evaluation/providers.toml $(BIN)/tailrace eval run examples/evaluation/suite.yaml \
		--runs runs --home .tailrace/eval-demo --local-model $(ARGS) || [ $$? -eq 3 ]  # 3: some have no answer

test: setup  ## every test that needs no system package; ARGS="-k resume" narrows it, JOBS=0 takes one process
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-system: setup  ## the tests that need Chromium, redis-server, rabbitmq-server and tmux
	@$(BIN)/python -m pytest -m system $(ARGS)

lint: setup  ## ruff, and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . ; exit 1; }
	@$(BIN)/lint-imports --no-cache

types: setup  ## pyright, strict
	@$(BIN)/pyright --pythonpath $(BIN)/python $(ARGS)

bench: setup  ## speed and size, against the targets
	@$(BIN)/python -m benchmarks $(ARGS)

chaos: setup  ## faults for ten minutes under load, then the count; ARGS="--seconds 60 --seed 7" for a short one
	@$(BIN)/python -m tests.chaos $(ARGS)

engines: $(ENGINES)/.ready  ## inspect_ai and lm-evaluation-harness over Tailrace, each twice; ARGS="--epochs --limit 8"
	@$(BIN)/python examples/engines/run.py --bin $(ENGINES)/bin $(ARGS)

lock: setup  ## resolve requirements.lock anew; ARGS=--upgrade takes newer versions
	@$(BIN)/uv pip compile pyproject.toml --extra local-model --extra s3 --extra parquet --extra eval --group dev \
		--universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock $(ARGS)

clean:  ## remove .venv and whatever the tools left
	rm -rf $(VENV) .venv-3.* $(ENGINES) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(ENGINES)/.ready: examples/engines/requirements.txt | $(STAMP)
	@echo "engines: $$(grep -c '^[a-z]' $<) packages from $<"
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(ENGINES)
	@$(BIN)/uv pip sync $(if $(shell test -t 2 && echo y),,--quiet) --python $(ENGINES)/bin/python $<
	@touch $@

# uv comes from the lock like all the rest: its lines are cut out of it for pip, which checks the hash.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Tailrace needs Python 3.11 or newer; \
	this is " + sys.version.split()[0] + ". Say which one to use: make PYTHON=python3.12 setup")'
	@test -x $(BIN)/python || { echo "setup: $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@awk '/^[^ #]/ { mine = /^uv==/ } mine' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@echo "setup: $$(grep -c '^[a-z]' requirements.lock) packages from requirements.lock"
	@$(BIN)/uv pip sync $(if $(shell test -t 2 && echo y),,--quiet) --python $(BIN)/python \
		--require-hashes --no-build --strict requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "setup: done"
