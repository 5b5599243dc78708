# On a fresh machine (Python 3.11 or later with venv, make): `make run` shows it, `make test` proves it.

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))) python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-store
CONFIG := $(DEMO)/cleanup_config.yaml
PYTEST_ARGS ?=

# The variables of a real job store must not reach the demo or the tests.
unexport $(filter EEMT_%,$(.VARIABLES))

.DEFAULT_GOAL := help
.PHONY: help run test check bench clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(READY) ## build a demo job store, show the dry run, clean it, show the history
	@rm -rf $(DEMO)
	@printf '$$ eemtcleanupd demo $(DEMO)\n'
	@$(BIN)/eemtcleanupd demo $(DEMO)
	@printf '\n$$ eemtcleanupd clean --config $(CONFIG) --dry-run\n'
	@$(BIN)/eemtcleanupd clean --config $(CONFIG) --dry-run >$(DEMO)/dry-run.txt
	@head -n 12 $(DEMO)/dry-run.txt
	@echo "… all $$(wc -l <$(DEMO)/dry-run.txt) lines are in $(DEMO)/dry-run.txt …"
	@tail -n 3 $(DEMO)/dry-run.txt
	@printf '\n$$ eemtcleanupd clean --config $(CONFIG)\n'
	@$(BIN)/eemtcleanupd clean --config $(CONFIG)
	@printf '\n$$ eemtcleanupd history --config $(CONFIG)\n'
	@$(BIN)/eemtcleanupd history --config $(CONFIG)

test: check ## run all checks and tests
	$(BIN)/pytest -n auto $(PYTEST_ARGS)

check: $(READY) ## run the linters, the type checker and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure what the README's figures come from
	$(BIN)/python -m benchmarks

clean: ## remove the virtual environment, the demo and all caches
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .coverage
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "eemtcleanupd needs Python 3.11 or later, and '$(PYTHON)' is not; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments; install its venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV): once, and again when setup.cfg changes; it takes a minute or so"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -m compileall -q eemtcleanupd
	@touch $@
