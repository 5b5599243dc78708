"""The daemon's life: one thread that takes one message at a time out of its inbox.

Signals, timers, the watcher of the file and the end of a run only put something there, so nothing here needs
a lock, and a test can put the same messages there and look what comes of them.
"""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from eemtcleanupd import __version__
from eemtcleanupd.cleanup.ballast import release_initial_ballast
from eemtcleanupd.cleanup.session import check_store
from eemtcleanupd.clock import Clock, elapsed_seconds, system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.config_reload import ConfigManager, Debouncer, FileWatch
from eemtcleanupd.daemon.leader_election import LeaderElection
from eemtcleanupd.daemon.messages import (
    CheckConfigFile,
    CheckPressure,
    CheckTrash,
    ConfigFileChanged,
    DumpThreads,
    Message,
    ReloadRequested,
    RoleChanged,
    RunEnded,
    RunRequested,
    StopRequested,
    TakeStorageSample,
    Wakeup,
)
from eemtcleanupd.daemon.runner import Runner
from eemtcleanupd.daemon.scheduler import USER, RunScheduler
from eemtcleanupd.daemon.status import BEAT_SECONDS, DaemonStatus, StatusFile
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.daemon.systemd import SystemdNotifier
from eemtcleanupd.daemon.timers import Timers, explain, interval_schedule
from eemtcleanupd.delivery import Dispatcher
from eemtcleanupd.errors import AuditError, ConfigError, LockHeldError
from eemtcleanupd.events import (
    AuditEntry,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    Emit,
    Event,
    RunFinished,
)
from eemtcleanupd.logs.setup import LogFile, log, log_threads
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import daemon_lock

_DRAIN_SECONDS = 10.0
_RUN_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 30.0


class Interface(Protocol):
    """Where a daemon listens to others; what it is asked comes into the inbox."""

    def prepare(self, daemon: Daemon, loaded: Loaded) -> Callable[[], None]:
        """Do what can fail with a configuration; returns what then puts it in force.

        Raises:
            ConfigError: it cannot listen as the configuration says.
        """

    def close(self) -> None:
        """Stop listening."""


