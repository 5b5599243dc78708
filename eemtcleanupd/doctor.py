"""Check what cleanup needs, and report problems with their fixes.  Changes nothing."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path

from eemtcleanupd import remedies
from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cleanup.ballast import ballast_bytes
from eemtcleanupd.cleanup.inventory import EntryKind, count_orphans
from eemtcleanupd.cleanup.other_databases import PRIVATE_FOLDERS, OtherDatabase, other_databases
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
_DATABASE_PAGE = "docs/how-to/web-interface-database.md"


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
    yield Finding("user", *_check_user(loaded))
    if (user := _other_user_of_service(loaded.config)) is not None:
        yield Finding("user", *_check_as(user, loaded))
        return
    with ExitStack() as stack:
        try:
            database = open_database(loaded.config, stack, 1)
        except NoDatabaseError as error:
            yield Finding("database", *_problem(str(error), _use_other(loaded)))
            return
        except CleanupError as error:
            yield Finding("database", *_problem(str(error)))
            return
        store = _StoreChecks(loaded, database, now, stack)
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
            remedies.set_key(loaded, "dry_run", "false"),
        )


def _use_other(loaded: Loaded) -> str:
    """Return how to use the most likely other job database of which this process can see the file."""
    found = [other for other in other_databases(loaded.config) if Path(other.path).is_file()]
    if not found:
        return ""
    store = loaded.config.paths.results.parent

    def likelihood(other: OtherDatabase) -> tuple[bool, bool, datetime]:
        return other.is_of_store, Path(other.path).is_relative_to(store), other.changed_at

    likely = max(found, key=likelihood)
    return f"If {printable(likely.path)} is right: {_set_database(loaded, likely.path)}"


def _set_database(loaded: Loaded, path: str) -> str:
    return remedies.set_key(loaded, "paths.database", printable(path))


def _check_user(loaded: Loaded) -> Result:
    if (risk := risk_of_root(loaded.config)) is not None:
        return _warning(risk, remedies.set_key(loaded, "run_as", "owner"))
    return _ok(user_of_run())


def _other_user_of_service(config: Config) -> User | None:
    """Return who owns the lock of the store's daemon, None if that is this user or no daemon ever ran."""
    try:
        owner = StoreAddress.of(config).own_file("daemon.lock").lstat().st_uid
    except OSError:
        return None
    return None if owner == os.geteuid() else User.of(owner)


def _check_as(service: User, loaded: Loaded) -> Result:
    return _problem(
        f"The daemon works as user {service}, and this command as user {User.of(os.geteuid())}. What this "
        "user can do says nothing about the daemon, so no more is checked.",
        remedies.run(remedies.program(loaded, f"doctor --run-as {remedies.quoted(service.name)}")),
    )


