"""What the HTTP interface works with: a daemon, or, mounted in another program, a job store alone."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from eemtcleanupd.cleanup import Progress, RunRequest, clean
from eemtcleanupd.clock import system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.inbox import Order, RunWanted
from eemtcleanupd.daemon.lifecycle import Daemon
from eemtcleanupd.daemon.overview import overview
from eemtcleanupd.delivery import Delivery
from eemtcleanupd.errors import CleanupError, LockHeldError
from eemtcleanupd.events import Emit, Event, RunReport
from eemtcleanupd.logbook import write_event
from eemtcleanupd.plugins import PluginSet, load
from eemtcleanupd.store.location import Location, daemon_of
from eemtcleanupd.store.lock import Holder

TRIGGER = "api"
_BEAT_LIMIT_SECONDS = 90.0
_DRAIN_SECONDS = 30.0


class Engine(Protocol):
    """Answers in any thread."""

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with where each value came from."""

    @property
    def config(self) -> Config:
        """The configuration in force."""

    @property
    def plugins(self) -> PluginSet:
        """The plugins in force."""

    def run(self, user: str, order: Order) -> None:
        """Start a run; what becomes of it is told to the order."""

    def overview(self) -> dict[str, Any]:
        """Return how everything is."""

    def progress(self) -> dict[str, Any] | None:
        """Return how far the run is that goes on, None when there is none."""

    def is_alive(self) -> bool:
        """Tell whether the scheduler beats."""

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""


class DaemonEngine:
    """A living daemon: whatever is to be done goes through its inbox."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with where each value came from."""
        return self._daemon.loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._daemon.config

    @property
    def plugins(self) -> PluginSet:
        """The plugins in force."""
        return self._daemon.plugins

    def run(self, user: str, order: Order) -> None:
        """Start a run."""
        self._daemon.inbox.put(RunWanted(TRIGGER, user, order))

    def overview(self) -> dict[str, Any]:
        """Return how everything is."""
        told = self._daemon.status()
        holder = daemon_of(self._daemon.location) or Holder(told.pid, "", "")
        return overview(self.config, holder, told)

    def progress(self) -> dict[str, Any] | None:
        """Return how far the run is."""
        run = self._daemon.status().run
        if run is None:
            return None
        return {
            "trigger": run.trigger,
            "started_at": run.started_at.isoformat(),
            "jobs_done": run.jobs_done,
            "jobs_total": run.jobs_total,
            "bytes_freed": run.bytes_freed,
        }

    def is_alive(self) -> bool:
        """Tell whether the loop went round lately."""
        return self._daemon.seconds_since_beat() < _BEAT_LIMIT_SECONDS

    def exposition(self) -> bytes:
        """Return the metrics."""
        plugin = self.plugins.plugin("prometheus")
        return b"" if plugin is None else bytes(plugin.exposition())


class LocalEngine:
    """A job store without a daemon; each run goes on in a thread of its own.

    Args:
        file: the configuration, read again when it changes.
        environ: the environment.
    """

    def __init__(self, file: Path, environ: dict[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._lock = threading.Lock()
        self._running: tuple[Progress, str] | None = None
        self._read()

    def _read(self) -> Loaded:
        stamp = self._file.stat().st_mtime_ns
        self._stamp = stamp
        self._loaded = load(self._file, environ=self._environ, cwd=self._file.parent)
        self._plugins = PluginSet(self._loaded.config)
        return self._loaded

    @property
    def loaded(self) -> Loaded:
        """The configuration as the file has it; one that is wrong changes nothing."""
        with self._lock:
            with suppress(OSError, CleanupError):
                if self._file.stat().st_mtime_ns != self._stamp:
                    self._read()
            return self._loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.loaded.config

    @property
    def plugins(self) -> PluginSet:
        """The plugins of the configuration."""
        return self._plugins

    def run(self, user: str, order: Order) -> None:
        """Start a run."""
        with self._lock:
            if self._running is not None:
                order.done(LockHeldError("another run is going on; see its progress, and try again then"))
                return
            progress = Progress()
            self._running = (progress, system_clock().isoformat())
        threading.Thread(target=self._run, args=(user, order, progress), name="run (api)").start()

    def _run(self, user: str, order: Order, progress: Progress) -> None:
        result: RunReport | CleanupError | None = None
        try:
            config = self.config.with_retention(*order.retention)
            delivery = Delivery(Location.of(config), system_clock)
            delivery.use(self._plugins, durable=not config.dry_run)
            try:
                result = clean(
                    config,
                    RunRequest(user=user, trigger=TRIGGER, dry_run=config.dry_run, force=order.force),
                    emit=_all(write_event, delivery.tell, order.emit),
                    progress=progress,
                    guards=self._plugins,
                )
            finally:
                delivery.drain(_DRAIN_SECONDS)
                delivery.close()
        except CleanupError as error:
            result = error
        finally:
            with self._lock:
                self._running = None
            order.done(result)

    def overview(self) -> dict[str, Any]:
        """Return how everything is."""
        return overview(self.config, daemon_of(Location.of(self.config)), None)

    def progress(self) -> dict[str, Any] | None:
        """Return how far the run is."""
        running = self._running
        if running is None:
            return None
        progress, since = running
        return {
            "trigger": TRIGGER,
            "started_at": since,
            "jobs_done": progress.jobs_done,
            "jobs_total": progress.jobs_total,
            "bytes_freed": 0 if progress.pool is None else progress.pool.bytes_freed,
        }

    def is_alive(self) -> bool:
        """Return true: there is no scheduler."""
        return True

    def exposition(self) -> bytes:
        """Return nothing: there is no daemon to count."""
        return b""


def _all(*listeners: Emit) -> Emit:
    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit
