# `make demo` and `make test` need nothing but Python 3.11 or newer: each target first sets up what it uses, in .venv.
# Another Python, beside it: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test coverage load check dist integrations bench docs pictures interop interop-local native peers
setup: $(VENV)/.check ; @echo "ready: make test, make check"
demo: $(VENV)/.demo ; @$(BIN)/python -m demo
test: $(VENV)/.test ; $(BIN)/python -m pytest -n 4
load: $(VENV)/.test ; $(BIN)/python -m tests.under_load -n 2 $(ARGS)
check: $(VENV)/.check ; $(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports
dist: $(VENV)/.dist ; @$(BIN)/python -m tests.dist $(ARGS)
integrations: $(VENV)/.integrations ; ALLSWELL_INTEGRATIONS=required $(BIN)/python -m pytest -n 2 tests/integrations tests/docs
bench: $(VENV)/.bench ; @$(BIN)/python -m tests.bench $(ARGS)
interop: $(VENV)/.test ; @VENV=$(VENV) interop/run.sh $(ARGS)
interop-local: $(VENV)/.test ; @$(BIN)/python -m interop.local $(ARGS)
peers: ; @interop/peers.sh
native: $(VENV)/.test ; $(BIN)/python -m pip install ./native
docs: $(VENV)/.docs ; $(BIN)/python -m mkdocs build --strict
pictures: $(VENV)/.pictures ; @$(BIN)/python -m docs.pictures.endings

# How many lines of src/allswell the tests run that need no server. It fails below pyproject's `fail_under`.
COVERED := backends client connection filters pool quic shutdown testing versions
coverage: $(VENV)/.coverage
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m coverage run -m pytest -n 4 $(or $(ARGS),$(addprefix tests/,$(COVERED)))
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report $(if $(ARGS),--fail-under=0)

# One stamp per dependency group of pyproject.toml; installed again when that changes.
$(VENV)/.%: pyproject.toml | $(VENV)/.python
	@echo "installing what \`$*\` needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable . --group $*
	@touch $@

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "allswell needs Python 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@
