"""Check what cleanup needs, and report problems with their fixes.  Changes nothing."""

from __future__ import annotations

import itertools
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path

from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cleanup.ballast import ballast_bytes
from eemtcleanupd.cleanup.inventory import EntryKind, count_orphans
from eemtcleanupd.cleanup.other_databases import PRIVATE_FOLDERS, other_databases
from eemtcleanupd.cleanup.session import (
    StoreSession,
    job_table,
    job_table_problem,
    open_database,
    open_roots,
)
from eemtcleanupd.config import Config, Loaded
from eemtcleanupd.daemon.status import read_status, time_with_distance
from eemtcleanupd.deletion.blockers import Blockers
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.deletion.open_files import deleted_but_open, users_of
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.upload_index import UploadIndex
from eemtcleanupd.errors import BackupError, CleanupError, NoDatabaseError
from eemtcleanupd.formatting import human_size, plural, printable
from eemtcleanupd.model import TRASH_NAME, Outcome, RootName
from eemtcleanupd.policy.breakers import ZoneEvidence, format_offset
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.privileges import User, has_file_access
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import find_daemon
from eemtcleanupd.store.mount_check import check_journal
from eemtcleanupd.store.outbox import delivery_stats
from eemtcleanupd.store.owner import risk_of_root, user_of_run
from eemtcleanupd.store.timestamps import utc_offset, zone_named

_NEARLY_FULL_FRACTION = 0.95
_MAX_ENTRIES = 10_000
_PROPOSED_ORPHAN_HOURS = 720
_MAX_NAMES = 5
_MAX_HEARTBEAT_AGE = timedelta(minutes=2)
_MAX_RUN_AGE = timedelta(hours=48)


class FindingLevel(StrEnum):
    """The severity of a finding: all is well, needs attention, or prevents cleanup."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check; ``advice`` is how to fix it, or empty."""

    check: str
    level: FindingLevel
    message: str
    advice: str = ""


Result = tuple[FindingLevel, str, str]
"""What a check yields: the level, the message and the advice of a finding."""


def _result(level: FindingLevel, message: str, advice: str = "") -> Result:
    return level, message, advice


_ok = partial(_result, FindingLevel.OK)
_warning = partial(_result, FindingLevel.WARNING)
_problem = partial(_result, FindingLevel.PROBLEM)


def examine(loaded: Loaded, now: datetime) -> Iterator[Finding]:
    """Yield the findings of all checks, as soon as each is known; ``now`` is aware."""
    for result in _check_configuration(loaded):
        yield Finding("configuration", *result)
    yield Finding("user", *_check_user(loaded.config))
    if (user := _other_user_of_service(loaded.config)) is not None:
        yield Finding("user", *_check_as(user))
        return
    with ExitStack() as stack:
        try:
            database = open_database(loaded.config, stack, 1)
        except CleanupError as error:
            yield Finding("database", *_problem(str(error)))
            return
        store = _StoreChecks(loaded.config, database, now, stack)
        for name, check in (
            ("database", store.check_database),
            ("folders", store.check_folders),
            ("jobs", store.check_jobs),
            ("orphans", store.check_orphans),
            ("disk", store.check_disk),
            ("mounts", store.check_mounts),
            ("open files", store.check_open_files),
            ("logs", store.check_logs),
            ("capacity", store.check_capacity),
            ("schedule", store.check_schedule),
            ("locks", store.check_locks),
            ("runs", store.check_runs),
            ("delivery", store.check_delivery),
            ("backup", store.check_backups),
        ):
            try:
                for result in check():
                    yield Finding(name, *result)
            except NoDatabaseError as error:
                yield Finding(name, *_problem(str(error)))
                return
            except CleanupError as error:
                yield Finding(name, *_problem(str(error)))


def _check_configuration(loaded: Loaded) -> Iterator[Result]:
    for warning in loaded.warnings:
        yield _warning(warning)
    if not loaded.warnings:
        yield _ok(f"Using {loaded.file}." if loaded.file else "There is no file. Using defaults.")
    if loaded.config.dry_run:
        yield _warning(
            "dry_run is true, so runs delete nothing.",
            "Remove dry_run from the file and EEMT_CLEANUP_DRY_RUN from the environment.",
        )


