"""What is to be done next: which run is wanted, whether this daemon is the one to start it, and when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from eemtcleanupd.cleanup import RunRequest
from eemtcleanupd.cleanup.context import RunHooks
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.daemon.config_reload import ConfigManager
from eemtcleanupd.daemon.leader_election import LeaderElection
from eemtcleanupd.daemon.messages import Enqueue, RunEnded, RunRequested
from eemtcleanupd.daemon.runner import Runner
from eemtcleanupd.daemon.store_queries import StoreQueries
from eemtcleanupd.daemon.timers import Timers
from eemtcleanupd.errors import LockHeldError
from eemtcleanupd.events import DiskPressure, Emit, RunReport
from eemtcleanupd.logs.setup import log
from eemtcleanupd.model import Trigger
from eemtcleanupd.policy.pressure import Pressure

USER = "auto_cleanup"
"""Who is recorded for what the daemon does by itself (the user's document, Audit Trail)."""

_LONGEST_PAUSE_SECONDS = 300.0
_PRESSURE_PAUSE = timedelta(hours=1)


class RunScheduler:
    """The run that is wanted, and what became of the one before; ``refused`` says why that one did nothing.

    Args:
        configuration: the configuration in force.
        leadership: whether this daemon is the active one.
        runner: starts runs.
        storage: how full the disk is, what is in the trash.
        triggers: follow the schedule.
        put: the inbox.
        emit: is told when the disk is full.
        clock: the time of day.
        elapsed: seconds that really passed.
    """

    def __init__(
        self,
        configuration: ConfigManager,
        leadership: LeaderElection,
        runner: Runner,
        storage: StoreQueries,
        triggers: Timers,
        *,
        put: Enqueue,
        emit: Emit,
        clock: Clock,
        elapsed: Callable[[], float],
    ) -> None:
        self._configuration = configuration
        self._leadership = leadership
        self._runner = runner
        self._storage = storage
        self._triggers = triggers
        self._put = put
        self._emit = emit
        self._clock = clock
        self._elapsed = elapsed
        self._wanted: RunRequested | None = None
        self._not_before = elapsed() + self._config.schedule.start_delay_seconds
        self._active_at = elapsed()
        self._relieved_at: datetime | None = None
        self.last_error: str | None = None

    @property
    def _config(self) -> Config:
        return self._configuration.loaded.config

    # -- the schedule ------------------------------------------------------------------------------

    def apply_schedule(self, since: datetime | None = None) -> None:
        """Follow the schedule of the configuration in force; what it missed since a time is made up for."""
        wanted = RunRequested(Trigger.SCHEDULE, USER)
        self._triggers.follow_cron(self._config.schedule, lambda: self._put(wanted), since=since)

    def resume(self) -> None:
        """Make up for what was missed, and go on with what another daemon, or this one, left."""
        last = self._storage.last_cleanup(self._config)
        config = self._config.schedule
        catch_up = config.enabled and config.catch_up and not self._config.dry_run
        if catch_up and last is not None and last.began_at is not None:
            self.apply_schedule(since=last.began_at)
        if last is not None and (last.was_killed or (last.was_interrupted and config.catch_up)):
            self._put(RunRequested(Trigger.RECOVERY, USER))
        elif config.run_on_start:
            self._put(RunRequested(Trigger.START, USER))

    def become_active(self) -> None:
        """Clean from now on."""
        self._active_at = self._elapsed()
        self.resume()

    def become_standby(self) -> None:
        """Leave it to another daemon; a run that has lost its connection ends by itself."""
        self._wanted = None
        self._runner.stop()

    # -- what is wanted ----------------------------------------------------------------------------

    def request_run(self, wanted: RunRequested) -> None:
        """Put a run on the agenda, or say why it does not come there."""
        if not self._leadership.is_active:
            active = self._leadership.active or "another one"
            if wanted.order is not None:
                wanted.order.done(LockHeldError(f"this daemon stands by: ask the active one, {active}"))
            elif not wanted.trigger.is_automatic:
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
        elif self._wanted is None or self._wanted.trigger is Trigger.TRASH or wanted.order is not None:
            self._wanted = wanted

    def check_trash(self) -> None:
        """Want a run that empties the trash if something has outlived its grace there."""
        if self._is_free() and self._storage.has_expired_trash(self._config):
            self.request_run(RunRequested(Trigger.TRASH, USER))

    def check_pressure(self) -> None:
        """Want a run ahead of the retention, and tell so, if the disk is too full."""
        config = self._config.pressure
        if not config.enabled or not self._is_free():
            return
        usage = self._storage.usage(self._config)
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
        self.request_run(RunRequested(Trigger.PRESSURE, USER))

    def _is_free(self) -> bool:
        return self._runner.running is None and self._wanted is None and not self._config.dry_run

    # -- when it starts, and how it ended ----------------------------------------------------------

    def seconds_to_start(self) -> float | None:
        """Return when the run that is wanted may start, None while none waits for that."""
        if self._wanted is None or self._runner.running is not None:
            return None
        return self._not_before - self._elapsed()

    def start_pending_run(self, guards: RunHooks) -> None:
        """Start the run that is wanted, unless another goes on or it is too early."""
        wanted = self._wanted
        if wanted is None or self._runner.running is not None:
            return
        if wanted.trigger.is_automatic and self._elapsed() < self._not_before:
            return
        self._wanted = None
        config, order = self._config, wanted.order
        pressure = config.pressure
        self._runner.start(
            config if order is None else config.with_retention(*order.retention),
            RunRequest(
                user=wanted.user,
                trigger=wanted.trigger,
                dry_run=config.dry_run,
                force=order is not None and order.force,
                only_trash=wanted.trigger is Trigger.TRASH,
                pressure=Pressure(pressure.low_watermark_percent, timedelta(hours=pressure.minimum_age_hours))
                if wanted.trigger is Trigger.PRESSURE
                else None,
            ),
            guards,
            order,
        )

    def run_ended(self, ended: RunEnded) -> None:
        """Take note of how a run ended; one that met another's lock may be wanted again."""
        self._runner.ended()
        result = ended.result
        if isinstance(result, RunReport):
            self.last_error = None
        elif isinstance(result, LockHeldError):
            log.warning("The run for %s did not start: %s", ended.trigger, result)
            since = self._elapsed() - self._active_at
            if self._should_retry(ended.trigger, since):
                # The lock of the run before may outlive its daemon for a moment, or while that is frozen.
                pause = max(self._leadership.pause_seconds, min(since, _LONGEST_PAUSE_SECONDS))
                self._not_before = self._elapsed() + pause
                self._put(RunRequested(ended.trigger, USER))
        else:
            self.last_error = str(result) if result is not None else "it broke off, the log says where"
        if ended.trigger is Trigger.PRESSURE:
            self._relieved_at = self._clock()

    def _should_retry(self, trigger: Trigger, active_seconds: float) -> bool:
        """Tell whether a run that met a lock is for this daemon to try again: what was left, until it can."""
        takeover = self._config.ha.takeover_seconds
        if not self._leadership.is_active or not takeover:
            return False
        return trigger is Trigger.RECOVERY or (trigger.is_automatic and active_seconds < takeover)
