# `make demo` and `make test` need nothing but Python 3.11 or newer: each target first sets up what it uses, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test load check integrations bench docs interop peers
setup: .venv/.check ; @echo "ready: make test, make check"
demo: .venv/.demo ; @$(BIN)/python -m demo
test: .venv/.test ; $(BIN)/python -m pytest -n 2
load: .venv/.test ; $(BIN)/python -m tests.under_load -n 2 $(ARGS)
check: .venv/.check ; $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports
integrations: .venv/.integrations ; ALLSWELL_INTEGRATIONS=required $(BIN)/python -m pytest -n 2 tests/integrations tests/docs
bench: .venv/.bench ; @$(BIN)/python -m tests.bench $(ARGS)
interop: .venv/.test ; @interop/run.sh $(ARGS)
peers: ; @interop/peers.sh
docs: .venv/.docs ; $(BIN)/python -m mkdocs build --strict

# One stamp per dependency group of pyproject.toml; installed again when that changes.
.venv/.%: pyproject.toml | .venv/.python
	@echo "installing what \`$*\` needs into .venv"
	@$(BIN)/python -m pip install --quiet --editable . --group $*
	@touch $@

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "allswell needs Python 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@
