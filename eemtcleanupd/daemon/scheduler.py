"""Decide which run is due, whether this daemon can start it, and when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from eemtcleanupd.cleanup import RunRequest
from eemtcleanupd.cleanup.context import RunHooks
from eemtcleanupd.clock import Clock
from eemtcleanupd.daemon.config_reload import ConfigManager
from eemtcleanupd.daemon.leader_election import LeaderElection
from eemtcleanupd.daemon.messages import Enqueue, RunEnded, RunRequested
from eemtcleanupd.daemon.runner import Runner
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.daemon.timers import Timers
from eemtcleanupd.errors import LockHeldError
from eemtcleanupd.events import DiskPressure, Emit, RunReport
from eemtcleanupd.formatting import local_minute
from eemtcleanupd.logs import log
from eemtcleanupd.model import Trigger
from eemtcleanupd.policy.pressure import Pressure

USER = "auto_cleanup"
"""The recorded user of the daemon's own actions."""

_LONGEST_RETRY_SECONDS = 300.0
_PRESSURE_PAUSE = timedelta(hours=1)
_LOCK_CHECK_SECONDS = 15.0
_LONGEST_LOCK_WAIT_SECONDS = 3600.0


class RunScheduler:
    """Keeps the pending runs and the last run's error; ``emit`` receives ``DiskPressure``.

    At most one run of a client is pending, and behind it at most one of the daemon's own.
    """

    def __init__(
        self,
        config_manager: ConfigManager,
        election: LeaderElection,
        runner: Runner,
        queries: StoreQueries,
        timers: Timers,
        *,
        put: Enqueue,
        emit: Emit,
        clock: Clock,
        elapsed: Callable[[], float],
    ) -> None:
        self._config_manager = config_manager
        self._election = election
        self._runner = runner
        self._queries = queries
        self._timers = timers
        self._put = put
        self._emit = emit
        self._clock = clock
        self._elapsed = elapsed
        self._pending: list[RunRequested] = []
        self._not_before = elapsed() + config_manager.config.schedule.start_delay_seconds
        self._active_since = elapsed()
        self._lock_check_at = elapsed()
        self._waits_since: float | None = None
        self._pressure_run_ended_at: datetime | None = None
        self.last_error: str | None = None
        """Why the last run failed, or None."""
        self.last_error_at = clock()
        """When ``last_error`` was set."""

    # -- schedule and role -------------------------------------------------------------------------

    def apply_schedule(self, since: datetime | None = None) -> None:
        """Follow the configured schedule; missed occurrences after ``since`` cause one run."""
        request = RunRequested(Trigger.SCHEDULE, USER)
        schedule = self._config_manager.config.schedule
        self._timers.follow_cron(schedule, lambda: self._put(request), since=since)

    def become_active(self) -> None:
        """Start runs from now on."""
        self._active_since = self._elapsed()
        self.resume()

    def become_standby(self) -> None:
        """Drop the pending runs and stop the active one."""
        self.drop_pending("This daemon is the standby now. Request the run from the active one.")
        self._runner.stop()

    def resume(self) -> None:
        """Catch up on missed runs, and finish the deletions that an interrupted run had started.

        The jobs that the interrupted run had not claimed wait for the schedule or for a person.
        """
        config = self._config_manager.config
        schedule = config.schedule
        last = self._queries.last_cleanup(config)
        self._record_result(None if last is None else last.error)
        catch_up = schedule.enabled and schedule.catch_up and not config.dry_run
        if catch_up and last is not None and last.began_at is not None:
            self.apply_schedule(since=last.began_at)
        if schedule.run_on_start:
            self._put(RunRequested(Trigger.START, USER))  # like every run, it recovers first
        elif last is not None and last.needs_recovery and not config.dry_run:
            self._put(RunRequested(Trigger.RECOVERY, USER))

    # -- pending run -------------------------------------------------------------------------------

    def request_run(self, request: RunRequested) -> None:
        """Make a run the pending one, or refuse it with an error to its client or in the log."""
        if not self._election.is_active:
            active = self._election.active_daemon or "another daemon"
            if request.callbacks is not None or not request.trigger.is_automatic:
                self._refuse(request, f"This daemon is the standby. Request the run from {active}.")
            return
        running = self._runner.active_run
        client = next((each for each in self._pending if each.callbacks is not None), None)
        own = next((each for each in self._pending if each.callbacks is None), None)
        is_busy = running is not None and running.request.trigger.plans_jobs
        if request.callbacks is not None and (is_busy or client is not None):
            self._refuse(request, "Another run is in progress. Try again when it has ended.")
        elif running is not None and is_busy and not (running.is_for_client and request.trigger.is_automatic):
            started_at = local_minute(running.started_at)
            self._refuse(request, f"Another run, started at {started_at}, is in progress.")
        elif request.callbacks is not None:
            # A purge, or a run with another retention, does not do what the daemon's own run does.
            self._pending = [request, *([] if own is None or not own.trigger.plans_jobs else [own])]
        elif not any(each.trigger.plans_jobs for each in self._pending):
            self.drop_pending("Another run starts first. Try again when it has ended.")
            self._pending = [request]

    def drop_pending(self, reason: str) -> None:
        """Start none of the pending runs, and tell a client that waits for one."""
        for request in self._pending:
            if request.callbacks is not None:
                self._refuse(request, reason)
        self._pending = []
        self._waits_since = None

    @staticmethod
    def _refuse(request: RunRequested, reason: str) -> None:
        if request.callbacks is not None:
            request.callbacks.done(LockHeldError(reason))
        else:
            log.warning("The run (%s) does not start: %s", request.trigger, reason)

    def check_trash(self) -> None:
        """Request a run that purges the trash if the grace period of an item has ended."""
        if self._is_idle() and self._queries.has_expired_trash(self._config_manager.config):
            self.request_run(RunRequested(Trigger.TRASH, USER))

    def check_error(self) -> None:
        """Replace the error of the last run by that of a newer run of a command."""
        last = None if self.last_error is None else self._queries.last_cleanup(self._config_manager.config)
        if last is not None and last.began_at is not None and last.began_at > self.last_error_at:
            self._record_result(last.error)

    def check_pressure(self) -> None:
        """If the disk is too full, report disk pressure and request a run that cleans jobs early."""
        config = self._config_manager.config
        pressure = config.pressure
        if not pressure.enabled or not self._is_idle():
            return
        usage = self._queries.usage(config)
        if usage is None or usage.used_percent < pressure.high_watermark_percent:
            self._pressure_run_ended_at = None
            return
        ended_at = self._pressure_run_ended_at
        if ended_at is not None and self._clock() - ended_at < _PRESSURE_PAUSE:
            return  # the last run deleted all that it could; another one would change nothing
        self._emit(
            DiskPressure(
                usage.used_percent,
                usage.free_bytes,
                pressure.high_watermark_percent,
                pressure.low_watermark_percent,
            )
        )
        self.request_run(RunRequested(Trigger.PRESSURE, USER))

    def _is_idle(self) -> bool:
        is_free = self._runner.active_run is None and not self._pending
        return is_free and not self._config_manager.config.dry_run

    # -- start and end of a run --------------------------------------------------------------------

    def seconds_to_start(self) -> float | None:
        """Return the seconds until a pending run can start, or None if no run is waiting."""
        if not self._pending or self._runner.active_run is not None:
            return None
        return max(self._not_before, self._lock_check_at) - self._elapsed()

    def start_pending_run(self, hooks: RunHooks) -> None:
        """Start the first pending run, unless another one is active or it is too early."""
        if not self._pending or self._runner.active_run is not None:
            return
        request = self._pending[0]
        if not self._is_enabled(request.trigger):
            del self._pending[0]
            log.warning(
                "The run (%s) does not start: the configuration does not enable it now.", request.trigger
            )
            return
        if request.trigger.is_automatic and self._elapsed() < self._not_before:
            return
        if request.callbacks is None and self._waits_for_lock(request.trigger):
            return
        del self._pending[0]
        config, callbacks = self._config_manager.config, request.callbacks
        pressure = config.pressure
        purge_older_than = None if callbacks is None else callbacks.purge_older_than
        self._runner.start(
            config if callbacks is None else config.with_retention(*callbacks.retention),
            RunRequest(
                user=request.user,
                trigger=request.trigger,
                dry_run=config.dry_run,
                force=callbacks is not None and callbacks.force,
                purge_older_than=purge_older_than,
                forget_missing=purge_older_than is not None,
                pressure=Pressure(pressure.low_watermark_percent, timedelta(hours=pressure.minimum_age_hours))
                if request.trigger is Trigger.PRESSURE
                else None,
            ),
            hooks,
            callbacks,
        )

    def _waits_for_lock(self, trigger: Trigger) -> bool:
        """Return whether a run of the daemon waits for that of a command, which holds the lock.

        It waits for an hour at most. Then the run starts and fails, so that people learn of the lock.
        """
        config, now = self._config_manager.config, self._elapsed()
        if now < self._lock_check_at:
            return True
        holder = None if config.dry_run else self._queries.run_holder(config)
        if holder is None:
            self._waits_since = None
            return False
        if self._waits_since is None:
            self._waits_since = now
            log.warning("The run (%s) starts later, since another one is in progress: %s", trigger, holder)
        if now - self._waits_since >= _LONGEST_LOCK_WAIT_SECONDS:
            self._waits_since = None
            return False
        self._lock_check_at = now + _LOCK_CHECK_SECONDS
        return True

    def _is_enabled(self, trigger: Trigger) -> bool:
        """Return whether the configuration enables such a run: it was perhaps requested under another one."""
        config = self._config_manager.config
        if trigger is Trigger.SCHEDULE:
            return config.schedule.enabled
        return trigger is not Trigger.PRESSURE or config.pressure.enabled

    def run_ended(self, ended: RunEnded) -> None:
        """Record how a run ended, and retry it if the lock was held and a retry is useful."""
        self._runner.ended()
        result = ended.result
        if isinstance(result, RunReport):
            self._record_result(None)
        elif isinstance(result, LockHeldError):
            log.warning("The run (%s) did not start: %s", ended.trigger, result)
            self._retry_if_useful(ended.trigger)
        else:
            self._record_result(str(result) if result is not None else "Unexpected error. See the log.")
        if ended.trigger is Trigger.PRESSURE:
            self._pressure_run_ended_at = self._clock()

    def _record_result(self, error: str | None) -> None:
        self.last_error, self.last_error_at = error, self._clock()

    def _retry_if_useful(self, trigger: Trigger) -> None:
        """Retry a recovery until it succeeds, and any automatic run during a takeover.

        The previous run's lock can outlive its daemon for a moment, or while that daemon is frozen.
        """
        takeover = self._config_manager.config.ha.takeover_seconds
        active_seconds = self._elapsed() - self._active_since
        if not self._election.is_active or not takeover:
            return
        if trigger is Trigger.RECOVERY or (trigger.is_automatic and active_seconds < takeover):
            pause = max(self._election.check_seconds, min(active_seconds, _LONGEST_RETRY_SECONDS))
            self._not_before = self._elapsed() + pause
            self._put(RunRequested(trigger, USER))