def _check_user(config: Config) -> Result:
    if (risk := risk_of_root(config)) is not None:
        return _warning(risk, "Remove run_as, or set it to owner.")
    return _ok(user_of_run())


def _other_user_of_service(config: Config) -> User | None:
    """Return who owns the lock of the store's daemon, None if that is this user or no daemon ever ran."""
    try:
        owner = StoreAddress.of(config).own_file("daemon.lock").lstat().st_uid
    except OSError:
        return None
    return None if owner == os.geteuid() else User.of(owner)


def _check_as(service: User) -> Result:
    return _problem(
        f"The daemon works as user {service}, and this command as user {User.of(os.geteuid())}. What this "
        "user can do says nothing about the daemon, so no more is checked.",
        f"eemtcleanupd doctor --run-as {shlex.quote(service.name)}",
    )


class _StoreChecks:
    """The checks that need an open database; each yields its findings."""

    def __init__(self, config: Config, database: Database, now: datetime, stack: ExitStack) -> None:
        self._config = config
        self._database = database
        self._now = now
        self._stack = stack
        self._ledger = Ledger(database)
        self._has_ledger = self._ledger.exists()
        self._roots: dict[RootName, Root] = {}
        self._has_daemon = False

    def check_database(self) -> Iterator[Result]:
        path = self._database.name
        if errors := self._database.integrity_errors():
            yield _problem(
                f"{path} is damaged: {errors[0]}",
                "Stop every program that uses it. Then restore a copy, or save the readable data with "
                f"`sqlite3 {path} .recover`.",
            )
            return
        if warning := check_journal(self._database, to_write=True):
            yield _warning(warning)
        zone = zone_named(self._config.database.timezone)
        jobs = job_table(self._database, self._config)
        file = self._database.file
        users = self._database.sessions() if file is None else users_of(file)
        used_by = ", ".join(users[:_MAX_NAMES]) or "no other process"
        try:
            self._database.write(lambda _: None)
        except CleanupError as error:
            yield _problem(
                str(error),
                f"It is in use by: {used_by}. End a process that hangs, or check the file's owner and mode.",
            )
            return
        state = "responds and is" if file is None else "is intact and"
        yield _ok(f"{path} {state} writable. It is in use by: {used_by}.")
        if missing := jobs.missing_columns:
            yield _warning(
                f"Table jobs does not have the columns {', '.join(missing)} yet. The first run adds them.",
                "To add them now, for SQL or metrics that need them: eemtcleanupd doctor --fix",
            )
        yield self._check_zone(jobs, utc_offset(self._now, zone))

    def _check_zone(self, jobs: JobTable, our_offset: timedelta) -> Result:
        """Compare the zone of times without one with the zone that the web interface shows in its rows."""
        name = self._config.database.timezone
        zone = "the zone of this machine" if name == "local" else name
        ours = f"Times without a zone are read in {zone} (now UTC{format_offset(our_offset)})."
        evidence = ZoneEvidence.of(jobs.observed_starts())
        if evidence is None:
            return _ok(f"{ours} The UTC offset of the web interface is unknown.")
        if evidence.problem is not None:
            return _problem(
                f"{ours} But {evidence.problem}.",
                "Set database.timezone to the zone of the web interface, for example UTC.",
            )
        theirs = f"UTC{format_offset(evidence.application_offset)} or further west"
        return _ok(f"{ours} By its newest {plural(evidence.rows, 'job')}, the web interface uses {theirs}.")

    def check_folders(self) -> Iterator[Result]:
        self._roots = open_roots(self._config, self._ledger, self._stack)
        known = self._ledger.roots() if self._has_ledger else {}
        for root in self._roots.values():
            yield _check_permissions(root, is_known=root.name in known)

    def check_jobs(self) -> Iterator[Result]:
        """Check whether this is the job table of the web interface."""
        jobs, config = job_table(self._database, self._config), self._config
        summary = jobs.summary()
        if self._roots:
            policy = Policy.from_config(config.retention)
            session = StoreSession(
                config,
                policy,
                self._database,
                jobs,
                self._ledger,
                self._has_ledger,
                self._roots,
                UploadIndex(None),
            )
            if (problem := job_table_problem(session, summary)) is not None:
                yield _problem(f"{problem[0].upper()}{problem[1:]}")
                return
        ended = summary.last_job_ended_at
        last = "" if ended is None else f" The last one ended on {time_with_distance(ended, self._now)}."
        yield _ok(f"{printable(summary.path)} has {plural(summary.jobs, 'job')}.{last}")
        for other in other_databases(config):
            if other.is_of_store:
                yield _warning(
                    f"The web interface seems to use another job database: {other}.",
                    "Compare their jobs. Then correct paths.database, or move the database of the web "
                    "interface: see docs/how-to/web-interface-database.md.",
                )
        if self._database.file is not None and self._database.file.parent in PRIVATE_FOLDERS:
            yield _warning(
                f"A restart of the machine can delete {self._database.file}. A service or a container "
                "can have a folder /tmp of its own.",
                "Move the database of the web interface: see docs/how-to/web-interface-database.md.",
            )

    def check_orphans(self) -> Iterator[Result]:
        if not self._roots:
            return
        hours = self._config.orphans.delete_after_hours
        proposed = _PROPOSED_ORPHAN_HOURS if hours is None else hours
        orphans = self._config.orphans.model_copy(update={"delete_after_hours": proposed})
        config = self._config.model_copy(update={"orphans": orphans})
        tallies = count_orphans(config, self._database, self._ledger, self._roots, self._now)
        young, due = tallies[EntryKind.ORPHAN], tallies[EntryKind.DUE]
        if not (count := young.jobs + due.jobs):
            yield _ok("Every entry of the folders belongs to a job.")
            return
        size = human_size(young.bytes_freed + due.bytes_freed)
        message = f"{plural(count, 'orphan')} ({size}) in the folders: no row of the job table names them."
        effect = f"{due.jobs} of them ({human_size(due.bytes_freed)})"
        if hours is None:
            yield _warning(
                f"{message} EEMT leaves the upload of a job that somebody deletes, for example.",
                f"orphans.delete_after_hours: {proposed} would delete {effect} now.",
            )
        else:
            yield _ok(f"{message} The next run deletes {effect}.")

    def check_disk(self) -> Iterator[Result]:
        if not self._roots:
            return
        usage = disk_usage(self._roots[RootName.RESULTS].fd)
        reserved = human_size(ballast_bytes(self._config, self._roots.values()))
        space = (
            f"{human_size(usage.free_bytes)} of {human_size(usage.total_bytes)} are free, "
            f"and {reserved} are reserved for runs on a full disk."
        )
        if usage.used_bytes > _NEARLY_FULL_FRACTION * usage.total_bytes:
            yield _warning(
                f"The disk of the results folder is nearly full: {space}",
                "Shorten the retention, run `trash purge --yes`, or enable pressure. "
                "`clean --dry-run` shows what a run would free.",
            )
        else:
            yield _ok(space)

    def check_mounts(self) -> Iterator[Result]:
        if not self._roots:
            return
        if mounts := Blockers.snapshot(self._roots.values()).mounts:
            yield _warning(
                f"Filesystems are mounted inside the folders: {_names(map(str, mounts))}.",
                "Unmount them. A job that contains a mounted filesystem is not cleaned.",
            )
        else:
            yield _ok("No filesystem is mounted inside the folders.")

    def check_open_files(self) -> Iterator[Result]:
        if not self._roots:
            return
        held = list(deleted_but_open([root.path for root in self._roots.values()]))
        if not held:
            yield _ok("No visible process holds deleted files open.")
            return
        by_process: Counter[str] = Counter()
        for file in held:
            by_process[file.process] += file.size_bytes
        processes = ", ".join(
            f"{process} ({human_size(size)})" for process, size in by_process.most_common(_MAX_NAMES)
        )
        yield _warning(
            f"{len(held)} deleted files ({human_size(by_process.total())}) still use space. "
            f"Processes hold them open: {processes}.",
            "The space is freed when these processes close the files or exit. Restart them if necessary.",
        )

    def check_logs(self) -> Iterator[Result]:
        config = self._config
        paths = [config.logging.file, config.paths.logs / "jobs"]
        if config.notifications.audit_log.enabled:
            paths += config.notifications.audit_log.files
        refused = sorted({path for path in map(_nearest_existing, paths) if not _can(path, os.W_OK)})
        for path in refused:
            yield _problem(
                f"{path} is not writable for user {os.geteuid()}. Runs fail, or their logs are lost.",
                _give(path),
            )
        if not refused:
            yield _ok(f"Logs are writable below {config.paths.logs}.")

    def check_capacity(self) -> Iterator[Result]:
        budget = Budget.of(self._config.capacity)
        if budget is None or not self._has_ledger:
            return
        held = sum(size for _, size in self._ledger.storage_by_class().values())
        percent = budget.used_percent(held)
        message = f"Jobs use {human_size(held)}, {percent:.1f} % of capacity.max_bytes."
        if percent < budget.warn_percent:
            yield _ok(message)
        else:
            yield _warning(
                message, "Find the biggest jobs with `report`. Shorten the retention, or raise the budget."
            )

    def check_schedule(self) -> Iterator[Result]:
        address = StoreAddress.of(self._config)
        holder, status = find_daemon(address), read_status(address)
        self._has_daemon = holder is not None
        if holder is None:
            yield _warning(
                "No daemon is running.",
                "Start it with `systemctl start eemtcleanupd`. `journalctl -u eemtcleanupd` shows its log. "
                "With cron or a timer you need no daemon: see `crontab -l`, `systemctl list-timers 'eemt*'`.",
            )
            return
        if status is None:
            yield _warning(f"The daemon ({holder}) has not written its status yet.")
            return
        if self._now - status.heartbeat_at > _MAX_HEARTBEAT_AGE:
            yield _problem(
                f"The daemon ({holder}) has not responded since "
                f"{time_with_distance(status.heartbeat_at, self._now)}.",
                "Check with `df -h` whether a network filesystem hangs. "
                "Then restart the daemon: `systemctl restart eemtcleanupd`.",
            )
        elif status.next_run_at is None:
            yield _warning(
                "The daemon is running, but its schedule is off.",
                "Set schedule.enabled to true, or start runs with `clean`.",
            )
        else:
            next_run = time_with_distance(status.next_run_at, self._now)
            yield _ok(f"The daemon is running. The next run is on {next_run}.")
        if status.config_error:
            yield _problem(
                f"The daemon rejected its new configuration: {status.config_error}",
                "Fix the file; `check` shows the errors. The previous configuration is still in effect.",
            )

    def check_locks(self) -> Iterator[Result]:
        run = self._database.holder("run")
        yield _ok("No run holds the lock." if run is None else f"A run is in progress: {run}.")

    def check_runs(self) -> Iterator[Result]:
        run = next(iter(self._ledger.runs(1)), None) if self._has_ledger else None
        if run is None:
            yield _warning(
                "There are no runs yet.",
                "`eemtcleanupd clean --dry-run` shows the first run, and `eemtcleanupd clean` does it.",
            )
            return
        started = time_with_distance(run.started_at, self._now)
        if run.outcome in Outcome.unsuccessful():
            yield _problem(f"The last run, on {started}, failed: {run.error}")
        elif self._now - run.started_at > _MAX_RUN_AGE:
            yield _warning(f"The last run was on {started}.", "Check the schedule above.")
        else:
            yield _ok(f"The last run was on {started}: {run.outcome or 'not finished'}.")
        if failed := [intent for intent in self._ledger.open_intents() if intent.error]:
            jobs = "; ".join(
                f"{printable(intent.job_id)}: {printable(intent.error or '')}"
                for intent in failed[:_MAX_NAMES]
            )
            yield _problem(
                f"{plural(len(failed), 'job')} could not be deleted or restored completely: {jobs}",
                "Remove the cause. Every run tries these jobs again.",
            )

    def check_delivery(self) -> Iterator[Result]:
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
            yield _problem(
                f"Notifier {name} fails ({plural(stats.waiting, 'message')} waiting): {stats.last_error}",
                f"Fix its settings. Then test them: eemtcleanupd notify-test {name}",
            )
        if failing:
            return
        waiting = sum(stats.waiting for stats in stats_by_name.values())
        if waiting and not self._has_daemon:
            unsent = f"{plural(waiting, 'message')} not sent yet."
            yield _warning(unsent, "The daemon or the next run sends them.")
        else:
            yield _ok("Every notifier delivered its last message, or had none to deliver.")

    def check_backups(self) -> Iterator[Result]:
        settings = self._config.backup
        if not settings.enabled:
            return
        path = settings.path
        if not path.exists():
            yield _ok(f"{path} does not exist yet. The first run creates it.")
            return
        folder = BackupFolder(path)
        try:
            with folder.opened():
                count = len(folder.all())
        except BackupError as error:
            yield _problem(str(error), f"{_give(path)}; chmod 700 {shlex.quote(str(path))}")
            return
        if _can(path, os.W_OK | os.X_OK):
            yield _ok(f"{path} contains {count} backups. Verify them with `backup verify`.")
        else:
            uid = os.geteuid()
            yield _problem(f"{path} is not writable for user {uid}.", _give(path))


