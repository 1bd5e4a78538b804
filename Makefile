# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Arguments of a test run: make test ARGS="tests/config -x"
ARGS ?=
# Test files run side by side in so many processes; 0: all in one, as a debugger wants it.
WORKERS ?= 2
# What has been compiled is kept, whatever the person's environment says: each process that a test starts would
# compile the package again, each run all assertions.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install quickstart test test-all lint bench clean

# The script compares what is installed with what is declared, in a fifth of a second when they agree.
install:
	@$(PYTHON) scripts/install.py --venv $(VENV)

quickstart: install
	$(PY) -m shunter.cli.main run recipes/quickstart.yaml
	@$(PY) -m shunter.cli.main report quickstart
	@echo "Talk to the model: $(VENV)/bin/shunter chat chat"

test: lint
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: lint
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "long or not long" $(ARGS)

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-logo

bench: install
	$(PY) -m bench

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
