# The two commands that do everything: `make demo` and `make test`. Both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup demo test lint bench soak editor chaos fuzz mutants docs lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "citygate needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv is missing; on Debian: sudo apt-get install make python3-venv"; exit 1; }
	@echo "setting up $(VENV) (once, a minute or two) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q gateway drivers
	@touch $@

demo: setup
	@$(BIN)/citygate demo $(ARGS)

test: setup
	$(BIN)/python -m pytest -q -n 4 --dist loadfile $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pytest -q -m bench -s tests/benchmarks $(ARGS)

soak: setup
	$(BIN)/python -m pytest -q -m slow --timeout 3600 $(ARGS)

# the schemas as editors use them; the language server needs Node, and is installed once into .editor/
editor: setup
	-@cmp -s tests/editor/package-lock.json .editor/package-lock.json || { mkdir -p .editor && cp tests/editor/package*.json .editor/ && \
	  cd .editor && npm ci --ignore-scripts --no-audit --no-fund --silent || rm -f package-lock.json; }
	$(BIN)/python -m pytest -q -m editor tests/editor $(ARGS)

chaos: setup
	$(BIN)/python -m pytest -q -m slow --timeout 3600 tests/flow $(ARGS)

# one parser alone: make fuzz ARGS='-k tts'
fuzz: setup
	SEED=$(or $(SEED),1) CASES=$(or $(CASES),1000000) $(BIN)/python -m pytest -q -m slow --timeout 7200 tests/fuzz $(ARGS)

# a sample, or all of a module or function: make mutants ARGS='--all gateway/log/writer.py'; see docs/testing.md
mutants: setup
	$(BIN)/python -m tests.mutants --sample $(or $(SAMPLE),400) --seed $(or $(SEED),1) --minutes $(or $(MINUTES),600) $(ARGS)

# the pages that are made from the code
docs: setup
	@$(BIN)/citygate schema --page > docs/config-keys.md

lock:
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --generate-hashes --universal --python-version 3.11 --no-header --no-emit-index-url -q -o requirements.lock

clean:
	rm -rf $(VENV) .editor .mypy_cache* .ruff_cache .pytest_cache .hypothesis .mutants
