# On a fresh machine (Python 3.11 or later with venv, make): `make run` shows it, `make test` proves it.

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))) python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-store
CONFIG := $(DEMO)/cleanup_config.yaml
PYTEST_ARGS ?=
TORTURE_ARGS ?=

# make install, with the names that packagers know (GNU coding standards, Directory Variables)
DESTDIR ?=
prefix ?= /usr/local
sysconfdir ?= /etc
libdir = $(prefix)/lib/eemtcleanupd
systemddir = $(prefix)/lib/systemd
CONFFILE = $(sysconfdir)/eemtcleanupd/cleanup_config.yaml
UNITS := system/eemtcleanupd.service user/eemt-cleanup.service user/eemt-cleanup.timer

# The variables of a real job store must not reach the demo or the tests.
unexport $(filter EEMT_%,$(.VARIABLES))

.DEFAULT_GOAL := help
.PHONY: help run test check bench torture install uninstall clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

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
	$(BIN)/pytest -n auto --dist loadgroup $(PYTEST_ARGS)

check: $(READY) ## run the linters, the type checker and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## measure what the README's figures come from
	$(BIN)/python -m benchmarks

torture: $(READY) ## attack it for half an hour: kills, faults, races, fuzz (as root, with strace)
	$(BIN)/python -m torture $(TORTURE_ARGS)

install: ## install below $(prefix), as root: private venv, unit, configuration, man page
	$(PYTHON) -m venv --clear $(DESTDIR)$(libdir)
	$(DESTDIR)$(libdir)/bin/python -m pip install -qq --disable-pip-version-check --no-warn-script-location '.[web]'
	$(DESTDIR)$(libdir)/bin/python -m pip uninstall -qqy --disable-pip-version-check setuptools pip
	@# The venv was made under DESTDIR, and will be used without it.
	grep -rlIF '$(DESTDIR)$(libdir)' $(DESTDIR)$(libdir)/bin $(DESTDIR)$(libdir)/pyvenv.cfg \
		| xargs -r sed -i 's#$(DESTDIR)$(libdir)#$(libdir)#g'
	install -d $(DESTDIR)$(prefix)/bin
	ln -sfn $(libdir)/bin/eemtcleanupd $(DESTDIR)$(prefix)/bin/eemtcleanupd
	for unit in $(UNITS); do install -Dm644 packaging/systemd/$${unit#*/} $(DESTDIR)$(systemddir)/$$unit; done
	sed -i 's#/usr/local/bin/#$(prefix)/bin/#' $(addprefix $(DESTDIR)$(systemddir)/,$(UNITS))
	install -Dm644 packaging/systemd/eemtcleanupd.sysusers $(DESTDIR)$(prefix)/lib/sysusers.d/eemtcleanupd.conf
	install -Dm644 packaging/systemd/eemtcleanupd.tmpfiles $(DESTDIR)$(prefix)/lib/tmpfiles.d/eemtcleanupd.conf
	install -Dm644 packaging/man/eemtcleanupd.8 $(DESTDIR)$(prefix)/share/man/man8/eemtcleanupd.8
	install -d $(DESTDIR)$(sysconfdir)/eemtcleanupd
	sed 's#: \./#: /srv/eemt/#' etc/cleanup_config.yaml >$(DESTDIR)$(CONFFILE).new
	install -m644 etc/cleanup_config.schema.json $(DESTDIR)$(sysconfdir)/eemtcleanupd/
	@# A configuration that is there stays; the new one lies beside it when it differs.
	if [ ! -e $(DESTDIR)$(CONFFILE) ] || cmp -s $(DESTDIR)$(CONFFILE).new $(DESTDIR)$(CONFFILE); \
		then mv $(DESTDIR)$(CONFFILE).new $(DESTDIR)$(CONFFILE); fi
ifeq ($(DESTDIR),)
	if command -v systemd-sysusers >/dev/null; then systemd-sysusers eemtcleanupd.conf; fi
	if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create eemtcleanupd.conf; fi
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	@echo "Next: look at $(CONFFILE), then: systemctl enable --now eemtcleanupd"
endif

uninstall: ## take away what install laid down; a changed configuration and the job store stay
ifeq ($(DESTDIR),)
	if [ -d /run/systemd/system ]; then systemctl disable --now eemtcleanupd || true; fi
endif
	sed 's#: \./#: /srv/eemt/#' etc/cleanup_config.yaml | cmp -s - $(DESTDIR)$(CONFFILE) \
		&& rm -f $(DESTDIR)$(CONFFILE) || true
	rm -rf $(DESTDIR)$(libdir)
	rm -f $(DESTDIR)$(prefix)/bin/eemtcleanupd $(addprefix $(DESTDIR)$(systemddir)/,$(UNITS))
	rm -f $(DESTDIR)$(prefix)/lib/sysusers.d/eemtcleanupd.conf $(DESTDIR)$(prefix)/lib/tmpfiles.d/eemtcleanupd.conf
	rm -f $(DESTDIR)$(prefix)/share/man/man8/eemtcleanupd.8 $(DESTDIR)$(CONFFILE).new
	rm -f $(DESTDIR)$(sysconfdir)/eemtcleanupd/cleanup_config.schema.json
	rmdir $(DESTDIR)$(sysconfdir)/eemtcleanupd 2>/dev/null || true

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
