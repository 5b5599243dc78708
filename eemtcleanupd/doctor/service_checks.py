"""Checks of what works on the job store: logs, daemon, locks, runs, notifiers and backups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from eemtcleanupd import remedies
from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.config import Loaded
from eemtcleanupd.daemon.status import read_status, time_with_distance
from eemtcleanupd.doctor import findings
from eemtcleanupd.doctor.base import MAX_NAMES, Checks, can
from eemtcleanupd.doctor.findings import NamedCheck, Result
from eemtcleanupd.errors import BackupError, CleanupError
from eemtcleanupd.formatting import human_size, plural, printable
from eemtcleanupd.logs import require_writable
from eemtcleanupd.model import Outcome
from eemtcleanupd.notifiers import audit_log
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.lock import find_daemon
from eemtcleanupd.store.outbox import delivery_stats

_MAX_HEARTBEAT_AGE = timedelta(minutes=2)
_MAX_RUN_AGE = timedelta(hours=48)


class ServiceChecks(Checks):
    """The checks of the daemon and its runs, and of what they write."""

    def __init__(self, loaded: Loaded, database: Database, now: datetime) -> None:
        super().__init__(loaded, database, now)
        self._has_daemon = False

    def all(self) -> tuple[NamedCheck, ...]:
        """Return the checks in their order.  The delivery check needs the result of the schedule check."""
        return (
            ("logs", self._check_logs),
            ("capacity", self._check_capacity),
            ("schedule", self._check_schedule),
            ("locks", self._check_locks),
            ("runs", self._check_runs),
            ("delivery", self._check_delivery),
            ("backup", self._check_backups),
        )

    def _check_logs(self) -> Iterator[Result]:
        config = self._config
        logs = [(config.logging.file, "logging.file"), (config.paths.logs / "jobs", "paths.logs")]
        if config.notifications.audit_log.enabled:
            logs += [(path, "notifications.audit_log.path") for path in config.notifications.audit_log.files]
        refused: dict[Path, str] = {}
        for path, key in logs:
            if not can(existing := _nearest_existing(path), os.W_OK):
                wanted = config.paths.logs if key == "paths.logs" and existing != path else path
                refused.setdefault(existing, remedies.give_log(wanted, key))
        for path, advice in sorted(refused.items()):
            yield findings.problem(
                f"{path} is not writable for user {os.geteuid()}. Runs fail, or their logs are lost.", advice
            )
        if refused:
            return
        try:
            require_writable(config.logging.file)
            if config.notifications.audit_log.enabled:
                audit_log.require_writable(config.notifications.audit_log.path)
        except CleanupError as error:  # a folder in its place, for example
            yield findings.problem(str(error))
        else:
            yield findings.ok(f"Logs are writable below {config.paths.logs}.")

    def _check_capacity(self) -> Iterator[Result]:
        budget = Budget.of(self._config.capacity)
        if budget is None or not self._has_ledger:
            return
        held = sum(size for _, size in self._ledger.storage_by_class().values())
        percent = budget.used_percent(held)
        message = f"Jobs use {human_size(held)}, {percent:.1f} % of capacity.max_bytes."
        if percent < budget.warn_percent:
            yield findings.ok(message)
        else:
            yield findings.warning(
                message,
                f"{self._set('capacity.max_bytes', 2 * held)} Or shorten the retention. The biggest jobs are "
                f"in `{remedies.program(self._loaded, 'report')}`.",
            )

    def _check_schedule(self) -> Iterator[Result]:
        address = StoreAddress.of(self._config)
        holder, status = find_daemon(address), read_status(address)
        self._has_daemon = holder is not None
        if holder is None:
            yield findings.warning(
                "No daemon is running.",
                f"{remedies.run(remedies.start_daemon(self._loaded))} Its log is in "
                f"{self._config.logging.file}. With cron or a timer you need no daemon.",
            )
            return
        if status is None:
            yield findings.warning(f"The daemon ({holder}) has not written its status yet.")
            return
        if self._now - status.heartbeat_at > _MAX_HEARTBEAT_AGE:
            yield findings.problem(
                f"The daemon ({holder}) has not responded since "
                f"{time_with_distance(status.heartbeat_at, self._now)}.",
                "Check whether a network filesystem hangs. Then restart the daemon. "
                + remedies.run(*remedies.restart_daemon(self._loaded)),
            )
        elif status.next_run_at is None:
            yield findings.warning(
                "The daemon is running, but its schedule is off.",
                self._set("schedule.enabled", "true"),
            )
        else:
            next_run = time_with_distance(status.next_run_at, self._now)
            yield findings.ok(f"The daemon is running. The next run is on {next_run}.")
        if status.config_error:
            yield findings.problem(
                f"The daemon rejected its new configuration: {status.config_error}",
                "The previous configuration is still in effect. The file is valid for this command, "
                "so restart the daemon. " + remedies.run(*remedies.restart_daemon(self._loaded)),
            )

    def _check_locks(self) -> Iterator[Result]:
        run = self._database.holder("run")
        yield findings.ok("No run holds the lock." if run is None else f"A run is in progress: {run}.")

    def _check_runs(self) -> Iterator[Result]:
        run = self._ledger.last_cleanup() if self._has_ledger else None
        if run is None:
            yield findings.warning(
                "There are no runs yet.",
                "Preview the first run, then start it. " + self._run("clean --dry-run", "clean"),
            )
            return
        started = time_with_distance(run.started_at, self._now)
        if run.outcome in Outcome.unsuccessful():
            yield findings.problem(
                f"The last run, on {started}, failed: {run.error}", f"Remove the cause. {self._run('clean')}"
            )
        elif self._now - run.started_at > _MAX_RUN_AGE:
            yield findings.warning(
                f"The last run was on {started}.", f"Check the schedule above. {self._run('clean')}"
            )
        else:
            yield findings.ok(f"The last run was on {started}: {run.outcome or 'not finished'}.")
        if failed := [intent for intent in self._ledger.open_intents() if intent.error]:
            jobs = "; ".join(
                f"{printable(intent.name)}: {printable(intent.error or '')}" for intent in failed[:MAX_NAMES]
            )
            yield findings.problem(
                f"{plural(len(failed), 'item')} could not be deleted or restored completely: {jobs}",
                f"Remove the cause. Every run tries again. {self._run('clean')}",
            )

    def _check_delivery(self) -> Iterator[Result]:
        blocks = dict(self._config.notifications)
        disabled = {name for name, block in blocks.items() if not getattr(block, "enabled", False)}
        found = delivery_stats(self._database) if self._has_ledger else {}
        stats_by_name = {name: stats for name, stats in found.items() if name not in disabled}
        failing = {
            name: stats
            for name, stats in stats_by_name.items()
            if stats.last_error_at is not None
            and (stats.last_delivered_at is None or stats.last_error_at > stats.last_delivered_at)
        }
        for name, stats in failing.items():
            yield findings.problem(
                f"Notifier {name} fails ({plural(stats.waiting, 'message')} waiting): {stats.last_error}",
                f"Correct its settings. {self._run(f'notify-test {name}', 'clean')}",
            )
        if failing:
            return
        waiting = sum(stats.waiting for stats in stats_by_name.values())
        due = min((s.next_attempt_at for s in stats_by_name.values() if s.next_attempt_at), default=None)
        if due is not None and not self._has_daemon:
            unsent = f"{plural(waiting, 'message')} not sent yet."
            yield findings.warning(
                f"{unsent} The next attempt is due {time_with_distance(due, self._now)}.",
                f"The daemon or a run after that time sends them. {self._run('clean')}",
            )
        else:
            yield findings.ok("Every notifier delivered its last message, or had none to deliver.")

    def _check_backups(self) -> Iterator[Result]:
        settings = self._config.backup
        if not settings.enabled:
            return
        path = settings.path
        if not path.exists():
            yield findings.ok(f"{path} does not exist yet. The first run creates it.")
            return
        folder = BackupFolder(path)
        try:
            with folder.opened():
                count = len(folder.all())
        except BackupError as error:
            yield findings.problem(str(error), remedies.make_private(path))
            return
        if can(path, os.W_OK | os.X_OK):
            yield findings.ok(f"{path} contains {plural(count, 'backup')}. Verify with `backup verify`.")
        else:
            uid = os.geteuid()
            yield findings.problem(f"{path} is not writable for user {uid}.", remedies.make_private(path))


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.lexists(place))
