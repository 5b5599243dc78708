# On a fresh machine (Python 3.11 or later with venv, make): `make run` shows it, `make test` proves it.

PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))) python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-store
CONFIG := $(DEMO)/cleanup_config.yaml
PYTEST_ARGS ?=
BENCH_ARGS ?=
TORTURE_ARGS ?=

# make install, with the names that packagers know (GNU coding standards, Directory Variables)
DESTDIR ?=
prefix ?= /usr/local
sysconfdir ?= /etc
libdir = $(prefix)/lib/eemtcleanupd
systemddir = $(prefix)/lib/systemd
zshdir = $(prefix)/share/zsh/site-functions
# What pip installs with it: EXTRAS=web,apprise
EXTRAS ?= web
CONFFILE = $(sysconfdir)/eemtcleanupd/cleanup_config.yaml
COMPLETIONS = $(prefix)/share/bash-completion/completions/eemtcleanupd $(zshdir)/_eemtcleanupd \
	$(prefix)/share/fish/vendor_completions.d/eemtcleanupd.fish
UNITS := system/eemtcleanupd.service user/eemt-cleanup.service user/eemt-cleanup.timer

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' eemtcleanupd/__init__.py)
# All extras but those of development: what a user may install, and what is audited.
RUNTIME_EXTRAS = $(shell sed -n '/extras_require/,$$ s/^\([a-z]*\) =$$/\1/p' setup.cfg \
	| grep -vxE 'dev|docs|test' | paste -sd,)

# The variables of a real job store must not reach the demo or the tests.
unexport $(filter EEMT_%,$(.VARIABLES))

# Where dist and deb work, and where their results go.
BUILD ?= build
OUT ?= dist
DIST = $(OUT)/eemtcleanupd-$(VERSION)
# 1.0rc1 comes before 1.0.
DEB_VERSION = $(shell echo '$(VERSION)' | sed -E 's/(a|b|rc|\.dev)/~\1/')-1

# What git knows or would add, as it is here, with the time of the last commit.
define stage
@git status --porcelain | sed 's/^/not committed, and packed all the same: /'
git ls-files -co --exclude-standard -z >$(1).files
mkdir $(1)
tar -c --null --files-from=$(1).files --mtime=@$$SOURCE_DATE_EPOCH --mode=u=rwX,go=rX | tar -x -C $(1)
endef

# https://reproducible-builds.org/specs/source-date-epoch
packages dist deb: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)

.DEFAULT_GOAL := help
.PHONY: help run test check docs reference bench torture install uninstall packages dist licences audit deb clean
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

docs: $(READY) ## build the documents as a site with a search, in site/
	$(BIN)/python docs/build_site.py site
	@echo "To look at it: $(BIN)/python -m http.server --directory site --bind 127.0.0.1 8000"

reference: $(READY) ## write the generated parts of docs/*.md anew, after a change of keys, options, hooks, metrics
	$(BIN)/python docs/reference.py

bench: $(READY) ## measure what the README's figures come from
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

torture: $(READY) ## attack it for half an hour: kills, faults, races, fuzz (as root, with strace)
	$(BIN)/python -m torture $(TORTURE_ARGS)