class _StoreChecks:
    """The checks that need an open database; each yields its findings."""

    def __init__(self, loaded: Loaded, database: Database, now: datetime, stack: ExitStack) -> None:
        self._loaded = loaded
        self._config = loaded.config
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
                _recover(path),
            )
            return
        if warning := check_journal(self._database, to_write=True):
            yield _warning(warning)
        zone = zone_named(self._config.database.timezone)
        jobs = job_table(self._database, self._config)
        file = self._database.file
        users = self._database.sessions() if file is None else users_of(file)
        used_by = ", ".join(users[:_MAX_NAMES]) or "no other process"
        # BEGIN IMMEDIATE succeeds on a read-only file, and creates no journal.
        for place in () if file is None else (file, file.parent):
            if not _can(place, os.W_OK):
                yield _problem(
                    f"{place} is not writable for user {os.geteuid()}, so no run can be recorded.",
                    _make_writable(place),
                )
                return
        try:
            self._database.write(lambda _: None)
        except CleanupError as error:
            yield _problem(str(error), _end_users(users))
            return
        state = "responds and is" if file is None else "is intact and"
        yield _ok(f"{path} {state} writable. It is in use by: {used_by}.")
        if missing := jobs.missing_columns:
            yield _warning(
                f"Table jobs does not have the columns {', '.join(missing)} yet. The first run adds them.",
                "To add them now, for SQL or metrics that need them: " + self._run("doctor --fix"),
            )
        yield self._check_zone(jobs, utc_offset(self._now, zone))

    def _run(self, *commands: str) -> str:
        return remedies.run(*(remedies.program(self._loaded, command) for command in commands))

    def _set(self, key: str, value: object) -> str:
        return remedies.set_key(self._loaded, key, value)

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
                self._set("database.timezone", _zone_of(evidence.application_offset))
                + " If the web interface runs in another zone, use its name instead.",
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
                    "Compare their jobs. If it is the right one: "
                    + self._set("paths.database", printable(other.path))
                    + f" If this process cannot see that file, move it: see {_DATABASE_PAGE}.",
                )
        file = self._database.file
        if file is not None and file.parent in PRIVATE_FOLDERS:
            new = config.paths.results.parent / file.name
            move = f"mv -n {remedies.quoted(file)} {remedies.quoted(new)}"
            link = f"ln -s {remedies.quoted(new)} {remedies.quoted(file)}"
            yield _warning(
                f"A restart of the machine can delete {file}. A service or a container can have its own "
                "folder /tmp.",
                "Stop the web interface and the daemon. "
                + remedies.run(*map(remedies.with_own_rights, (move, link)))
                + f" {self._set('paths.database', printable(str(new)))} See {_DATABASE_PAGE}.",
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
                f"If nobody needs them: {self._set('orphans.delete_after_hours', proposed)} "
                f"It would delete {effect} now.",
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
                "Delete expired jobs and empty the trash: "
                + self._run("clean", "trash purge --yes")
                + " If that is not enough, shorten the retention.",
            )
        else:
            yield _ok(space)

    def check_mounts(self) -> Iterator[Result]:
        if not self._roots:
            return
        if mounts := Blockers.snapshot(self._roots.values()).mounts:
            yield _warning(
                f"Filesystems are mounted inside the folders: {_names(map(str, mounts))}.",
                "A job that contains a mounted filesystem is not cleaned. "
                + remedies.run_as_root(f"umount {' '.join(map(remedies.quoted, mounts[:_MAX_NAMES]))}"),
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
            "The space is freed when they close the files or end. "
            + remedies.run(remedies.end_processes(list(by_process)[:_MAX_NAMES])),
        )

    def check_logs(self) -> Iterator[Result]:
        config = self._config
        logs = [(config.logging.file, "logging.file"), (config.paths.logs / "jobs", "paths.logs")]
        if config.notifications.audit_log.enabled:
            logs += [(path, "notifications.audit_log.path") for path in config.notifications.audit_log.files]
        refused: dict[Path, str] = {}
        for path, key in logs:
            if not _can(existing := _nearest_existing(path), os.W_OK):
                wanted = config.paths.logs if key == "paths.logs" and existing != path else path
                refused.setdefault(existing, remedies.give_log(wanted, key))
        for path, advice in sorted(refused.items()):
            yield _problem(
                f"{path} is not writable for user {os.geteuid()}. Runs fail, or their logs are lost.", advice
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
                message,
                f"{self._set('capacity.max_bytes', 2 * held)} Or shorten the retention. The biggest jobs are "
                f"in `{remedies.program(self._loaded, 'report')}`.",
            )

    def check_schedule(self) -> Iterator[Result]:
        address = StoreAddress.of(self._config)
        holder, status = find_daemon(address), read_status(address)
        self._has_daemon = holder is not None
        if holder is None:
            yield _warning(
                "No daemon is running.",
                f"{remedies.run(remedies.start_daemon(self._loaded))} Its log is in "
                f"{self._config.logging.file}. With cron or a timer you need no daemon.",
            )
            return
        if status is None:
            yield _warning(f"The daemon ({holder}) has not written its status yet.")
            return
        if self._now - status.heartbeat_at > _MAX_HEARTBEAT_AGE:
            yield _problem(
                f"The daemon ({holder}) has not responded since "
                f"{time_with_distance(status.heartbeat_at, self._now)}.",
                "Check whether a network filesystem hangs. Then restart the daemon. "
                + remedies.run(*remedies.restart_daemon(self._loaded)),
            )
        elif status.next_run_at is None:
            yield _warning(
                "The daemon is running, but its schedule is off.",
                self._set("schedule.enabled", "true"),
            )
        else:
            next_run = time_with_distance(status.next_run_at, self._now)
            yield _ok(f"The daemon is running. The next run is on {next_run}.")
        if status.config_error:
            yield _problem(
                f"The daemon rejected its new configuration: {status.config_error}",
                "The previous configuration is still in effect. This command can use the file. Restart the "
                "daemon. " + remedies.run(*remedies.restart_daemon(self._loaded)),
            )

    def check_locks(self) -> Iterator[Result]:
        run = self._database.holder("run")
        yield _ok("No run holds the lock." if run is None else f"A run is in progress: {run}.")

    def check_runs(self) -> Iterator[Result]:
        run = next(iter(self._ledger.runs(1)), None) if self._has_ledger else None
        if run is None:
            yield _warning(
                "There are no runs yet.",
                "The first of these commands shows the first run, and the other one does it. "
                + self._run("clean --dry-run", "clean"),
            )
            return
        started = time_with_distance(run.started_at, self._now)
        if run.outcome in Outcome.unsuccessful():
            yield _problem(
                f"The last run, on {started}, failed: {run.error}", f"Remove the cause. {self._run('clean')}"
            )
        elif self._now - run.started_at > _MAX_RUN_AGE:
            yield _warning(
                f"The last run was on {started}.", f"Check the schedule above. {self._run('clean')}"
            )
        else:
            yield _ok(f"The last run was on {started}: {run.outcome or 'not finished'}.")
        if failed := [intent for intent in self._ledger.open_intents() if intent.error]:
            jobs = "; ".join(
                f"{printable(intent.job_id)}: {printable(intent.error or '')}"
                for intent in failed[:_MAX_NAMES]
            )
            yield _problem(
                f"{plural(len(failed), 'job')} could not be deleted or restored completely: {jobs}",
                f"Remove the cause. Every run tries these jobs again. {self._run('clean')}",
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
                f"Correct its settings. {self._run(f'notify-test {name}', 'clean')}",
            )
        if failing:
            return
        waiting = sum(stats.waiting for stats in stats_by_name.values())
        if waiting and not self._has_daemon:
            unsent = f"{plural(waiting, 'message')} not sent yet."
            yield _warning(unsent, f"The daemon or the next run sends them. {self._run('clean')}")
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
            yield _problem(str(error), remedies.make_private(path))
            return
        if _can(path, os.W_OK | os.X_OK):
            yield _ok(f"{path} contains {count} backups. Verify them with `backup verify`.")
        else:
            uid = os.geteuid()
            yield _problem(f"{path} is not writable for user {uid}.", remedies.make_private(path))


