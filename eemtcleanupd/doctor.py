"""What keeps it from cleaning: each check says what it saw, and what to do.

Nothing here changes anything.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cleanup.ballast import ballast_bytes
from eemtcleanupd.cleanup.session import open_roots
from eemtcleanupd.config import Loaded
from eemtcleanupd.daemon.status import read_status, time_with_distance
from eemtcleanupd.deletion.blockers import Blockers
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.errors import BackupError, CleanupError
from eemtcleanupd.formatting import human_size, printable
from eemtcleanupd.model import TRASH_NAME, Outcome, RootName
from eemtcleanupd.open_files import deleted_but_open, users_of
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import find_daemon
from eemtcleanupd.store.mount_check import check_journal
from eemtcleanupd.store.outbox import delivery_stats
from eemtcleanupd.store.timestamps import zone_named

_NEARLY_FULL = 0.95
_LOOKED_AT = 10_000
_NAMED = 5
_LATE = timedelta(hours=48)


class FindingLevel(StrEnum):
    """How a finding is: fine, worth a look, or in the way of cleaning."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw; ``advice`` is what to do, empty where there is nothing."""

    check: str
    level: FindingLevel
    message: str
    advice: str = ""


def examine(loaded: Loaded, now: datetime) -> Iterator[Finding]:
    """Look at everything that cleaning needs, and yield what was seen, check by check.

    Args:
        loaded: the configuration.
        now: the present, aware.
    """
    config = loaded.config
    for warning in loaded.warnings:
        yield Finding("configuration", FindingLevel.WARNING, warning)
    if not loaded.warnings:
        yield Finding("configuration", FindingLevel.OK, f"{loaded.file or 'defaults, no file was found'}")
    if config.dry_run:
        advice = "take dry_run out of the file (and EEMT_CLEANUP_DRY_RUN out of the environment)"
        yield Finding(
            "configuration", FindingLevel.WARNING, "dry_run is true: nothing is ever deleted", advice
        )
    try:
        database = StoreAddress.of(config).open(1)
    except CleanupError as error:
        yield Finding("database", FindingLevel.PROBLEM, str(error))
        return
    with ExitStack() as stack:
        stack.callback(database.close)
        examination = _Examination(loaded, database, now, stack)
        for name, check in (
            ("database", examination.database),
            ("folders", examination.folders),
            ("logs", examination.logs),
            ("capacity", examination.capacity),
            ("schedule", examination.schedule),
            ("runs", examination.runs),
            ("delivery", examination.delivery),
            ("backup", examination.backups),
        ):
            try:
                yield from check()
            except CleanupError as error:
                yield Finding(name, FindingLevel.PROBLEM, str(error))