install: ## install below $(prefix), as root: private venv, unit, configuration, man page, completion
	$(PYTHON) -m venv --clear $(DESTDIR)$(libdir)
	$(DESTDIR)$(libdir)/bin/python -m pip install -qq --disable-pip-version-check --no-warn-script-location \
		--no-compile '.[$(EXTRAS)]'
	$(DESTDIR)$(libdir)/bin/python -m pip uninstall -qqy --disable-pip-version-check setuptools pip
	@# What only pip or a shell reads, and what tells where this was made, which is not where it will be used.
	find $(DESTDIR)$(libdir)/bin -not -type d -not -name 'python*' -delete
	find $(DESTDIR)$(libdir)/lib -path '*.dist-info/*' \
		\( -name RECORD -o -name REQUESTED -o -name direct_url.json \) -delete
	sed -i 's#$(DESTDIR)$(libdir)#$(libdir)#' $(DESTDIR)$(libdir)/pyvenv.cfg
	printf '#!%s\nfrom eemtcleanupd.cli.main import main\n\nmain()\n' $(libdir)/bin/python >$(DESTDIR)$(libdir)/bin/eemtcleanupd
	chmod 755 $(DESTDIR)$(libdir)/bin/eemtcleanupd
	@# Nobody may write there later, so it is compiled now, and by content: dpkg and tar change times.
	$(DESTDIR)$(libdir)/bin/python -m compileall -qq --invalidation-mode checked-hash \
		$(if $(DESTDIR),-s $(DESTDIR) -p /) $(DESTDIR)$(libdir)/lib
	install -d $(DESTDIR)$(prefix)/bin
	ln -sfn $(libdir)/bin/eemtcleanupd $(DESTDIR)$(prefix)/bin/eemtcleanupd
	for unit in $(UNITS); do install -Dm644 packaging/systemd/$${unit#*/} $(DESTDIR)$(systemddir)/$$unit; done
	sed -i 's#/usr/local/bin/#$(prefix)/bin/#' $(addprefix $(DESTDIR)$(systemddir)/,$(UNITS))
	install -Dm644 packaging/systemd/eemtcleanupd.sysusers $(DESTDIR)$(prefix)/lib/sysusers.d/eemtcleanupd.conf
	install -Dm644 packaging/systemd/eemtcleanupd.tmpfiles $(DESTDIR)$(prefix)/lib/tmpfiles.d/eemtcleanupd.conf
	install -d $(DESTDIR)$(prefix)/share/man/man8 $(dir $(addprefix $(DESTDIR),$(COMPLETIONS)))
	sed 's#^\.Os$$#.Os eemtcleanupd $(VERSION)#' packaging/man/eemtcleanupd.8 \
		>$(DESTDIR)$(prefix)/share/man/man8/eemtcleanupd.8
	set -- $(addprefix $(DESTDIR),$(COMPLETIONS)); for shell in bash zsh fish; do \
		_EEMTCLEANUPD_COMPLETE=$${shell}_source $(DESTDIR)$(libdir)/bin/python -m eemtcleanupd >"$$1" || exit; shift; done
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
	rm -f $(DESTDIR)$(prefix)/share/man/man8/eemtcleanupd.8 $(addprefix $(DESTDIR),$(COMPLETIONS))
	rm -f $(DESTDIR)$(CONFFILE).new
	rm -f $(DESTDIR)$(sysconfdir)/eemtcleanupd/cleanup_config.schema.json
	rmdir $(DESTDIR)$(sysconfdir)/eemtcleanupd 2>/dev/null || true

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
	$(PYTHON) -m venv --clear $(BUILD)/runtime
	$(BUILD)/runtime/bin/python -m pip install -qq --disable-pip-version-check --find-links $(OUT) \
		'eemtcleanupd[$(RUNTIME_EXTRAS)] == $(VERSION)'
	$(BUILD)/runtime/bin/python -m pip uninstall -qqy --disable-pip-version-check setuptools pip
	$(BIN)/cyclonedx-py environment $(BUILD)/runtime --output-reproducible --no-validate \
		--output-file $(DIST).cdx.json

licences: dist ## write docs/licences.md: what each dependency's licence is
	$(BIN)/python docs/make_licences.py $(DIST).cdx.json

audit: dist ## look for known vulnerabilities of what it runs with: asks an advisory service on the network
	$(BIN)/pip --python $(BUILD)/runtime/bin/python freeze --exclude eemtcleanupd >$(BUILD)/runtime.txt
	@# Strict: what the service does not know has not been looked at.
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement $(BUILD)/runtime.txt

deb: ## build a Debian package into dist/, on a machine as it is meant for (debhelper, python3-venv, git)
	rm -rf $(BUILD)/deb && mkdir -p $(BUILD)/deb $(OUT)
	$(call stage,$(BUILD)/deb/source)
	mv $(BUILD)/deb/source/packaging/debian $(BUILD)/deb/source/debian
	printf '%s\n' 'eemtcleanupd ($(DEB_VERSION)) unstable; urgency=medium' '' '  * See changelog.gz beside this file.' '' \
		" -- $$(sed -n 's/^Maintainer: //p' packaging/debian/control)  $$(date -uRd @$$SOURCE_DATE_EPOCH)" \
		>$(BUILD)/deb/source/debian/changelog
	cd $(BUILD)/deb/source && dpkg-buildpackage --build=binary --no-sign
	mv $(BUILD)/deb/*.deb $(OUT)/

clean: ## remove the virtual environment, the demo and all caches
	rm -rf $(VENV) $(DEMO) site build dist *.egg-info .coverage
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