def _check_permissions(root: Root, *, is_known: bool) -> Result:
    folder, uid = f"{root.name} at {root.path}", os.geteuid()
    if os.fstatvfs(root.fd).f_flag & os.ST_RDONLY:
        return _problem(
            f"{folder} is mounted read-only.",
            remedies.run_as_root(f"mount -o remount,rw {remedies.quoted(_mount_point(root.path))}"),
        )
    if not _can(root.path, os.R_OK | os.W_OK | os.X_OK):
        return _problem(f"{folder} is not writable for user {uid}.", remedies.give(root.path))
    if undeletable := [] if has_file_access() else _undeletable_folders(root):
        return _problem(
            f"User {uid} cannot empty {plural(len(undeletable), 'folder')} of {folder}: "
            f"{_names(undeletable)}. The service can with the drop-in root-files.conf, see SECURITY.md.",
            remedies.give(root.path, recursive=True),
        )
    if _is_foreign_trash(root):
        trash = root.path / TRASH_NAME
        return _problem(
            f"{trash} belongs to another user or is writable by others. User {uid} cannot use it. "
            "Was cleanup run as another user? Then its owner can use it too.",
            remedies.make_private(trash),
        )
    state = "is the folder of the last run" if is_known else "exists"
    return _ok(f"{folder} {state} and is writable.")


def _make_writable(path: Path) -> str:
    if path.lstat().st_uid != os.geteuid():
        return remedies.give(path)
    return remedies.run(remedies.with_own_rights(f"chmod u+rwX {remedies.quoted(path)}"))


def _end_users(users: list[str]) -> str:
    """Return how to end the programs that use the database."""
    if not users:
        return "Look for a program that this user cannot see, and for a full disk."
    return f"It is in use by: {', '.join(users)}. If they hang: {remedies.run(remedies.end_processes(users))}"


def _recover(path: str) -> str:
    """Return how to save the readable data of a damaged database: a new file takes its place."""
    old, new = remedies.quoted(path), remedies.quoted(f"{path}.recovered")
    script = (
        # Debian's .recover ends with an error.  A dump of a damaged file ends with a rollback.
        f"sqlite3 {old} .dump | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 {new} && "
        f"chmod --reference={old} {new} && "
        f"mv {old} {remedies.quoted(f'{path}.damaged')} && mv {new} {old}"
    )
    return "Stop every program that uses it. Then restore a copy, or keep its readable data. " + remedies.run(
        remedies.with_own_rights(f"sh -c {remedies.quoted(script)}")
    )


def _zone_of(offset: timedelta) -> str:
    """Return a zone with this UTC offset or, by less than an hour, further west, where jobs seem younger."""
    hours = offset // timedelta(hours=1)
    return "UTC" if hours == 0 else f"Etc/GMT{-hours:+d}"


def _mount_point(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.is_mount())


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
