"""Checks of the job store: database, folders, jobs, orphans, and what blocks its disk."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

from eemtcleanupd import remedies
from eemtcleanupd.cleanup.inventory import EntryKind, count_orphans
from eemtcleanupd.cleanup.other_databases import PRIVATE_FOLDERS, other_databases
from eemtcleanupd.cleanup.session import (
    StoreSession,
    job_table,
    job_table_problem,
    open_roots,
)
from eemtcleanupd.config import Loaded
from eemtcleanupd.daemon.status import time_with_distance
from eemtcleanupd.deletion.ballast import ballast_bytes
from eemtcleanupd.deletion.blockers import Blockers
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.deletion.open_files import deleted_but_open, users_of
from eemtcleanupd.deletion.roots import Root, UploadIndex
from eemtcleanupd.doctor import findings
from eemtcleanupd.doctor.base import MAX_NAMES, Checks, can
from eemtcleanupd.doctor.findings import NamedCheck, Result
from eemtcleanupd.errors import CleanupError
from eemtcleanupd.formatting import human_size, plural, printable, quoted
from eemtcleanupd.installation import Page
from eemtcleanupd.model import TRASH_NAME, RootName
from eemtcleanupd.policy.breakers import ZoneEvidence, format_offset
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.privileges import has_file_access
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.mount_check import check_journal
from eemtcleanupd.store.values import utc_offset, zone_named

_NEARLY_FULL_FRACTION = 0.95
_MAX_ENTRIES = 10_000
_PROPOSED_ORPHAN_HOURS = 720
_DATABASE_PAGE = Page.DATABASE.reference()


class StoreChecks(Checks):
    """The checks of the database and the folders.  ``stack`` closes the folders."""

    def __init__(self, loaded: Loaded, database: Database, now: datetime, stack: ExitStack) -> None:
        super().__init__(loaded, database, now)
        self._stack = stack
        self._roots: dict[RootName, Root] = {}

    def all(self) -> tuple[NamedCheck, ...]:
        """Return the checks in their order: the later ones use the folders that an earlier one opens."""
        return (
            ("database", self._check_database),
            ("folders", self._check_folders),
            ("jobs", self._check_jobs),
            ("orphans", self._check_orphans),
            ("disk", self._check_disk),
            ("mounts", self._check_mounts),
            ("open files", self._check_open_files),
        )

    def _check_database(self) -> Iterator[Result]:
        path = self._database.name
        if errors := self._database.integrity_errors():
            yield findings.problem(
                f"{path} is damaged: {errors[0]}",
                _recover(path),
            )
            return
        if warning := check_journal(self._database, to_write=True):
            yield findings.warning(warning)
        zone = zone_named(self._config.database.timezone)
        jobs = job_table(self._database, self._config)
        file = self._database.file
        users = self._database.sessions() if file is None else users_of(file)
        used_by = ", ".join(users[:MAX_NAMES]) or "no other process"
        # BEGIN IMMEDIATE succeeds on a read-only file, and creates no journal.
        for place in () if file is None else (file, file.parent):
            if not can(place, os.W_OK):
                yield findings.problem(
                    f"{place} is not writable for user {os.geteuid()}, so no run can be recorded.",
                    _make_writable(place),
                )
                return
        try:
            self._database.write(lambda _: None)
        except CleanupError as error:
            yield findings.problem(str(error), _advice_to_end_processes(users))
            return
        state = "responds and is" if file is None else "is intact and"
        yield findings.ok(f"{path} {state} writable. It is in use by: {used_by}.")
        if missing := jobs.missing_columns:
            yield findings.warning(
                f"Table jobs does not have the columns {', '.join(missing)} yet. The first run adds them.",
                "To add them now, for SQL or metrics that need them: " + self._run("doctor --fix"),
            )
        yield self._check_zone(jobs, utc_offset(self._now, zone))

    def _check_zone(self, jobs: JobTable, our_offset: timedelta) -> Result:
        """Compare the configured zone with the zone that the rows of the web interface imply."""
        name = self._config.database.timezone
        zone = "the zone of this machine" if name == "local" else name
        ours = f"Times without a zone are read in {zone} (now UTC{format_offset(our_offset)})."
        evidence = ZoneEvidence.of(jobs.observed_starts())
        if evidence is None:
            return findings.ok(f"{ours} The UTC offset of the web interface is unknown.")
        if evidence.problem is not None:
            return findings.problem(
                f"{ours} But {evidence.problem}.",
                self._set("database.timezone", _zone_of(evidence.application_offset))
                + " If the web interface runs in another zone, use its name instead.",
            )
        theirs = f"UTC{format_offset(evidence.application_offset)} or further west"
        return findings.ok(
            f"{ours} By its newest {plural(evidence.rows, 'job')}, the web interface uses {theirs}."
        )

    def _check_folders(self) -> Iterator[Result]:
        self._roots = open_roots(self._config, self._ledger, self._stack)
        known = self._ledger.roots() if self._has_ledger else {}
        for root in self._roots.values():
            yield _check_permissions(root, is_known=root.name in known)

    def _check_jobs(self) -> Iterator[Result]:
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
            if (problem := job_table_problem(session, summary.jobs)) is not None:
                yield findings.problem(f"{problem[0].upper()}{problem[1:]}")
                return
        ended = summary.last_job_ended_at
        last = "" if ended is None else f" The last one ended on {time_with_distance(ended, self._now)}."
        yield findings.ok(f"{printable(summary.path)} has {plural(summary.jobs, 'job')}.{last}")
        for other in other_databases(config):
            if other.is_of_store:
                yield findings.warning(
                    f"The web interface seems to use another job database: {other}.",
                    "Compare their jobs. If it is the right one: "
                    + self._set("paths.database", printable(other.path))
                    + f" If this process cannot see that file, move it: see {_DATABASE_PAGE}.",
                )
        file = self._database.file
        if file is not None and file.parent in PRIVATE_FOLDERS:
            new = config.paths.results.parent / file.name
            move = f"mv -n {quoted(file)} {quoted(new)}"
            link = f"ln -s {quoted(new)} {quoted(file)}"
            yield findings.warning(
                f"A restart of the machine can delete {file}. A service or a container can have its own "
                "folder /tmp.",
                "Stop the web interface and the daemon. "
                + remedies.run(*map(remedies.with_own_rights, (move, link)))
                + f" {self._set('paths.database', printable(str(new)))} See {_DATABASE_PAGE}.",
            )

    def _check_orphans(self) -> Iterator[Result]:
        if not self._roots:
            return
        hours = self._config.orphans.delete_after_hours
        proposed = _PROPOSED_ORPHAN_HOURS if hours is None else hours
        orphans = self._config.orphans.model_copy(update={"delete_after_hours": proposed})
        config = self._config.model_copy(update={"orphans": orphans})
        tallies = count_orphans(config, self._database, self._ledger, self._roots, self._now)
        young, due = tallies[EntryKind.ORPHAN], tallies[EntryKind.DUE]
        if not (count := young.jobs + due.jobs):
            yield findings.ok("Every entry of the folders belongs to a job.")
            return
        size = human_size(young.bytes_freed + due.bytes_freed)
        message = f"{plural(count, 'orphan')} ({size}) in the folders: no row of the job table names them."
        effect = f"{due.jobs} of them ({human_size(due.bytes_freed)})"
        if hours is None:
            yield findings.warning(
                f"{message} For example, EEMT keeps the upload when a user deletes a job.",
                f"If nobody needs them: {self._set('orphans.delete_after_hours', proposed)} "
                f"It would delete {effect} now.",
            )
        else:
            yield findings.ok(f"{message} The next run deletes {effect}.")

    def _check_disk(self) -> Iterator[Result]:
        if not self._roots:
            return
        usage = disk_usage(self._roots[RootName.RESULTS].fd)
        reserved = human_size(ballast_bytes(self._config, self._roots.values()))
        space = (
            f"{human_size(usage.free_bytes)} of {human_size(usage.total_bytes)} are free, "
            f"and {reserved} are reserved for runs on a full disk."
        )
        if usage.used_bytes > _NEARLY_FULL_FRACTION * usage.total_bytes:
            yield findings.warning(
                f"The disk of the results folder is nearly full: {space}",
                "Delete expired jobs and empty the trash: "
                + self._run("clean", "trash purge --yes")
                + " If that is not enough, shorten the retention.",
            )
        else:
            yield findings.ok(space)

    def _check_mounts(self) -> Iterator[Result]:
        if not self._roots:
            return
        if mounts := Blockers.snapshot(self._roots.values()).mounts:
            yield findings.warning(
                f"Filesystems are mounted inside the folders: {_names(map(str, mounts))}.",
                "A job that contains a mounted filesystem is not cleaned. "
                + remedies.run_as_root(f"umount {' '.join(map(quoted, mounts[:MAX_NAMES]))}"),
            )
        else:
            yield findings.ok("No filesystem is mounted inside the folders.")

    def _check_open_files(self) -> Iterator[Result]:
        if not self._roots:
            return
        held = list(deleted_but_open([root.path for root in self._roots.values()]))
        if not held:
            yield findings.ok("No visible process holds deleted files open.")
            return
        by_process: Counter[str] = Counter()
        for file in held:
            by_process[file.process] += file.size_bytes
        processes = ", ".join(
            f"{process} ({human_size(size)})" for process, size in by_process.most_common(MAX_NAMES)
        )
        yield findings.warning(
            f"{len(held)} deleted files ({human_size(by_process.total())}) still use space. "
            f"Processes hold them open: {processes}.",
            "The space is freed when they close the files or end. "
            + remedies.run(remedies.end_processes(list(by_process)[:MAX_NAMES])),
        )


def _check_permissions(root: Root, *, is_known: bool) -> Result:
    folder, uid = f"{root.name} at {root.path}", os.geteuid()
    if os.fstatvfs(root.fd).f_flag & os.ST_RDONLY:
        return findings.problem(
            f"{folder} is mounted read-only.",
            remedies.run_as_root(f"mount -o remount,rw {quoted(_mount_point(root.path))}"),
        )
    if not can(root.path, os.R_OK | os.W_OK | os.X_OK):
        return findings.problem(f"{folder} is not writable for user {uid}.", remedies.give(root.path))
    if undeletable := [] if has_file_access() else _undeletable_folders(root):
        return findings.problem(
            f"User {uid} cannot empty {plural(len(undeletable), 'folder')} of {folder}: "
            f"{_names(undeletable)}. The service can empty them if the drop-in root-files.conf is installed. "
            f"See {Page.SECURITY.reference()}.",
            remedies.give(root.path, recursive=True),
        )
    if _is_foreign_trash(root):
        trash = root.path / TRASH_NAME
        return findings.problem(
            f"{trash} belongs to another user or is writable by others. User {uid} cannot use it. "
            "If cleanup ran as another user before, you can also run it as that user again.",
            remedies.make_private(trash),
        )
    state = "is the folder of the last run" if is_known else "exists"
    return findings.ok(f"{folder} {state} and is writable.")


def _make_writable(path: Path) -> str:
    if path.lstat().st_uid != os.geteuid():
        return remedies.give(path)
    return remedies.run(remedies.with_own_rights(f"chmod u+rwX {quoted(path)}"))


def _advice_to_end_processes(users: list[str]) -> str:
    """Return how to end the programs that use the database."""
    if not users:
        return "Check for another user's process that uses the database, and for a full disk."
    return f"It is in use by: {', '.join(users)}. If they hang: {remedies.run(remedies.end_processes(users))}"


def _recover(path: str) -> str:
    """Return how to save the readable data of a damaged database: a new file takes its place."""
    old, new = quoted(path), quoted(f"{path}.recovered")
    script = (
        # Debian's .recover ends with an error.  A dump of a damaged file ends with a rollback.
        f"sqlite3 {old} .dump | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 {new} && "
        f"chmod --reference={old} {new} && "
        f"mv {old} {quoted(f'{path}.damaged')} && mv {new} {old}"
    )
    return "Stop every program that uses it. Then restore a copy, or keep its readable data. " + remedies.run(
        remedies.with_own_rights(f"sh -c {quoted(script)}")
    )


def _zone_of(offset: timedelta) -> str:
    """Return a zone with this UTC offset or, by less than an hour, further west, where jobs seem younger."""
    hours = offset // timedelta(hours=1)
    return "UTC" if hours == 0 else f"Etc/GMT{-hours:+d}"


def _mount_point(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.is_mount())


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
    return ", ".join(printable(name) for name in itertools.islice(names, MAX_NAMES))
