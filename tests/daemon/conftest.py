"""A daemon inside the test's process, with a clock and an inbox that the test controls."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.config_reload import ConfigManager
from eemtcleanupd.daemon.daemon import Daemon, Interface
from eemtcleanupd.daemon.messages import Message, ReloadRequested
from eemtcleanupd.daemon.runner import ActiveRun
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
class DaemonHarness:
    """A daemon on a job store with a configuration file."""

    store: JobStore
    stack: ExitStack
    now: datetime = NOW
    elapsed: float = 0.0
    events: list[Event] = field(default_factory=list)
    notifications: list[str] = field(default_factory=list)
    """What the service manager has received."""

    @property
    def file(self) -> Path:
        return self.store.path / "cleanup_config.yaml"

    @property
    def config(self) -> Config:
        return self.daemon.config

    @property
    def inbox(self) -> queue.SimpleQueue[Message]:
        return self.daemon.inbox

    @property
    def active_run(self) -> ActiveRun | None:
        return self.daemon.active_run

    def write(self, text: str) -> None:
        self.file.write_text(HEAD + text, encoding="utf-8")

    def start(
        self, text: str = "", environ: dict[str, str] | None = None, interface: Interface | None = None
    ) -> Daemon:
        if text or not self.file.exists():
            self.write(text)

        def read() -> Loaded:
            return load(self.file, environ={}, options={}, cwd=self.store.path)

        self._listen()
        systemd = SystemdNotifier({"NOTIFY_SOCKET": str(self._address), **(environ or {})})
        self.stack.callback(systemd.close)
        self.daemon = Daemon(
            ConfigManager(read, lambda: self.now),
            emit=self.events.append,
            systemd=systemd,
            interface=interface,
            clock=lambda: self.now,
            elapsed=lambda: self.elapsed,
        )
        self.daemon.start(self.stack)
        self.stack.callback(self._stop_run)
        return self.daemon

    def _listen(self) -> None:
        self._address = self.store.path / "notify.sock"
        self._address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self._address))
        self.stack.callback(self._socket.close)

    def systemd_notifications(self) -> list[str]:
        """Return all that the service manager has received so far."""
        while True:
            try:
                self.notifications.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return self.notifications

    def _stop_run(self) -> None:
        if self.active_run is not None:
            self.active_run.stop.set()
        self.until(lambda: self.active_run is None)

    def put(self, message: Message) -> None:
        self.inbox.put(message)

    def step(self) -> bool:
        """Let the daemon handle one message, if there is one, and do what is due."""
        self.systemd_notifications()
        return self.daemon.step(0.0)

    def seconds_to_wait(self) -> float:
        """Return how long the daemon would wait for a message."""
        return self.daemon.seconds_to_wait()

    def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Let the daemon work until a condition holds; its clock stands still."""
        deadline = monotonic_seconds() + seconds
        while not condition():
            assert monotonic_seconds() < deadline, "the condition was not met in time"
            self.systemd_notifications()
            self.daemon.step(0.05)

    def pass_time(self, **span: float) -> None:
        """Advance the clock at once, then let the daemon do what has become due."""
        self.now += timedelta(**span)
        self.elapsed += timedelta(**span).total_seconds()
        self.settle()

    def settle(self) -> None:
        """Let the daemon work until its inbox is empty and no run is active."""
        for _ in range(3):
            self.step()
        self.until(lambda: self.inbox.empty() and self.active_run is None)
        self.step()

    def reload(self) -> None:
        """Let the daemon reload its configuration; the file watch might do so first."""
        attempts = self.daemon.status().config_attempts
        self.put(ReloadRequested("SIGHUP"))
        self.until(lambda: self.daemon.status().config_attempts > attempts)

    def events_of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def status(self) -> DaemonStatus:
        """Return the status that the daemon has published."""
        status = read_status(StoreAddress.of_file(self.store.path / "jobs.db"))
        assert status is not None
        return status


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonHarness]:
    with ExitStack() as stack:
        yield DaemonHarness(JobStore(tmp_path / "store"), stack)
