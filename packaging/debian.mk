# The Debian package: `make deb`.

# 1.0rc1 comes before 1.0.
DEB_VERSION = $(shell echo '$(VERSION)' | sed -E 's/(a|b|rc|\.dev)/~\1/')-1

deb: ## build a Debian package into dist/ for the Debian of this machine (needs debhelper, python3-venv, git)
	rm -rf $(BUILD)/deb && mkdir -p $(BUILD)/deb $(OUT)
	$(call stage,$(BUILD)/deb/source)
	mv $(BUILD)/deb/source/packaging/debian $(BUILD)/deb/source/debian
	printf '%s\n' 'eemtcleanupd ($(DEB_VERSION)) unstable; urgency=medium' '' '  * See changelog.gz beside this file.' '' \
		" -- $$(sed -n 's/^Maintainer: //p' packaging/debian/control)  $$(date -uRd @$$SOURCE_DATE_EPOCH)" \
		>$(BUILD)/deb/source/debian/changelog
	cd $(BUILD)/deb/source && dpkg-buildpackage --build=binary --no-sign
	mv $(BUILD)/deb/*.deb $(OUT)/