def _check_permissions(root: Root, *, is_known: bool) -> Result:
    folder, uid = f"{root.name} at {root.path}", os.geteuid()
    if os.fstatvfs(root.fd).f_flag & os.ST_RDONLY:
        return _problem(
            f"{folder} is mounted read-only.", f"mount -o remount,rw {shlex.quote(str(root.path))}"
        )
    if not _can(root.path, os.R_OK | os.W_OK | os.X_OK):
        return _problem(f"{folder} is not writable for user {uid}.", _give(root.path))
    if undeletable := [] if has_file_access() else _undeletable_folders(root):
        return _problem(
            f"User {uid} cannot empty {plural(len(undeletable), 'folder')} of {folder}: "
            f"{_names(undeletable)}. The service can with the drop-in root-files.conf, see SECURITY.md.",
            _give(root.path, "-R"),
        )
    if _is_foreign_trash(root):
        trash = root.path / TRASH_NAME
        return _problem(
            f"{trash} belongs to another user or is writable by others. User {uid} cannot use it. "
            "Was cleanup run as another user? Then its owner can use it too.",
            f"{_give(trash, '-R')}; chmod 700 {shlex.quote(str(trash))}",
        )
    state = "is the folder of the last run" if is_known else "exists"
    return _ok(f"{folder} {state} and is writable.")