class Daemon:
    """A daemon for one job store.

    Args:
        configuration: the configuration in force.
        service: the service manager that is told.
        clock: the time of day.
        interface: where others can ask it things over the network.
        elapsed: seconds that really passed.
        emit: is told of every event of the daemon and of its runs, in the thread where it happens.
    """

    def __init__(
        self,
        configuration: ConfigManager,
        *,
        emit: Emit,
        service: SystemdNotifier,
        interface: Interface | None = None,
        clock: Clock = system_clock,
        elapsed: Callable[[], float] = elapsed_seconds,
    ) -> None:
        self._interface = interface
        self._beat_at = elapsed()
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._configuration = configuration
        self._listener = emit
        self._plugins = Plugins(self.config)
        self._delivery = Dispatcher(self.location, clock)
        self._leadership = LeaderElection(
            self.location, self.config.ha.takeover_seconds, self.inbox.put, clock
        )
        self._service = service
        self._clock = clock
        self._elapsed = elapsed
        self._runner = Runner(self.inbox.put, self._emit, clock)
        self._triggers = Timers(clock, elapsed)
        self._storage = StoreQueries(clock)
        self._started_at = clock()
        self._settling = Debouncer(configuration, elapsed)
        self._agenda = RunScheduler(
            configuration,
            self._leadership,
            self._runner,
            self._storage,
            self._triggers,
            put=self.inbox.put,
            emit=self._emit,
            clock=clock,
            elapsed=elapsed,
        )
        self._stopping: str | None = None
        self._log = LogFile()

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with where each value came from."""
        return self._configuration.loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._configuration.loaded.config

    @property
    def location(self) -> StoreAddress:
        """The job database, which stays the same for the daemon's life."""
        return StoreAddress.of(self.config)

    # -- life --------------------------------------------------------------------------------------

    def run_forever(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start, work until asked to stop, and stop in order.

        Raises:
            ConfigError, StoreError, RootError, LockHeldError: it could not start; nothing was changed.
        """
        with ExitStack() as stack:
            self.start(stack)
            on_ready()
            while self.step(self._wait_seconds()):
                pass

    def start(self, stack: ExitStack) -> None:
        """Take the lock, look at the job store, and begin to listen; ``stack`` undoes it all in order."""
        told = release_initial_ballast(self.config)
        self._log.open(self.config)
        stack.callback(self._log.close)
        if told:
            log.warning("%s", told)
        stack.enter_context(daemon_lock(self.location, self._clock()))
        check_store(self.config)
        stack.callback(self._leadership.close)
        self._leadership.begin()
        self._audit("daemon_started", pid=os.getpid(), host=socket.gethostname())
        stack.callback(self._end_delivery)
        self._delivery.configure(self._plugins, durable=not self.config.dry_run)
        if self._interface is not None:
            begin = self._interface.prepare(self, self.loaded)
            stack.callback(self._interface.close)
            begin()
        self._status_file = StatusFile(self.location)
        stack.callback(self._status_file.remove)
        if self._configuration.file is not None:
            stack.callback(FileWatch(self._configuration.file, self.inbox.put).close)
        self._set_timers()
        self._tell_warnings(self._configuration.loaded)
        totals, last_success = self._storage.totals(self.config)
        self._emit(
            DaemonStarted(
                os.getpid(), socket.gethostname(), self._triggers.next_cleanup(), totals, last_success
            )
        )
        self._service.ready()
        self._publish_status()

    def step(self, wait_seconds: float) -> bool:
        """Wait for a message at most so long, act on it, and call what is due; False when life is over."""
        try:
            message = self.inbox.get(timeout=wait_seconds)
        except queue.Empty:
            pass
        else:
            if not isinstance(message, Wakeup):  # what it was for has been put here as well
                self._handle(message)
        if self._stopping is None:
            self._triggers.run_pending()
            if self._settling.is_over():
                self._reload("its file changed")
            self._agenda.start_pending_run(self._plugins)
        self._service.watchdog()
        self._beat_at = self._elapsed()
        self._publish_status()
        return self._stopping is None or self._runner.running is not None

    def _wait_seconds(self) -> float:
        """Return how long to wait for a message; never long, since the machine may sleep meanwhile."""
        waits = [_LONGEST_WAIT_SECONDS, self._triggers.seconds_to_next()]
        waits += [
            seconds
            for seconds in (self._settling.seconds_left(), self._agenda.seconds_to_start())
            if seconds is not None
        ]
        if self._runner.running is not None:
            waits.append(_RUN_WAIT_SECONDS)
        if self._service.watchdog_seconds is not None:
            waits.append(self._service.watchdog_seconds / 3)
        return max(0.0, min(waits))

    def _set_timers(self) -> None:
        put, triggers = self.inbox.put, self._triggers
        triggers.add(interval_schedule(timedelta(seconds=BEAT_SECONDS)), lambda: put(CheckConfigFile()))
        triggers.add(interval_schedule(timedelta(minutes=1)), lambda: put(CheckPressure()))
        triggers.add(interval_schedule(timedelta(minutes=5)), lambda: put(CheckTrash()))
        triggers.add(interval_schedule(timedelta(hours=1)), lambda: put(TakeStorageSample()))
        self._agenda.apply_schedule()
        if self._leadership.is_active:
            self._agenda.resume()
        else:
            log.warning("This daemon stands by: %s is active", self._leadership.active or "another one")

    # -- messages ----------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:  # noqa: C901  (one case for each message)
        match message:
            case StopRequested():
                self._stop(message.reason)
            case RunEnded():
                self._agenda.run_ended(message)
            case DumpThreads():
                log_threads()
            case _ if self._stopping is not None:  # too late for anything else
                if isinstance(message, RunRequested) and message.order is not None:
                    message.order.done(LockHeldError("the daemon is on its way out"))
            case ReloadRequested():
                self._reload(message.reason)
            case ConfigFileChanged():
                self._settling.begin()
            case CheckConfigFile():
                if self._configuration.has_changed():
                    self._settling.begin()
            case RoleChanged():
                self._change_role(message)
            case RunRequested():
                self._agenda.request_run(message)
            case TakeStorageSample() | CheckPressure() | CheckTrash() if not self._leadership.is_active:
                pass  # the active daemon looks
            case CheckTrash():
                self._agenda.check_trash()
            case TakeStorageSample():
                passed = self._storage.sample(self.config)
                if passed is not None:
                    self._emit(passed)
            case CheckPressure():
                self._agenda.check_pressure()

    def _stop(self, reason: str) -> None:
        if self._stopping is None:
            self._stopping = reason
            self._runner.stop()  # first: to write down anything may have to wait for a busy disk
            self._service.stopping()
            self._emit(DaemonStopping(reason))
            self._audit_if_possible("daemon_stopping", reason=reason)

    def _change_role(self, change: RoleChanged) -> None:
        """Clean from now on, or leave it to another."""
        if change.is_active:
            log.warning("This daemon is active now: %s", change.reason)
            self._agenda.become_active()
        else:
            log.warning("This daemon stands by now: %s", change.reason)
            self._agenda.become_standby()
        role = "active" if change.is_active else "standby"
        self._audit_if_possible("role_changed", role=role, host=socket.gethostname(), reason=change.reason)

    # -- what others ask, in threads of theirs --------------------------------------------------------

    @property
    def plugins(self) -> Plugins:
        """The plugins in force."""
        return self._plugins

    def seconds_since_heartbeat(self) -> float:
        """Return how long ago the loop went round."""
        return self._elapsed() - self._beat_at

    # -- configuration -----------------------------------------------------------------------------

    def _reload(self, reason: str) -> None:
        self._service.reloading()
        file = str(self._configuration.file or "none")
        try:
            loaded = self._configuration.reload(self._prepare)
        except ConfigError as error:
            self._emit(ConfigRejected(file, reason, str(error)))
            self._audit_if_possible("config_rejected", file=file, reason=reason, error=str(error))
        else:
            self._runner.apply_limits(loaded.config)
            self._agenda.apply_schedule()
            self._tell_warnings(loaded)
            self._delivery.configure(self._plugins, durable=not loaded.config.dry_run)
            self._emit(ConfigReloaded(file, reason))
            self._audit_if_possible("config_reloaded", file=file, reason=reason)
        self._service.ready()

    def _prepare(self, loaded: Loaded) -> None:
        """Do what can fail with a new configuration: find its plugins, open its log."""
        plugins = Plugins(loaded.config, before=self._plugins)
        listen = None if self._interface is None else self._interface.prepare(self, loaded)
        self._log.open(loaded.config)
        self._plugins = plugins
        if listen is not None:
            listen()

    # -- telling -----------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        """Tell an event to the log and to the notifiers, in the thread where it happens."""
        if isinstance(event, RunFinished):
            event = RunFinished(replace(event.report, next_run_at=self._triggers.next_cleanup()))
        self._listener(event)
        self._delivery.publish(event)

    def _end_delivery(self) -> None:
        if not self._delivery.drain(_DRAIN_SECONDS):
            log.warning("Not all notifiers were reached; they are told after the next start")
        self._delivery.close()

    def _audit(self, action: str, **details: object) -> None:
        if not self.config.dry_run:
            self._plugins.audit([AuditEntry(self._clock(), USER, action, details)])

    def _audit_if_possible(self, action: str, **details: object) -> None:
        try:
            self._audit(action, **details)
        except AuditError as error:
            log.error("%s", error)

    def _tell_warnings(self, loaded: Loaded) -> None:
        for warning in loaded.warnings:
            log.warning("%s", warning)
        if not loaded.config.schedule.enabled:
            log.warning("schedule.enabled is false: nothing is cleaned by itself")

    def status(self) -> DaemonStatus:
        """Return the daemon's state."""
        running, state, config = self._runner.running, self._configuration.state, self.config
        file = self._configuration.file
        return DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            state=self._status(is_running=running is not None),
            started_at=self._started_at,
            heartbeat_at=self._clock(),
            next_run_at=self._triggers.next_cleanup(),
            schedule=explain(config.schedule.cron) if config.schedule.enabled else None,
            dry_run=config.dry_run,
            run=None if running is None else running.status(),
            config_file=None if file is None else str(file),
            config_loaded_at=state.loaded_at,
            config_attempts=state.attempts,
            config_attempted_at=state.attempted_at,
            config_error=state.error,
            last_error=self._agenda.last_error,
            unresponsive=tuple(self._delivery.unresponsive()),
            role="active" if self._leadership.is_active else "standby",
            active=None if self._leadership.active is None else str(self._leadership.active),
        )

    def _status(self, *, is_running: bool) -> str:
        if self._stopping:
            return "stopping"
        if is_running:
            return "running"
        return "idle" if self._leadership.is_active else "standby"

    def _publish_status(self) -> None:
        status = self.status()
        self._service.status(status.summary())
        self._status_file.write(status)
