# On a fresh machine (Python 3.11 or later with venv, make): `make run` shows it, `make test` proves it.

# The system's Python comes first: packages use it, and distributions build it with optimizations.
PYTHON ?= $(firstword $(foreach python,/usr/bin/python3 python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	echo $(python))) python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-store
CONFIG := $(DEMO)/cleanup_config.yaml
# What codespell reads; tools/prose.py reads the same documents.
PROSE := eemtcleanupd etc packaging scripts docs $(wildcard *.md)
PYTEST_ARGS ?=
BENCH_ARGS ?=
STRESS_ARGS ?=

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' eemtcleanupd/__init__.py)
# All extras but those of development: what a user may install, and what is audited.
RUNTIME_EXTRAS = $(shell sed -n '/extras_require/,$$ s/^\([a-z]*\) =$$/\1/p' setup.cfg \
	| grep -vxE 'dev|docs|test' | paste -sd,)

# The variables of a real job store must not reach the demo or the tests.
unexport $(filter EEMT_%,$(.VARIABLES))
# Without compiled files, each process of the tests compiles what it imports; without a buffer, it writes line by line.
unexport PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED

# Where dist and deb work, and where their results go.
BUILD ?= build
OUT ?= dist
DIST = $(OUT)/eemtcleanupd-$(VERSION)

# What git knows or would add, as it is here, with the time of the last commit.
define stage
@git status --porcelain | sed 's/^/not committed, and packed all the same: /'
git ls-files -co --exclude-standard -z >$(1).files
mkdir $(1)
tar -c --null --files-from=$(1).files --mtime=@$$SOURCE_DATE_EPOCH --mode=u=rwX,go=rX | tar -x -C $(1)
endef

# https://reproducible-builds.org/specs/source-date-epoch
packages dist deb: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)

# Installs packages into an environment.  uv takes seconds for what takes pip a minute, but has a configuration of its
# own: behind a mirror that only pip knows, pip does it.
define install_packages
$(BIN)/uv pip install -qq --no-cache --python $(1) $(2) 2>/dev/null || \
	$(BIN)/python -m pip --python $(1) install -qq --no-compile --disable-pip-version-check $(2)
endef

.DEFAULT_GOAL := help
.PHONY: help run test test-all pytest pytest-all check docs reference bench stress install upgrade uninstall packages dist licences audit deb clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

test: check pytest ## run all checks, and all tests but the slow ones
pytest: MARKED := -m 'not slow'

test-all: check pytest-all ## run all checks and all tests

pytest pytest-all: $(READY)
	@# Once, or several workers would compile the same files at the same time.
	@[ -d tests/__pycache__ ] || $(BIN)/pytest --collect-only -q >/dev/null
	$(BIN)/pytest -n auto --dist loadgroup $(MARKED) $(PYTEST_ARGS)

check: $(READY) ## run the linters, the type checker, the import contracts and the prose checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell -D tools/plain_english.txt $(PROSE)
	$(BIN)/python -m tools.prose

docs: $(READY) ## build the documentation site in site/
	$(BIN)/python -m tools.site site
	@echo "To view it: $(BIN)/python -m http.server --directory site --bind 127.0.0.1 8000"

reference: $(READY) ## regenerate etc/, and the generated parts of docs/, ARCHITECTURE.md, README.md and the man page
	$(BIN)/python -m tools.reference

bench: $(READY) ## measure what the README's figures come from, in ten minutes (as root, on a quiet machine)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

stress: $(READY) ## run the stress tests for an hour or so: kills, faults, races, fuzzing (as root, with strace)
	$(BIN)/python -m tests.stress $(STRESS_ARGS)

packages: $(READY) ## build sdist and wheel, the same bytes each time, and check them
	rm -rf $(BUILD)/dist $(DIST)[.-]* && mkdir -p $(BUILD)/dist $(OUT)
	$(call stage,$(BUILD)/dist/source)
	$(BIN)/python -m build --sdist --no-isolation --outdir $(BUILD)/dist $(BUILD)/dist/source >$(BUILD)/dist/log
	@# setuptools puts times, owners and modes of this machine into it.
	tar -xzf $(BUILD)/dist/$(notdir $(DIST)).tar.gz -C $(BUILD)/dist
	tar -c --sort=name --format=ustar --mtime=@$$SOURCE_DATE_EPOCH --owner=0 --group=0 --numeric-owner \
		--mode=u=rwX,go=rX -C $(BUILD)/dist $(notdir $(DIST)) | gzip -9n >$(DIST).tar.gz
	@# From the sdist, so that nothing is missing there.
	rm -rf $(BUILD)/dist/$(notdir $(DIST))
	umask 022 && tar -xzf $(DIST).tar.gz -C $(BUILD)/dist && $(BIN)/python -m build --wheel --no-isolation \
		--outdir $(OUT) $(BUILD)/dist/$(notdir $(DIST)) >>$(BUILD)/dist/log
	$(BIN)/twine check --strict $(DIST).tar.gz $(DIST)-py3-none-any.whl
	$(BIN)/check-wheel-contents $(DIST)-py3-none-any.whl

dist: packages ## build sdist, wheel and bill of materials (SBOM) into dist/
	@# What it runs with, in an environment where nothing else is.
	$(PYTHON) -m venv --clear --without-pip $(BUILD)/runtime
	$(call install_packages,$(BUILD)/runtime/bin/python,'$(DIST)-py3-none-any.whl[$(RUNTIME_EXTRAS)]')
	$(BIN)/cyclonedx-py environment $(BUILD)/runtime --output-reproducible --no-validate \
		--output-file $(DIST).cdx.json

licences: dist ## regenerate docs/reference/licences.md, the licences of all dependencies
	$(BIN)/python -m tools.licences $(DIST).cdx.json

audit: dist ## look for known vulnerabilities of what it runs with: asks an advisory service on the network
	$(BIN)/pip --python $(BUILD)/runtime/bin/python freeze --exclude eemtcleanupd >$(BUILD)/runtime.txt
	@# Strict: what the service does not know has not been looked at.
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement $(BUILD)/runtime.txt

clean: ## remove the virtual environment, the demo and all caches
	rm -rf $(VENV) $(DEMO) site build dist *.egg-info .coverage
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

include packaging/install.mk packaging/debian.mk

$(READY): setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "eemtcleanupd needs Python 3.11 or later, and '$(PYTHON)' is not; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments; install its venv (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV): once, and again when setup.cfg changes; it takes a minute or so"
	@$(PYTHON) -m venv --clear $(VENV)
	@# The pip of a distribution can be years old; a new one takes half the time.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@# Where no uv is built for this machine, pip does it all.
	@$(BIN)/python -m pip install -qq --only-binary=:all: uv 2>/dev/null || true
	@$(call install_packages,$(BIN)/python,--editable '.[dev]')
	@$(BIN)/python -m compileall -q eemtcleanupd
	@touch $@
