"""The daemon's life: one thread that takes one message at a time out of its inbox.

Signals, timers, the watcher of the file and the end of a run only put something there, so nothing here needs
a lock, and a test can put the same messages there and look what comes of them.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from eemtcleanupd import __version__
from eemtcleanupd.cleanup import RunRequest
from eemtcleanupd.cleanup.preflight import check_store
from eemtcleanupd.clock import Clock, elapsed_seconds, system_clock
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.configuration import Configuration, FileWatch
from eemtcleanupd.daemon.inbox import (
    DumpThreads,
    FileDue,
    FileTouched,
    Message,
    PressureDue,
    Reload,
    RoleChanged,
    RunEnded,
    RunWanted,
    SampleDue,
    Stop,
    TrashDue,
    Woken,
)
from eemtcleanupd.daemon.leadership import Leadership
from eemtcleanupd.daemon.runs import Runner
from eemtcleanupd.daemon.service import ServiceManager
from eemtcleanupd.daemon.status import BEAT_SECONDS, DaemonStatus, RunStatus, StatusFile
from eemtcleanupd.daemon.storage import Storage
from eemtcleanupd.daemon.triggers import Triggers, every, explain
from eemtcleanupd.delivery import Delivery
from eemtcleanupd.errors import AuditError, ConfigError, LockHeldError
from eemtcleanupd.events import (
    AuditEntry,
    ConfigRejected,
    ConfigReloaded,
    DaemonStarted,
    DaemonStopping,
    DiskPressure,
    Emit,
    Event,
    RunFinished,
    RunReport,
)
from eemtcleanupd.logbook import log, log_to_file
from eemtcleanupd.plugins import PluginSet
from eemtcleanupd.policy.pressure import Pressure
from eemtcleanupd.store.location import Location, daemon_lock
from eemtcleanupd.store.runs import TRASH_TRIGGER

USER = "auto_cleanup"
"""Who is recorded for what the daemon does by itself (the user's document, Audit Trail)."""

_SETTLE_SECONDS = 0.5
_DRAIN_SECONDS = 10.0
_RUN_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 300.0
_PRESSURE_PAUSE = timedelta(hours=1)
_OWN_ACCORD = ("schedule", "start", "recovery")


class Interface(Protocol):
    """Where a daemon listens to others; what it is asked comes into the inbox."""

    def prepare(self, daemon: Daemon, config: Config) -> Callable[[], None]:
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
        configuration: Configuration,
        *,
        emit: Emit,
        service: ServiceManager,
        interface: Interface | None = None,
        clock: Clock = system_clock,
        elapsed: Callable[[], float] = elapsed_seconds,
    ) -> None:
        self._interface = interface
        self._beat_at = elapsed()
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._configuration = configuration
        self._listener = emit
        self._plugins = PluginSet(self.config)
        self._delivery = Delivery(self.location, clock)
        self._leadership = Leadership(self.location, self.config.ha.takeover_seconds, self.inbox.put, clock)
        self._active_at = elapsed()
        self._service = service
        self._clock = clock
        self._elapsed = elapsed
        self._runner = Runner(self.inbox.put, self._emit, clock)
        self._triggers = Triggers(clock, elapsed)
        self._storage = Storage(clock)
        self._started_at = clock()
        self._wanted: RunWanted | None = None
        self._not_before = elapsed() + configuration.loaded.config.schedule.start_delay_seconds
        self._settled_at: float | None = None
        self._settling: str | None = None
        self._relieved_at: datetime | None = None
        self._refused: str | None = None
        self._stopping: str | None = None
        self._log: logging.Handler | None = None

    @property
    def loaded(self) -> Loaded:
        """The configuration in force, with where each value came from."""
        return self._configuration.loaded

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._configuration.loaded.config

    @property
    def location(self) -> Location:
        """The job database, which stays the same for the daemon's life."""
        return Location.of(self.config)

    # -- life --------------------------------------------------------------------------------------

    def live(self, on_ready: Callable[[], None] = lambda: None) -> None:
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
        self._open_log(self._configuration.loaded)
        stack.callback(self._close_log)
        stack.enter_context(daemon_lock(self.location, self._clock()))
        check_store(self.config)
        stack.callback(self._leadership.close)
        self._leadership.begin()
        self._audit("daemon_started", pid=os.getpid(), host=socket.gethostname())
        stack.callback(self._end_delivery)
        self._delivery.use(self._plugins, durable=not self.config.dry_run)
        if self._interface is not None:
            begin = self._interface.prepare(self, self.config)
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
        self._show()

    def step(self, wait_seconds: float) -> bool:
        """Wait for a message at most so long, act on it, and call what is due; False when life is over."""
        try:
            message = self.inbox.get(timeout=wait_seconds)
        except queue.Empty:
            pass
        else:
            if not isinstance(message, Woken):  # what it was for has been put here as well
                self._act(message)
        if self._stopping is None:
            self._triggers.call_what_is_due()
            self._look_at_settled_file()
            self._start_what_is_wanted()
        self._service.beat()
        self._beat_at = self._elapsed()
        self._show()
        return self._stopping is None or self._runner.running is not None

    def _wait_seconds(self) -> float:
        """Return how long to wait for a message; never long, since the machine may sleep meanwhile."""
        now = self._elapsed()
        waits = [_LONGEST_WAIT_SECONDS, self._triggers.seconds_to_next()]
        if self._settled_at is not None:
            waits.append(self._settled_at - now)
        if self._wanted is not None and self._runner.running is None:
            waits.append(self._not_before - now)
        if self._runner.running is not None:
            waits.append(_RUN_WAIT_SECONDS)
        if self._service.watchdog_seconds is not None:
            waits.append(self._service.watchdog_seconds / 3)
        return max(0.0, min(waits))

    def _set_timers(self) -> None:
        put, triggers = self.inbox.put, self._triggers
        triggers.add(every(timedelta(seconds=BEAT_SECONDS)), lambda: put(FileDue()))
        triggers.add(every(timedelta(minutes=1)), lambda: put(PressureDue()))
        triggers.add(every(timedelta(minutes=5)), lambda: put(TrashDue()))
        triggers.add(every(timedelta(hours=1)), lambda: put(SampleDue()))
        self._follow_schedule()
        if self._leadership.is_active:
            self._resume()
        else:
            log.warning("This daemon stands by: %s is active", self._leadership.active or "another one")

    def _resume(self) -> None:
        """Make up for what was missed, and go on with what another daemon, or this one, left."""
        put = self.inbox.put
        last = self._storage.last_cleanup(self.config)
        config = self.config.schedule
        catch_up = config.enabled and config.catch_up and not self.config.dry_run
        if catch_up and last is not None and last.began_at is not None:
            self._follow_schedule(since=last.began_at)
        if last is not None and (last.was_killed or (last.was_interrupted and config.catch_up)):
            put(RunWanted("recovery", USER))
        elif config.run_on_start:
            put(RunWanted("start", USER))

    def _follow_schedule(self, since: datetime | None = None) -> None:
        wanted = RunWanted("schedule", USER)
        self._triggers.follow(self.config.schedule, lambda: self.inbox.put(wanted), since=since)

    # -- messages ----------------------------------------------------------------------------------

    def _act(self, message: Message) -> None:  # noqa: C901  (one case for each message)
        match message:
            case Stop():
                self._stop(message.reason)
            case RunEnded():
                self._run_ended(message)
            case DumpThreads():
                log_threads()
            case _ if self._stopping is not None:  # too late for anything else
                if isinstance(message, RunWanted) and message.order is not None:
                    message.order.done(LockHeldError("the daemon is on its way out"))
            case Reload():
                self._reload(message.reason)
            case FileTouched():
                self._settle()
            case FileDue():
                if self._configuration.has_changed():
                    self._settle()
            case RoleChanged():
                self._change_role(message)
            case RunWanted():
                self._want(message)
            case SampleDue() | PressureDue() | TrashDue() if not self._leadership.is_active:
                pass  # the active daemon looks
            case TrashDue():
                if self._is_free() and self._storage.has_expired_trash(self.config):
                    self._want(RunWanted(TRASH_TRIGGER, USER))
            case SampleDue():
                passed = self._storage.sample(self.config)
                if passed is not None:
                    self._emit(passed)
            case PressureDue():
                self._look_at_pressure()

    def _stop(self, reason: str) -> None:
        if self._stopping is None:
            self._stopping = reason
            self._runner.stop()  # first: to write down anything may have to wait for a busy disk
            self._service.stopping()
            self._emit(DaemonStopping(reason))
            self._audit_if_possible("daemon_stopping", reason=reason)

    # -- runs --------------------------------------------------------------------------------------

    def _is_free(self) -> bool:
        return self._runner.running is None and self._wanted is None and not self.config.dry_run

    def _change_role(self, change: RoleChanged) -> None:
        """Clean from now on, or leave it to another; a run that has lost its connection ends by itself."""
        if change.is_active:
            log.warning("This daemon is active now: %s", change.reason)
            self._active_at = self._elapsed()
            self._resume()
        else:
            log.warning("This daemon stands by now: %s", change.reason)
            self._wanted = None
            self._runner.stop()
        role = "active" if change.is_active else "standby"
        self._audit_if_possible("role_changed", role=role, host=socket.gethostname(), reason=change.reason)

    def _want(self, wanted: RunWanted) -> None:
        if not self._leadership.is_active:
            active = self._leadership.active or "another one"
            if wanted.order is not None:
                wanted.order.done(LockHeldError(f"this daemon stands by: ask the active one, {active}"))
            elif wanted.trigger not in _OWN_ACCORD:
                log.warning(
                    "The run for %s does not start: this daemon stands by, %s is active",
                    wanted.trigger,
                    active,
                )
            return
        running = self._runner.running
        busy = running is not None and not running.request.only_trash
        if wanted.order is not None and (
            busy or (self._wanted is not None and self._wanted.order is not None)
        ):
            wanted.order.done(LockHeldError("another run is going on; see its progress, and try again then"))
        elif running is not None and busy:
            log.warning(
                "The run for %s does not start: one that began at %s UTC is still going on",
                wanted.trigger,
                f"{running.started_at:%H:%M:%S}",
            )
        elif self._wanted is None or self._wanted.trigger == TRASH_TRIGGER or wanted.order is not None:
            self._wanted = wanted

    def _start_what_is_wanted(self) -> None:
        wanted = self._wanted
        if wanted is None or self._runner.running is not None:
            return
        if wanted.trigger in _OWN_ACCORD and self._elapsed() < self._not_before:
            return
        self._wanted = None
        pressure, order = self.config.pressure, wanted.order
        self._runner.start(
            self.config if order is None else self.config.with_retention(*order.retention),
            RunRequest(
                user=wanted.user,
                trigger=wanted.trigger,
                dry_run=self.config.dry_run,
                force=order is not None and order.force,
                only_trash=wanted.trigger == TRASH_TRIGGER,
                pressure=Pressure(pressure.low_watermark_percent, timedelta(hours=pressure.minimum_age_hours))
                if wanted.trigger == "pressure"
                else None,
            ),
            self._plugins,
            order,
        )

    def _run_ended(self, ended: RunEnded) -> None:
        self._runner.ended()
        result = ended.result
        if isinstance(result, RunReport):
            self._refused = None
        elif isinstance(result, LockHeldError):
            log.warning("The run for %s did not start: %s", ended.trigger, result)
            since = self._elapsed() - self._active_at
            if self._tries_again(ended.trigger, since):
                # The lock of the run before may outlive its daemon for a moment, or while that is frozen.
                pause = max(self._leadership.pause_seconds, min(since, _LONGEST_PAUSE_SECONDS))
                self._not_before = self._elapsed() + pause
                self.inbox.put(RunWanted(ended.trigger, USER))
        else:
            self._refused = str(result) if result is not None else "it broke off, the log says where"
        if ended.trigger == "pressure":
            self._relieved_at = self._clock()

    def _tries_again(self, trigger: str, active_seconds: float) -> bool:
        """Tell whether a run that met a lock is for this daemon to try again: what was left, until it can."""
        takeover = self.config.ha.takeover_seconds
        if not self._leadership.is_active or not takeover:
            return False
        return trigger == "recovery" or (trigger in _OWN_ACCORD and active_seconds < takeover)

    def _look_at_pressure(self) -> None:
        config = self.config.pressure
        if not config.enabled or not self._is_free():
            return
        usage = self._storage.usage(self.config)
        if usage is None or usage.used_percent < config.high_watermark_percent:
            self._relieved_at = None
            return
        if self._relieved_at is not None and self._clock() - self._relieved_at < _PRESSURE_PAUSE:
            return  # it took all that it may; to look again every minute would change nothing
        self._emit(
            DiskPressure(
                usage.used_percent,
                usage.free_bytes,
                config.high_watermark_percent,
                config.low_watermark_percent,
            )
        )
        self._want(RunWanted("pressure", USER))

    # -- what others ask, in threads of theirs --------------------------------------------------------

    @property
    def plugins(self) -> PluginSet:
        """The plugins in force."""
        return self._plugins

    def seconds_since_beat(self) -> float:
        """Return how long ago the loop went round."""
        return self._elapsed() - self._beat_at

    # -- configuration -----------------------------------------------------------------------------

    def _settle(self) -> None:
        """Wait until the file is the same for a moment: an editor may be halfway through it."""
        self._settling = self._configuration.digest()
        self._settled_at = self._elapsed() + _SETTLE_SECONDS

    def _look_at_settled_file(self) -> None:
        if self._settled_at is None or self._elapsed() < self._settled_at:
            return
        if self._configuration.digest() != self._settling:
            self._settle()
            return
        self._settled_at = None
        if self._configuration.has_changed():
            self._reload("its file changed")

    def _reload(self, reason: str) -> None:
        self._service.reloading()
        file = str(self._configuration.file or "none")
        try:
            loaded = self._configuration.reload(self._prepare)
        except ConfigError as error:
            self._emit(ConfigRejected(file, reason, str(error)))
            self._audit_if_possible("config_rejected", file=file, reason=reason, error=str(error))
        else:
            self._runner.limit(loaded.config)
            self._follow_schedule()
            self._tell_warnings(loaded)
            self._delivery.use(self._plugins, durable=not loaded.config.dry_run)
            self._emit(ConfigReloaded(file, reason))
            self._audit_if_possible("config_reloaded", file=file, reason=reason)
        self._service.ready()

    def _prepare(self, loaded: Loaded) -> None:
        """Do what can fail with a new configuration: find its plugins, open its log."""
        plugins = PluginSet(loaded.config, before=self._plugins)
        listen = None if self._interface is None else self._interface.prepare(self, loaded.config)
        self._open_log(loaded)
        self._plugins = plugins
        if listen is not None:
            listen()

    def _open_log(self, loaded: Loaded) -> None:
        """Open the log that a configuration names, and only then let go of the one before."""
        logging_config = loaded.config.logging
        handler = log_to_file(logging_config.file, form=logging_config.format, level=logging_config.level)
        self._close_log()
        self._log = handler
        log.setLevel(logging_config.level)

    def _close_log(self) -> None:
        if self._log is not None:
            log.removeHandler(self._log)
            self._log.close()

    # -- telling -----------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        """Tell an event to the log and to the notifiers, in the thread where it happens."""
        if isinstance(event, RunFinished):
            event = RunFinished(replace(event.report, next_run_at=self._triggers.next_cleanup()))
        self._listener(event)
        self._delivery.tell(event)

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
        run = None
        if running is not None:
            progress = running.progress
            run = RunStatus(
                running.request.trigger,
                running.started_at,
                progress.jobs_done,
                progress.jobs_total,
                0 if progress.pool is None else progress.pool.bytes_freed,
            )
        file = self._configuration.file
        return DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            state=self._state(is_running=run is not None),
            started_at=self._started_at,
            beat_at=self._clock(),
            next_run_at=self._triggers.next_cleanup(),
            schedule=explain(config.schedule.cron) if config.schedule.enabled else None,
            dry_run=config.dry_run,
            run=run,
            config_file=None if file is None else str(file),
            config_loaded_at=state.loaded_at,
            config_attempts=state.attempts,
            config_attempted_at=state.attempted_at,
            config_error=state.error,
            refused=self._refused,
            hanging=tuple(self._delivery.hanging()),
            role="active" if self._leadership.is_active else "standby",
            active=None if self._leadership.active is None else str(self._leadership.active),
        )

    def _state(self, *, is_running: bool) -> str:
        if self._stopping:
            return "stopping"
        if is_running:
            return "running"
        return "idle" if self._leadership.is_active else "standby"

    def _show(self) -> None:
        status = self.status()
        self._service.status(status.words())
        self._status_file.write(status)


def log_threads() -> None:
    """Log what every thread is doing."""
    frames = sys._current_frames()  # noqa: SLF001  (its documentation names just this use)
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "it has no frame"
        log.info("Thread %s:\n%s", thread.name, stack.rstrip())
