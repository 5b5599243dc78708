"""A daemon inside the test's process: its clock is the test's, its messages are put by hand."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.config import Loaded
from eemtcleanupd.daemon.config_reload import ConfigManager
from eemtcleanupd.daemon.daemon import Daemon
from eemtcleanupd.daemon.messages import Message, ReloadRequested
from eemtcleanupd.daemon.status import DaemonStatus, read_status
from eemtcleanupd.daemon.systemd import SystemdNotifier
from eemtcleanupd.events import Event
from eemtcleanupd.plugins import load
from eemtcleanupd.store.address import StoreAddress
from tests.cleanup.conftest import NOW, JobStore

HEAD = """
paths: {database: jobs.db, uploads: uploads, results: results, temp: temp, logs: logs}
database: {timezone: UTC}
"""


@dataclass
class Living:
    """A daemon on a job store with a configuration file; ``told`` is what the service manager heard."""

    store: JobStore
    stack: ExitStack
    now: datetime = NOW
    elapsed: float = 0.0
    events: list[Event] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.store.path / "cleanup_config.yaml"

    def write(self, text: str) -> None:
        self.file.write_text(HEAD + text, encoding="utf-8")

    def start(self, text: str = "", environ: dict[str, str] | None = None) -> Daemon:
        if text or not self.file.exists():
            self.write(text)

        def read() -> Loaded:
            return load(self.file, environ={}, options={}, cwd=self.store.path)

        self._listen()
        service = SystemdNotifier({"NOTIFY_SOCKET": str(self._address), **(environ or {})})
        self.stack.callback(service.close)
        self.daemon = Daemon(
            ConfigManager(read, lambda: self.now),
            emit=self.events.append,
            service=service,
            clock=lambda: self.now,
            elapsed=lambda: self.elapsed,
        )
        self.daemon.start(self.stack)
        self.stack.callback(self._let_run_end)
        return self.daemon

    def _listen(self) -> None:
        self._address = self.store.path / "notify.sock"
        self._address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._address))
        self.stack.callback(self._socket.close)

    def heard(self) -> list[str]:
        """Return all that the service manager has been told so far."""
        while True:
            try:
                self.told.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return self.told

    def _let_run_end(self) -> None:
        self.daemon._runner.stop()
        self.until(lambda: self.daemon._runner.running is None)

    def put(self, message: Message) -> None:
        self.daemon.inbox.put(message)

    def step(self) -> bool:
        """Let the daemon act on one message, if there is one, and on what is due."""
        self.heard()
        return self.daemon.step(0.0)

    def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Let the daemon live until something holds; its clock stands still."""
        deadline = monotonic_seconds() + seconds
        while not condition():
            assert monotonic_seconds() < deadline, "the daemon did not come to that"
            self.heard()
            self.daemon.step(0.05)

    def pass_time(self, **span: float) -> None:
        """Let time pass at once, then let the daemon work off what came of it."""
        self.now += timedelta(**span)
        self.elapsed += timedelta(**span).total_seconds()
        self.settle()

    def settle(self) -> None:
        """Let the daemon work until its inbox is empty and no run goes on."""
        for _ in range(3):
            self.step()
        self.until(lambda: self.daemon.inbox.empty() and self.daemon._runner.running is None)
        self.step()

    def reload(self) -> None:
        """Let the daemon read its configuration again (the watch of the file may have a say before)."""
        attempts = self.daemon.status().config_attempts
        self.put(ReloadRequested("SIGHUP"))
        self.until(lambda: self.daemon.status().config_attempts > attempts)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def status(self) -> DaemonStatus:
        told = read_status(StoreAddress.of_file(self.store.path / "jobs.db"))
        assert told is not None
        return told


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Living]:
    with ExitStack() as stack:
        yield Living(JobStore(tmp_path / "store"), stack)