class _Examination:
    def __init__(self, loaded: Loaded, database: Database, now: datetime, stack: ExitStack) -> None:
        self._config = loaded.config
        self._database = database
        self._now = now
        self._stack = stack
        self._ledger = Ledger(database)
        self._has_ledger = self._ledger.is_current()
        self._running = False

    # -- the database ------------------------------------------------------------------------------

    def database(self) -> Iterator[Finding]:
        """Is it whole, is it an EEMT job database, can it be written, who has it open?"""
        path = self._database.name
        faults = self._database.integrity_errors()
        if faults:
            advice = (
                f"stop all that uses it; `sqlite3 {path} .recover` saves what can be read, or restore a copy"
            )
            yield Finding("database", FindingLevel.PROBLEM, f"{path} is damaged: {faults[0]}", advice)
            return
        if warning := check_journal(self._database, to_write=True):
            yield Finding("database", FindingLevel.WARNING, warning)
        zone = zone_named(self._config.database.timezone)
        JobTable(self._database, Policy.from_config(self._config.retention), zone)
        file = self._database.file
        users = self._database.sessions() if file is None else users_of(file)
        named = ", ".join(users[:_NAMED]) or "nobody else"
        state = "answers" if file is None else "is whole"
        try:
            self._database.write(lambda _: None)
        except CleanupError as error:
            advice = f"it is open in: {named}; end the one that hangs, or check the file's owner and mode"
            yield Finding("database", FindingLevel.PROBLEM, str(error), advice)
            return
        yield Finding("database", FindingLevel.OK, f"{path} {state} and can be written; open in: {named}")

    # -- the folders -------------------------------------------------------------------------------

    def folders(self) -> Iterator[Finding]:
        """Are they the ones of the last run, may we delete in them, what is in the way?"""
        roots = open_roots(self._config, self._ledger.roots() if self._ledger.exists() else {}, self._stack)
        for root in roots.values():
            yield from self._permissions(root)
        usage = disk_usage(roots[RootName.RESULTS].fd)
        held = human_size(ballast_bytes(self._config, roots.values()))
        free = (
            f"{human_size(usage.free_bytes)} of {human_size(usage.total_bytes)} are free; "
            f"{held} are set aside for runs on a full disk"
        )
        if usage.used_bytes > _NEARLY_FULL * usage.total_bytes:
            advice = "shorten the retention, `trash purge`, or enable pressure (`clean --dry-run` shows more)"
            yield Finding(
                "disk", FindingLevel.WARNING, f"the disk of the results is nearly full: {free}", advice
            )
        else:
            yield Finding("disk", FindingLevel.OK, free)
        obstacles = Blockers.snapshot(roots.values())
        if obstacles.mounts:
            named = ", ".join(printable(str(mount)) for mount in obstacles.mounts[:_NAMED])
            advice = "unmount them; jobs in which something is mounted are left alone"
            yield Finding("mounts", FindingLevel.WARNING, f"filesystems are mounted inside: {named}", advice)
        else:
            yield Finding("mounts", FindingLevel.OK, "nothing is mounted inside the folders")
        yield from self._open_files(roots)

    def capacity(self) -> Iterator[Finding]:
        """Do the jobs keep to their budget?"""
        budget = Budget.of(self._config.capacity)
        if budget is None or not self._has_ledger:
            return
        held = sum(size for _, size in self._ledger.storage_by_class().values())
        percent = budget.used_percent(held)
        words = f"jobs hold {human_size(held)}, {percent:.1f} % of capacity.max_bytes"
        if percent < budget.warn_percent:
            yield Finding("capacity", FindingLevel.OK, words)
        else:
            advice = "`report` names the biggest jobs; shorten the retention, or raise the budget"
            yield Finding("capacity", FindingLevel.WARNING, words, advice)

    def _permissions(self, root: Root) -> Iterator[Finding]:
        place = f"{root.name} at {root.path}"
        if os.fstatvfs(root.fd).f_flag & os.ST_RDONLY:
            yield Finding(
                "folders",
                FindingLevel.PROBLEM,
                f"{place} is mounted read-only",
                f"mount -o remount,rw {root.path}",
            )
            return
        if not os.access(root.path, os.R_OK | os.W_OK | os.X_OK):
            owner = os.fstat(root.fd).st_uid
            advice = f"give it to the user that cleans (chown), or clean as user {owner}"
            yield Finding(
                "folders", FindingLevel.PROBLEM, f"{place} may not be written by user {os.geteuid()}", advice
            )
            return
        foreign = _not_ours(root) if os.geteuid() != 0 else []
        if foreign:
            named = ", ".join(printable(name) for name in foreign[:_NAMED])
            advice = f"chown -R {os.geteuid()} {root.path}, or clean as their owner"
            yield Finding(
                "folders",
                FindingLevel.PROBLEM,
                f"{len(foreign)} entries of {place} cannot be emptied by user {os.geteuid()}: {named}",
                advice,
            )
            return
        if _is_foreign_trash(root):
            trash = root.path / TRASH_NAME
            yield Finding(
                "folders",
                FindingLevel.PROBLEM,
                f"{trash} is not the own one of user {os.geteuid()}: who cleaned before?",
                f"chown -R {os.geteuid()} {trash}; chmod 700 {trash}; or clean as its owner",
            )
            return
        yield Finding("folders", FindingLevel.OK, f"{place} is what it was, and we may delete there")

    def logs(self) -> Iterator[Finding]:
        """Can be written what must be written: the log, the audit log, logs that are kept?"""
        config = self._config
        places = [config.logging.file, config.paths.logs / "jobs"]
        if config.notifications.audit_log.enabled:
            places.append(config.notifications.audit_log.path)
        refused = {there for place in places if not os.access(there := _nearest(place), os.W_OK)}
        for there in sorted(refused):
            words = f"{there} may not be written by user {os.geteuid()}, so no run begins, or keeps no logs"
            yield Finding("logs", FindingLevel.PROBLEM, words, f"chown {os.geteuid()} {there}")
        if not refused:
            yield Finding("logs", FindingLevel.OK, f"logs can be written below {config.paths.logs}")

    def _open_files(self, roots: dict[RootName, Root]) -> Iterator[Finding]:
        held = list(deleted_but_open([root.path for root in roots.values()]))
        if not held:
            yield Finding(
                "open files", FindingLevel.OK, "no process that we can see holds deleted files open"
            )
            return
        size = sum(each.size_bytes for each in held)
        by_process: dict[str, int] = {}
        for each in held:
            by_process[each.process] = by_process.get(each.process, 0) + each.size_bytes
        named = ", ".join(
            f"{process} ({human_size(size)})"
            for process, size in sorted(by_process.items(), key=lambda pair: -pair[1])[:_NAMED]
        )
        yield Finding(
            "open files",
            FindingLevel.WARNING,
            f"{len(held)} deleted files of {human_size(size)} still take space, for they are open in {named}",
            "their space comes back when these processes close them or end; restart those that will not",
        )

    # -- what should happen by itself --------------------------------------------------------------

    def schedule(self) -> Iterator[Finding]:
        """Does a daemon live, and when does it clean next?"""
        location = StoreAddress.of(self._config)
        holder, told = find_daemon(location), read_status(location)
        self._running = holder is not None
        if holder is None:
            advice = (
                "systemctl start eemtcleanupd (journalctl -u eemtcleanupd says why it ended); with cron or "
            )
            advice += "a timer there need be none: crontab -l, systemctl list-timers 'eemt*'"
            yield Finding("schedule", FindingLevel.WARNING, "no daemon is running", advice)
        elif told is None:
            yield Finding("schedule", FindingLevel.WARNING, f"the daemon ({holder}) does not say how it is")
        elif self._now - told.heartbeat_at > timedelta(minutes=2):
            yield Finding(
                "schedule",
                FindingLevel.PROBLEM,
                f"the daemon ({holder}) has not responded since "
                f"{time_with_distance(told.heartbeat_at, self._now)}",
                "is a network filesystem hanging (df -h)? Then restart it: systemctl restart eemtcleanupd",
            )
        elif told.next_run_at is None:
            advice = "set schedule.enabled: true, or start runs by `clean`"
            yield Finding(
                "schedule", FindingLevel.WARNING, "the daemon runs, but the schedule is off", advice
            )
        else:
            words = f"the daemon runs; next run {time_with_distance(told.next_run_at, self._now)}"
            yield Finding("schedule", FindingLevel.OK, words)
        if told is not None and holder is not None and told.config_error:
            advice = "mend the file; `check` says what is wrong; the configuration before is still in force"
            yield Finding(
                "schedule",
                FindingLevel.PROBLEM,
                f"it refused its new configuration: {told.config_error}",
                advice,
            )
        run = self._database.holder("run")
        if run is not None:
            yield Finding("locks", FindingLevel.OK, f"a run is going on: {run}")
        else:
            yield Finding("locks", FindingLevel.OK, "no run holds the lock")

    def runs(self) -> Iterator[Finding]:
        """How did the last run end, and what did it leave?"""
        last = self._ledger.runs(1) if self._has_ledger else []
        if not last:
            yield Finding(
                "runs", FindingLevel.WARNING, "there has been no run yet", "eemtcleanupd clean --dry-run"
            )
            return
        run = last[0]
        when = time_with_distance(run.started_at, self._now)
        if run.outcome == Outcome.FAILED:
            yield Finding("runs", FindingLevel.PROBLEM, f"the last run, {when}, broke off: {run.error}")
        elif self._now - run.started_at > _LATE:
            advice = "look at the schedule above"
            yield Finding("runs", FindingLevel.WARNING, f"the last run was {when}", advice)
        else:
            yield Finding(
                "runs", FindingLevel.OK, f"the last run was {when}: {run.outcome or 'not ended yet'}"
            )
        failed = [each for each in self._ledger.open_intents() if each.error]
        if failed:
            named = "; ".join(
                f"{printable(each.job_id)}: {printable(each.error or '')}" for each in failed[:_NAMED]
            )
            advice = "remove the cause; every run tries them again"
            yield Finding(
                "runs",
                FindingLevel.PROBLEM,
                f"{len(failed)} jobs could not be deleted or put back whole: {named}",
                advice,
            )

    def delivery(self) -> Iterator[Finding]:
        """Do the notifiers reach whom they tell?"""
        told = delivery_stats(self._database) if self._has_ledger else {}
        silent = {
            name: tally
            for name, tally in told.items()
            if tally.last_error_at is not None
            and (tally.last_delivered_at is None or tally.last_error_at > tally.last_delivered_at)
        }
        for name, tally in silent.items():
            words = f"{name} does not get through ({tally.waiting} messages wait): {tally.last_error}"
            yield Finding(
                "delivery", FindingLevel.PROBLEM, words, f"mend its settings; try: notify-test {name}"
            )
        waiting = sum(tally.waiting for tally in told.values())
        if waiting and not silent and not self._running:
            yield Finding(
                "delivery",
                FindingLevel.WARNING,
                f"{waiting} messages wait",
                "the daemon or the next run sends them",
            )
        elif not silent:
            yield Finding(
                "delivery",
                FindingLevel.OK,
                "every notifier got through the last time, or had nothing to tell",
            )

    def backups(self) -> Iterator[Finding]:
        """Can backups be written, where they are asked for?"""
        settings = self._config.backup
        if not settings.enabled:
            return
        folder = BackupFolder(settings.path)
        if not settings.path.exists():
            yield Finding("backup", FindingLevel.OK, f"{settings.path} is made by the first run")
            return
        try:
            folder.require_safe(settings.path)
            number = len(folder.all())
        except BackupError as error:
            yield Finding("backup", FindingLevel.PROBLEM, str(error), f"chown and chmod 700 {settings.path}")
            return
        if not os.access(settings.path, os.W_OK | os.X_OK):
            words = f"{settings.path} may not be written by user {os.geteuid()}"
            yield Finding("backup", FindingLevel.PROBLEM, words, f"chown {os.geteuid()} {settings.path}")
            return
        yield Finding(
            "backup", FindingLevel.OK, f"{number} backups in {settings.path} (`backup verify` reads them)"
        )


def _is_foreign_trash(root: Root) -> bool:
    """Tell whether a run of this user would refuse the trash of a root."""
    try:
        status = os.stat(TRASH_NAME, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    is_ours = status.st_uid in {os.geteuid(), 0} and not status.st_mode & 0o022
    return not is_ours or not os.access(TRASH_NAME, os.R_OK | os.W_OK | os.X_OK, dir_fd=root.fd)


def _nearest(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _not_ours(root: Root) -> list[str]:
    """Return entries of a root whose contents its user may not delete."""
    with os.scandir(root.fd) as entries:
        return [
            entry.name
            for entry in itertools.islice(entries, _LOOKED_AT)
            if entry.name != TRASH_NAME
            and entry.is_dir(follow_symlinks=False)
            and not os.access(entry.name, os.W_OK | os.X_OK, dir_fd=root.fd)
        ]
