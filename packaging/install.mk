# Installation below $(prefix): `make install`, `make uninstall`.

# The names are those of the GNU coding standards (Directory Variables).
DESTDIR ?=
prefix ?= /usr/local
sysconfdir ?= /etc
libdir = $(prefix)/lib/eemtcleanupd
sharedir = $(prefix)/share/eemtcleanupd
# A new version is built beside the old one, which works until the new one is complete.
NEW = $(DESTDIR)$(libdir).new
OLD = $(DESTDIR)$(libdir).old
systemddir = $(prefix)/lib/systemd
zshdir = $(prefix)/share/zsh/site-functions
# The extras to install: EXTRAS=web,apprise
EXTRAS ?= web
CONFFILE = $(sysconfdir)/eemtcleanupd/cleanup_config.yaml
COMPLETIONS = $(prefix)/share/bash-completion/completions/eemtcleanupd $(zshdir)/_eemtcleanupd \
	$(prefix)/share/fish/vendor_completions.d/eemtcleanupd.fish
UNITS := system/eemtcleanupd.service user/eemt-cleanup.service user/eemt-cleanup.timer

install: ## install below $(prefix), as root: private venv, unit, configuration, man page, completion
	@# An interrupted swap leaves only the old one.
	if [ -e $(OLD) ] && [ ! -e $(DESTDIR)$(libdir) ]; then mv -T $(OLD) $(DESTDIR)$(libdir); fi
	rm -rf $(OLD)
	$(PYTHON) -m venv --clear $(NEW)
	$(NEW)/bin/python -m pip install -qq --disable-pip-version-check --no-warn-script-location \
		--no-compile '.[$(EXTRAS)]'
	$(NEW)/bin/python -m pip uninstall -qqy --disable-pip-version-check setuptools pip
	@# Remove what only pip or a shell reads, and what names the build folder.
	find $(NEW)/bin -not -type d -not -name 'python*' -delete
	find $(NEW)/lib -path '*.dist-info/*' \
		\( -name RECORD -o -name REQUESTED -o -name direct_url.json \) -delete
	sed -i 's#$(NEW)#$(libdir)#' $(NEW)/pyvenv.cfg
	printf '#!%s\nfrom eemtcleanupd.cli.main import main\n\nmain()\n' $(libdir)/bin/python >$(NEW)/bin/eemtcleanupd
	chmod 755 $(NEW)/bin/eemtcleanupd
	@# The folder is not writable later, so compile now; by content, because dpkg and tar change times.
	$(NEW)/bin/python -m compileall -qq --invalidation-mode checked-hash -s $(NEW) -p $(libdir) $(NEW)/lib
	$(NEW)/bin/python -I -m eemtcleanupd --version >/dev/null
	@# What can fail is behind us: swap.
	if [ -e $(DESTDIR)$(libdir) ]; then mv -T $(DESTDIR)$(libdir) $(OLD); fi
	mv -T $(NEW) $(DESTDIR)$(libdir) || { mv -T $(OLD) $(DESTDIR)$(libdir); exit 1; }
	rm -rf $(OLD)
	install -d $(DESTDIR)$(prefix)/bin
	@# Only the environment's interpreter has the package.
	install -Dm755 -t $(DESTDIR)$(sharedir)/scripts scripts/cleanup_jobs.py scripts/rerun_job.py scripts/setup_cleanup_cron.sh
	sed -i '1s#^.*python3$$#\#!$(libdir)/bin/python#' $(DESTDIR)$(sharedir)/scripts/*.py
	rm -rf $(DESTDIR)$(libdir)/share/eemtcleanupd
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
	@# An existing configuration stays; a new one that differs is put beside it.
	if [ ! -e $(DESTDIR)$(CONFFILE) ] || cmp -s $(DESTDIR)$(CONFFILE).new $(DESTDIR)$(CONFFILE); \
		then mv $(DESTDIR)$(CONFFILE).new $(DESTDIR)$(CONFFILE); fi
ifeq ($(DESTDIR),)
	if command -v systemd-sysusers >/dev/null; then systemd-sysusers eemtcleanupd.conf; fi
	if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create eemtcleanupd.conf; fi
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; systemctl try-restart eemtcleanupd; fi
	@echo "Next: check $(CONFFILE), then run: systemctl enable --now eemtcleanupd"
endif

upgrade: install ## the same as install: keeps the configuration, and restarts the daemon if it runs

uninstall: ## remove what install created; a changed configuration and the job store stay
ifeq ($(DESTDIR),)
	if [ -d /run/systemd/system ]; then systemctl disable --now eemtcleanupd || true; fi
endif
	sed 's#: \./#: /srv/eemt/#' etc/cleanup_config.yaml | cmp -s - $(DESTDIR)$(CONFFILE) \
		&& rm -f $(DESTDIR)$(CONFFILE) || true
	rm -rf $(DESTDIR)$(libdir) $(NEW) $(OLD) $(DESTDIR)$(sharedir)
	rm -f $(DESTDIR)$(prefix)/bin/eemtcleanupd $(addprefix $(DESTDIR)$(systemddir)/,$(UNITS))
	rm -f $(DESTDIR)$(prefix)/lib/sysusers.d/eemtcleanupd.conf $(DESTDIR)$(prefix)/lib/tmpfiles.d/eemtcleanupd.conf
	rm -f $(DESTDIR)$(prefix)/share/man/man8/eemtcleanupd.8 $(addprefix $(DESTDIR),$(COMPLETIONS))
	rm -f $(DESTDIR)$(CONFFILE).new
	rm -f $(DESTDIR)$(sysconfdir)/eemtcleanupd/cleanup_config.schema.json
	rmdir $(DESTDIR)$(sysconfdir)/eemtcleanupd 2>/dev/null || true