def _give(path: Path, option: str = "-h") -> str:
    """Return the command that makes this user, who is the service's, the owner of a path."""
    return f"chown {option} {os.geteuid()} {shlex.quote(str(path))}"


def _can(path: Path, mode: int) -> bool:
    """Return whether a run has these rights: its real group can be another one than its effective group."""
    return os.access(path, mode, effective_ids=True)


def _is_foreign_trash(root: Root) -> bool:
    """Return whether a run of this user would refuse the trash of a root."""
    try:
        status = os.stat(TRASH_NAME, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    is_own = status.st_uid in {os.geteuid(), 0} and not status.st_mode & 0o022
    mode = os.R_OK | os.W_OK | os.X_OK
    return not is_own or not (
        has_file_access() or os.access(TRASH_NAME, mode, dir_fd=root.fd, effective_ids=True)
    )


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _undeletable_folders(root: Root) -> list[str]:
    with os.scandir(root.fd) as entries:
        return [
            entry.name
            for entry in itertools.islice(entries, _MAX_ENTRIES)
            if entry.name != TRASH_NAME
            and entry.is_dir(follow_symlinks=False)
            and not os.access(entry.name, os.W_OK | os.X_OK, dir_fd=root.fd, effective_ids=True)
        ]


def _names(names: Iterable[str]) -> str:
    return ", ".join(printable(name) for name in itertools.islice(names, _MAX_NAMES))
