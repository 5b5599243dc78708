"""The daemon's event loop: what happens at start, on each message, and at stop.

One thread takes one message at a time from the inbox.  Signals, timers, the file watch, the API and the run's
thread only put messages there.  The code here therefore needs no lock, and a test can put the same messages.
Only what other threads call is an exception: see "for other threads".
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Protocol

from eemtcleanupd import __version__
from eemtcleanupd.cleanup.context import RunRequest
from eemtcleanupd.cleanup.session import check_store
from eemtcleanupd.clock import Clock, elapsed_seconds, system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon import messages
from eemtcleanupd.daemon.config_reload import ConfigManager, Debouncer, FileWatch
from eemtcleanupd.daemon.leader_election import LeaderElection
from eemtcleanupd.daemon.messages import Message, Notice
from eemtcleanupd.daemon.runner import ActiveRun, Runner
from eemtcleanupd.daemon.scheduler import USER, RunScheduler
from eemtcleanupd.daemon.status import BEAT_SECONDS, PROGRESS_SECONDS, DaemonStatus, StatusFile
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.daemon.systemd import SystemdNotifier
from eemtcleanupd.daemon.timers import Timers, explain, interval_schedule
from eemtcleanupd.deletion.ballast import release_initial_ballast
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
    RunFailed,
    RunFinished,
)
from eemtcleanupd.formatting import printable
from eemtcleanupd.logs import LogFile, log, log_threads
from eemtcleanupd.plugins import Plugins
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.lock import daemon_lock

_DRAIN_SECONDS = 10.0
_IS_STOPPING = "The daemon is stopping. Try again when it has restarted."
_LONGEST_WAIT_SECONDS = 30.0  # not longer, since the machine can be suspended meanwhile


class Interface(Protocol):
    """A network interface of the daemon; it puts the requests of its clients into the inbox."""

    def prepare(self, daemon: Daemon, loaded: Loaded) -> Callable[[], None]:
        """Do everything that can fail with a configuration; return a function that puts it in force.

        Raises:
            ConfigError: it cannot listen as configured.
        """

    def close(self) -> None:
        """Stop listening."""


class Daemon:
    """A daemon for one job store.

    ``emit`` receives every event of the daemon and of its runs, in the thread where it occurs.  ``clock``
    returns the time of day, ``elapsed`` monotonic seconds.
    """

    def __init__(
        self,
        config_manager: ConfigManager,
        *,
        emit: Emit,
        systemd: SystemdNotifier,
        interface: Interface | None = None,
        clock: Clock = system_clock,
        elapsed: Callable[[], float] = elapsed_seconds,
        inbox: queue.SimpleQueue[Message] | None = None,
    ) -> None:
        self._config_manager = config_manager
        self._write_event = emit
        self._systemd = systemd
        self._interface = interface
        self._clock = clock
        self._elapsed = elapsed
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue() if inbox is None else inbox
        put = self.inbox.put
        self._address = StoreAddress.of(self.config)  # stays the same for the daemon's life
        self._log_file = LogFile()
        self.plugins = Plugins(self.config)
        self._dispatcher = Dispatcher(self._address, clock)
        self._election = LeaderElection(self._address, self.config.ha.takeover_seconds, put, clock)
        self._runner = Runner(put, self._emit, clock, self._record_refusal)
        self._timers = Timers(clock, elapsed)
        self._queries = StoreQueries(clock)
        self._debouncer = Debouncer(config_manager, elapsed)
        self._scheduler = RunScheduler(
            config_manager,
            self._election,
            self._runner,
            self._queries,
            self._timers,
            put=put,
            emit=self._emit,
            clock=clock,
            elapsed=elapsed,
        )
        self._started_at = clock()
        self._heartbeat_at = elapsed()
        self._stop_reason: str | None = None
        self._metrics_lock = threading.Lock()

    # -- for other threads ---------------------------------------------------------------------------

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with the origin of each value."""
        return self._config_manager.loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config_manager.config

    @property
    def active_run(self) -> ActiveRun | None:
        """The run in progress, if any."""
        return self._runner.active_run

    def seconds_since_heartbeat(self) -> float:
        """Return the seconds since the loop last completed a step."""
        return self._elapsed() - self._heartbeat_at

    def metrics(self) -> bytes:
        """Return all metrics as text: the ledger's as they are now, since commands clean too."""
        prometheus = self.plugins.plugin("prometheus")
        if prometheus is None:
            return b""
        if self._metrics_lock.acquire(blocking=False):  # one query at a time, also of a database that hangs
            try:
                if (values := self._queries.metrics(self.config)) is not None:
                    prometheus.update(*values)
            finally:
                self._metrics_lock.release()
        prometheus.next_run_at = self._timers.next_cleanup()
        exposition: bytes = prometheus.exposition()
        return exposition

    # -- life ----------------------------------------------------------------------------------------

    def run_forever(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start (see ``start``), handle messages until asked to stop, and stop in order."""
        with ExitStack() as stack:
            self.start(stack)
            on_ready()
            while self.step(self.seconds_to_wait()):
                pass

    def start(self, stack: ExitStack) -> None:
        """Start each part; ``stack`` stops them in reverse order, and also after a failed start.

        Raises:
            ConfigError, StoreError, RootError, LockHeldError, AuditError: it could not start.
        """
        self._open_log(stack)
        stack.enter_context(daemon_lock(self._address, self._clock()))
        check_store(self.config)
        stack.callback(self._election.close)
        self._election.begin()
        stack.callback(self._stop_notifiers)
        self._dispatcher.configure(self.plugins, durable=not self.config.dry_run)
        if self._interface is not None:
            listen = self._interface.prepare(self, self.loaded)
            stack.callback(self._interface.close)
            listen()
        self._status_file = StatusFile(self._address)
        stack.callback(self._status_file.remove)
        if self.loaded.file is not None:
            stack.callback(FileWatch(self.loaded.file, self.inbox.put).close)
        self._audit("daemon_started", pid=os.getpid(), host=socket.gethostname())
        # From here on nothing can fail.
        self._start_timers()
        self._resume_work()
        self._log_warnings(self.loaded)
        self._announce_start()

    def step(self, wait_seconds: float) -> bool:
        """Wait for one message and handle it, then do what is due; return False after the last step."""
        try:
            message = self.inbox.get(timeout=wait_seconds)
        except queue.Empty:
            pass
        else:
            self._handle(message)
        if self._stop_reason is None:
            self._timers.run_pending()
            if self._debouncer.is_over():
                self._reload("its file changed")
            self._scheduler.start_pending_run(self.plugins)
        self._systemd.watchdog()
        self._heartbeat_at = self._elapsed()
        self._publish_status()
        return self._stop_reason is None or self.active_run is not None

    def seconds_to_wait(self) -> float:
        """Return how long ``step`` may wait for a message before something else is due."""
        waits = [
            _LONGEST_WAIT_SECONDS,
            self._timers.seconds_to_next(),
            self._debouncer.seconds_left(),
            self._scheduler.seconds_to_start(),
            None if self.active_run is None else PROGRESS_SECONDS,
            None if self._systemd.watchdog_seconds is None else self._systemd.watchdog_seconds / 3,
        ]
        return max(0.0, min(seconds for seconds in waits if seconds is not None))

    # -- start ---------------------------------------------------------------------------------------

    def _open_log(self, stack: ExitStack) -> None:
        ballast_message = release_initial_ballast(self.config)  # first: the log needs room on the disk
        self._log_file.open(self.config)
        stack.callback(self._log_file.close)
        if ballast_message:
            log.warning("%s", ballast_message)

    def _start_timers(self) -> None:
        for notice, interval in (
            (Notice.CHECK_CONFIG_FILE, timedelta(seconds=BEAT_SECONDS)),
            (Notice.CHECK_PRESSURE, timedelta(minutes=1)),
            (Notice.CHECK_TRASH, timedelta(minutes=5)),
            (Notice.TAKE_STORAGE_SAMPLE, timedelta(hours=1)),
        ):
            self._timers.add(interval_schedule(interval), partial(self.inbox.put, notice))
        self._scheduler.apply_schedule()

    def _resume_work(self) -> None:
        if self._election.is_active:
            self._scheduler.resume()
        else:
            active = self._election.active_daemon or "another daemon"
            log.warning("This daemon is the standby. The active daemon: %s", active)

    def _announce_start(self) -> None:
        totals, last_success = self._queries.totals(self.config)
        next_run = self._timers.next_cleanup()
        self._emit(DaemonStarted(os.getpid(), socket.gethostname(), next_run, totals, last_success))
        self._systemd.ready()
        self._publish_status()

    # -- messages ------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> None:  # noqa: C901  (one case for each message)
        is_active = self._election.is_active
        match message:
            case messages.StopRequested():
                self._request_stop(message.reason)
            case messages.RunEnded():
                self._scheduler.run_ended(message)
            case Notice.DUMP_THREADS:
                log_threads()
            case Notice.WAKEUP:
                pass  # the message that it announces is in the inbox
            case _ if self._stop_reason is not None:
                self._refuse(message)
            case messages.ReloadRequested():  # SIGHUP, among others
                self._reload(message.reason)
            case Notice.CONFIG_FILE_CHANGED:
                self._debouncer.begin()
            case Notice.CHECK_CONFIG_FILE:
                if self._config_manager.has_changed():
                    self._debouncer.begin()
            case messages.RoleChanged():
                self._change_role(message)
            case messages.RunRequested():
                self._scheduler.request_run(message)
            case messages.RunStopRequested():
                if self._runner.stop(message.run_id):
                    log.warning("User %s stops the run in progress", printable(message.user))
            case Notice.CHECK_TRASH if is_active:
                self._scheduler.check_error()
                self._scheduler.check_trash()
            case Notice.CHECK_PRESSURE if is_active:
                self._scheduler.check_pressure()
            case Notice.TAKE_STORAGE_SAMPLE if is_active:
                if (warning := self._queries.sample(self.config)) is not None:
                    self._emit(warning)
                self._queries.anchor_audit(self.config, self.plugins)

    def _refuse(self, message: Message) -> None:
        """Ignore a message that came after the request to stop; tell a client that waits for a run."""
        if isinstance(message, messages.RunRequested) and message.callbacks is not None:
            message.callbacks.done(LockHeldError(_IS_STOPPING))

    def _change_role(self, change: messages.RoleChanged) -> None:
        if change.is_active:
            log.warning("This daemon is now the active one: %s", change.reason)
            self._scheduler.become_active()
        else:
            log.warning("This daemon is now the standby: %s", change.reason)
            self._scheduler.become_standby()
        role = "active" if change.is_active else "standby"
        self._try_audit("role_changed", role=role, host=socket.gethostname(), reason=change.reason)

    # -- reload --------------------------------------------------------------------------------------

    def _reload(self, reason: str) -> None:
        self._systemd.reloading()
        file = str(self.loaded.file or "none")
        try:
            loaded = self._config_manager.reload(self._prepare)
        except ConfigError as error:
            self._emit(ConfigRejected(file, reason, str(error)))
            self._try_audit("config_rejected", file=file, reason=reason, error=str(error))
        else:
            self._runner.apply_limits(loaded.config)
            self._scheduler.apply_schedule()
            self._log_warnings(loaded)
            self._dispatcher.configure(self.plugins, durable=not loaded.config.dry_run)
            self._emit(ConfigReloaded(file, reason))
            self._try_audit("config_reloaded", file=file, reason=reason)
        self._systemd.ready()

    def _prepare(self, loaded: Loaded) -> None:
        """Do everything that can fail with a new configuration: find its plugins, listen, open its log."""
        plugins = Plugins(loaded.config, before=self.plugins)
        listen = None if self._interface is None else self._interface.prepare(self, loaded)
        self._log_file.open(loaded.config)
        # From here on nothing can fail.
        self.plugins = plugins
        if listen is not None:
            listen()

    def _log_warnings(self, loaded: Loaded) -> None:
        for warning in loaded.warnings:
            log.warning("%s", warning)
        if not loaded.config.schedule.enabled:
            log.warning("The schedule is off (schedule.enabled), so no run starts at a fixed time.")

    # -- stop ----------------------------------------------------------------------------------------

    def _request_stop(self, reason: str) -> None:
        """Stop the run; the loop ends when the run has ended, and ``start``'s stack stops the rest."""
        if self._stop_reason is None:
            self._stop_reason = reason
            self._runner.stop()  # first: the records below might have to wait for a busy disk
            self._scheduler.drop_pending(_IS_STOPPING)
            self._systemd.stopping()
            self._emit(DaemonStopping(reason))
            self._try_audit("daemon_stopping", reason=reason)

    def _stop_notifiers(self) -> None:
        if not self._dispatcher.drain(_DRAIN_SECONDS):
            log.warning("Some notifications are not delivered yet. They are sent after the next start.")
        self._dispatcher.close()

    # -- events, audit and status --------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        """Send an event to the log and to the notifiers, in the thread where it occurs."""
        if isinstance(event, RunFinished):
            event = RunFinished(replace(event.report, next_run_at=self._timers.next_cleanup()))
        elif isinstance(event, RunFailed | ConfigReloaded):
            event = replace(event, next_run_at=self._timers.next_cleanup())
        self._write_event(event)
        self._dispatcher.publish(event)

    def _record_refusal(self, failed: RunFailed, request: RunRequest) -> None:
        self._queries.record_refusal(self.config, failed, request.user)

    def _audit(self, action: str, **details: object) -> None:
        if not self.config.dry_run:
            self.plugins.audit([AuditEntry(self._clock(), USER, action, details)])

    def _try_audit(self, action: str, **details: object) -> None:
        try:
            self._audit(action, **details)
        except AuditError as error:
            log.error("%s", error)

    def _publish_status(self) -> None:
        status = self.status()
        self._systemd.status(status.summary())
        self._status_file.write(status)

    def status(self) -> DaemonStatus:
        """Return the daemon's state."""
        run, election, config = self.active_run, self._election, self.config
        file, reload = self.loaded.file, self._config_manager.state
        idle_state = "idle" if election.is_active else "standby"
        return DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            state="stopping" if self._stop_reason else "running" if run is not None else idle_state,
            started_at=self._started_at,
            heartbeat_at=self._clock(),
            next_run_at=self._timers.next_cleanup(),
            schedule=explain(config.schedule.cron) if config.schedule.enabled else None,
            dry_run=config.dry_run,
            run=None if run is None else run.status(),
            config_file=None if file is None else str(file),
            config_loaded_at=reload.loaded_at,
            config_attempts=reload.attempts,
            config_attempted_at=reload.attempted_at,
            config_error=reload.error,
            last_error=self._scheduler.last_error,
            last_error_at=self._scheduler.last_error_at,
            unresponsive=tuple(self._dispatcher.unresponsive()),
            role="active" if election.is_active else "standby",
            active=None if election.active_daemon is None else str(election.active_daemon),
        )
