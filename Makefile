# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test test-all lint bench clean

install: $(STAMP)

# Idempotent: runs again only when the declared dependencies change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) scripts/install.py --venv $(VENV)
	@touch $@

quickstart: install
	$(BIN)/shunter run recipes/quickstart.yaml

test: install lint
	$(BIN)/python -m pytest

test-all: install lint
	$(BIN)/python -m pytest -m "long or not long"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: install
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
