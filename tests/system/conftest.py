"""One machine for all tests in this folder, with the project installed and a job store in /srv/eemt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, base_root, why_not


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that is running."""
    if reason := why_not():
        pytest.skip(reason)
    scratch = tmp_path_factory.mktemp("machine")
    machine = Machine(scratch / "root")
    machine.copy(base_root())
    try:
        machine.install(scratch)
        machine.boot()
        yield machine
    finally:
        machine.power_off()
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def machine(booted: Machine) -> Machine:
    """The machine with a new job store, the installed configuration, and the service stopped."""
    booted.sh(
        """
        systemctl stop eemtcleanupd; systemctl reset-failed eemtcleanupd
        rm -rf /etc/systemd/system/eemtcleanupd.service.d /srv/eemt /srv/demo
        systemctl daemon-reload
        set -e
        eemtcleanupd demo /srv/demo --jobs 60 >/dev/null
        mv /srv/demo /srv/eemt && rm /srv/eemt/cleanup_config.yaml && chown -R eemt: /srv/eemt
        cp /usr/src/eemtcleanupd/etc/cleanup_config.yaml /tmp/plain.yaml
        sed 's#: \\./#: /srv/eemt/#' /tmp/plain.yaml > /etc/eemtcleanupd/cleanup_config.yaml
        """
    )
    return booted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of one machine in one worker, with a timeout that allows for booting."""
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents:
            item.add_marker(
                pytest.mark.xdist_group("debian" if item.path.stem == "test_debian" else "machine")
            )
            item.add_marker(pytest.mark.timeout(900))
            item.add_marker(pytest.mark.slow)
