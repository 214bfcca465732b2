# The commands for people and for CI. `make serve` and `make test` each work first on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install serve test lint format e2e bench bench-serving

install: .venv/installed

# torch first and pinned: asked for by another package, it could come as a newer build of several GB.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

serve: install
	$(BIN)/python -m app serve

test: install
	$(BIN)/python -m pytest --cov --numprocesses 2

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

e2e: install
	tests/docker/e2e.sh

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: install
	$(BIN)/python -m benchmarks.forward
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.heads --rounds 3
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.tail
	$(BIN)/python -m benchmarks.attention
	$(BIN)/python -m benchmarks.criss_cross
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.sizing
	$(BIN)/python -m benchmarks.instrumentation
	$(BIN)/python -m benchmarks.eventloop --clients 8
	$(BIN)/python -m benchmarks.page

# Hours: five other servers, each in turn. They get an environment of their own.
.venv-peers/installed: benchmarks/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --constraint constraints.txt torch
	.venv-peers/bin/pip install --quiet --constraint constraints.txt --requirement benchmarks/peers/requirements.txt
	touch $@

bench-serving: install .venv-peers/installed
	$(BIN)/python -m benchmarks.serving --peers-python .venv-peers/bin/python
