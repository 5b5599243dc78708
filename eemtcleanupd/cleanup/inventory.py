"""The inventory of the roots: entries that no row names, jobs whose files are gone, and sizes of new jobs."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeVar

from sqlalchemy import Connection

from eemtcleanupd.batches import batched
from eemtcleanupd.cleanup.context import NullHooks, RunContext
from eemtcleanupd.cleanup.planner import Planner, find_artifacts
from eemtcleanupd.cleanup.session import (
    StoreSession,
    job_table,
    open_database,
    open_session,
    root_entries,
)
from eemtcleanupd.cleanup.staging import stay_reason
from eemtcleanupd.clock import file_time
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.roots import Root, UploadIndex
from eemtcleanupd.deletion.walk import Measured, measure
from eemtcleanupd.errors import RowError
from eemtcleanupd.events import JobTally, Warned
from eemtcleanupd.formatting import printable, shortened
from eemtcleanupd.model import Artifact, Found, Job, RootName
from eemtcleanupd.policy.ownership import (
    invalid_name_reason,
    is_leftover,
    is_system_entry,
    possible_owner_ids,
)
from eemtcleanupd.policy.retention import TERMINAL, Policy
from eemtcleanupd.store.database import Database, TempTablesLostError
from eemtcleanupd.store.inventory import InventoryTables
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.values import Row

_PAGE = 500
_UPLOADS_PAGE = 2000  # an upload has a name, and nothing else
Result = TypeVar("Result")


class EntryKind(StrEnum):
    """What the inventory found besides the artifacts of jobs."""

    ORPHAN = "orphan"
    """No row names it."""
    DUE = "due"
    """An orphan that nothing changed for ``orphans.delete_after_hours``."""
    LEFTOVER = "leftover"
    """All jobs that own it are cleaned; an interrupted run left it behind."""


@dataclass(slots=True)
class RootCensus:
    """The number of entries in a root, and the number and bytes of the orphans that are due."""

    entries: int = 0
    due: int = 0
    due_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InventoryResult:
    """The number of orphans and of uncleaned terminal jobs with files."""

    orphans: int
    jobs_with_files: int


OnEntries = Callable[[Sequence[tuple[Found, int]], EntryKind], None]
"""Receives entries of one kind, with their bytes."""


class Inventory:
    """Compares the roots with the job table.

    ``on_entries`` is called for some orphans or leftovers at a time.  Sizes of jobs that were never measured
    are recorded if ``is_recording``.
    """

    def __init__(
        self,
        run: RunContext,
        session: StoreSession,
        planner: Planner,
        on_entries: OnEntries,
        *,
        is_recording: bool,
    ) -> None:
        self._run = run
        self._session = session
        self._planner = planner
        self._on_entries = on_entries
        self._is_recording = is_recording
        self._reserved = session.reserved_entries
        self._now = run.clock()
        self._census: dict[RootName, RootCensus] = {}

    def scan(self) -> InventoryResult:
        """Walk all roots, and measure the jobs whose files are there."""

        def scan(tables: InventoryTables) -> InventoryResult:
            orphans = self._walk(tables)
            return InventoryResult(orphans, self._measure_seen(tables))

        return self._with_tables(scan)

    def census(self) -> Mapping[RootName, RootCensus]:
        """Walk all roots; jobs do not matter."""
        self._with_tables(self._walk)
        return self._census

    def _with_tables(self, work: Callable[[InventoryTables], Result]) -> Result:
        """Do it once, or again when the connection that has the temporary tables was lost."""
        while True:
            try:
                return work(InventoryTables(self._session.database, self._session.jobs))
            except TempTablesLostError:
                continue

    def _walk(self, tables: InventoryTables) -> int:
        self._census = {name: RootCensus() for name in self._session.roots}
        orphans = 0
        for name in (RootName.RESULTS, RootName.TEMP):
            if name in self._session.roots:
                for page in batched(self._entries(name), _PAGE):
                    found = [Found(Artifact(name, entry), is_folder) for entry, is_folder in page]
                    orphans += self._classify(found, tables)
        if RootName.UPLOADS in self._session.roots:
            orphans += self._classify_uploads(tables)
        return orphans

    def _entries(self, root: RootName) -> Iterable[tuple[str, bool]]:
        """Yield the names in a root that jobs can own, and whether each is a folder."""
        for name, is_folder in root_entries(self._session.roots[root]):
            if self._run.stop.is_set():
                return
            if not self._reserved.has(root, name):
                self._census[root].entries += 1
                yield name, is_folder

    def _classify(self, page: list[Found], tables: InventoryTables) -> int:
        """Remember the jobs that own these entries, handle the others, and return the number of orphans."""
        owners = [possible_owner_ids(found.artifact) for found in page]
        with self._session.database.read() as connection:
            rows = self._session.jobs.rows(connection, set(itertools.chain.from_iterable(owners)))
        tables.add_seen(rows)
        orphans: list[Found] = []
        leftovers: list[Found] = []
        for found, ids in zip(page, owners, strict=True):
            owning = [rows[owner] for owner in ids if owner in rows]
            if not owning:
                orphans.append(found)
            elif all(row.cleaned for row in owning):
                leftovers.append(found)
        self._handle_leftovers(leftovers)
        return self._handle_orphans(orphans)

    def _classify_uploads(self, tables: InventoryTables) -> int:
        is_empty = True
        for entries in batched(self._entries(RootName.UPLOADS), _UPLOADS_PAGE):
            tables.add_uploads([name for name, _ in entries])
            is_empty = False
        if is_empty:  # then the scans of the table are not needed
            return 0
        for rows in batched(tables.referenced_uploads(), _PAGE):
            leftovers: list[Found] = []
            for name, uncleaned, job_id in rows:
                artifact = Artifact(RootName.UPLOADS, name)
                if uncleaned == 1 and job_id is not None:
                    tables.add_seen([job_id], self._measure(artifact).bytes)
                elif uncleaned == 0:
                    leftovers.append(Found(artifact, is_folder=False))
            self._handle_leftovers(leftovers)
        orphans = 0
        for names in tables.unreferenced_uploads():
            page = [Found(Artifact(RootName.UPLOADS, name), is_folder=False) for name in names]
            orphans += self._classify(page, tables)
        return orphans

    def _handle_orphans(self, entries: Iterable[Found]) -> int:
        """Pass on the entries that no row names; return the number of orphans among them."""
        orphans: list[tuple[Found, int]] = []
        due: list[tuple[Found, int]] = []
        for found in entries:
            root, name = self._session.roots[found.artifact.root], found.artifact.name
            # A listing can name an entry again that this run has removed since it began.
            if not is_system_entry(name) and root.has(name):
                size = self._measure(found.artifact)
                (due if self._is_due(size) else orphans).append((found, size.bytes))
        spelled = self._planner.other_spellings([found.artifact for found, _ in due])
        for found, _ in due:
            if (spelling := spelled.get(found.artifact)) is not None:
                self._report_kept(found, _spelling_reason(spelling))
        due = [(found, size) for found, size in due if found.artifact not in spelled]
        for found, size_bytes in due:
            census = self._census[found.artifact.root]
            census.due += 1
            census.due_bytes += size_bytes
        self._pass_on({EntryKind.ORPHAN: orphans, EntryKind.DUE: due})
        return len(orphans) + len(due)

    def _report_kept(self, found: Found, reason: str) -> None:
        if not self._session.ledger.is_acknowledged(found.label, reason):
            self._run.emit(Warned(f"Kept {shortened(printable(found.label))}: {reason}"))

    def _pass_on(self, of_kind: Mapping[EntryKind, Sequence[tuple[Found, int]]]) -> None:
        for kind, entries in of_kind.items():
            if entries:
                self._on_entries(entries, kind)

    def is_due(self, found: Found) -> bool:
        """Return whether a run would delete an orphan that nothing keeps."""
        return self._is_due(self._measure(found.artifact))

    def _is_due(self, size: Measured) -> bool:
        """Return whether nothing in an orphan changed lately; one that is not readable is never due."""
        hours = self._run.config.orphans.delete_after_hours
        if hours is None or size.errors or self._run.stop.is_set():
            return False
        return self._now - file_time(size.changed_at) >= timedelta(hours=hours)

    def _handle_leftovers(self, entries: Sequence[Found]) -> None:
        """Pass on the entries that an interrupted run left: their jobs are all cleaned, they are older."""
        if not entries:
            return
        with self._session.database.read() as connection:
            claimants = self._planner.claimants(connection, [found.artifact for found in entries])
        owners = {claimant.job.id for of_entry in claimants.values() for claimant in of_entry}
        logged = self._session.ledger.cleaned_before(list(owners)) if self._session.has_ledger else {}
        leftovers = []
        for found in entries:
            size = self._measure(found.artifact)
            changed_at = file_time(size.changed_at)
            if not size.errors and is_leftover(claimants.get(found.artifact, ()), changed_at, logged):
                leftovers.append((found, size.bytes))
        if not self._run.stop.is_set():  # else the measurement can be incomplete
            self._pass_on({EntryKind.LEFTOVER: leftovers})

    def _measure(self, artifact: Artifact) -> Measured:
        return measure(self._session.roots[artifact.root], artifact.name, self._run.stop)

    def _measure_seen(self, tables: InventoryTables) -> int:
        """Count the uncleaned terminal jobs that have files; measure those that were never measured."""
        with_files = 0
        with ThreadPoolExecutor(self._run.workers, "measure") as executor:
            for page in tables.seen():
                if self._run.stop.is_set():
                    break
                upload_bytes = dict(page)
                with self._session.database.read() as connection:
                    rows = self._session.jobs.rows(connection, upload_bytes)
                    known = (
                        self._session.ledger.measured(connection, list(rows)) if self._is_recording else {}
                    )
                terminal = [row.job for row in rows.values() if self._is_waiting(row)]
                with_files += len(terminal)
                self._forget_sizes(known.keys() - {job.id for job in terminal})
                new = [job for job in terminal if job.id not in known]
                if self._is_recording and new:
                    artifacts = self._artifacts(new, tables)
                    try:
                        measured = executor.map(self._size, artifacts)
                    except RuntimeError:  # no more threads can be started
                        measured = map(self._size, artifacts)
                    sizes = dict(zip(new, measured, strict=True))
                    self._record_sizes(sizes, upload_bytes)
        if self._is_recording and not self._run.stop.is_set():
            unfinished = {intent.job_id for intent in self._session.ledger.open_intents()}
            for ids in tables.measured_unseen():
                self._forget_sizes(set(ids) - unfinished)
        return with_files

    def _forget_sizes(self, ids: Set[str]) -> None:
        """Forget the measured sizes of jobs whose data is gone, or is in use again."""

        def work(connection: Connection) -> None:
            self._session.ledger.forget_measured(connection, list(ids))
            for job_id in ids:
                self._session.jobs.set_size(connection, job_id, 0)

        if ids:
            self._write_sizes(work, ids, lambda job_id: self._forget_sizes({job_id}))

    def _is_waiting(self, row: Row) -> bool:
        return not row.cleaned and self._run.policy.classify(row.job.status) in TERMINAL

    def _artifacts(self, jobs: Sequence[Job], tables: InventoryTables) -> list[list[Found]]:
        """Return the artifacts of each job that count for it.

        Uploads that rows name are counted there, also if they are called ``<id>_*``.  What can belong to
        several jobs by its name counts for none of them, as a shared upload does.

        One call for all, in one thread: threads that list the same open folder share its position.
        """
        found = find_artifacts(self._session, [Job(job.id, job.status) for job in jobs])
        artifacts = {each.artifact for entries in found.values() for each in entries}
        uploads = sorted(artifact.name for artifact in artifacts if artifact.root is RootName.UPLOADS)
        not_counted = {Artifact(RootName.UPLOADS, name) for name in tables.named_by_uncleaned(uploads)}
        not_counted |= self._of_several(artifacts)
        return [[each for each in found[job.id] if each.artifact not in not_counted] for job in jobs]

    def _of_several(self, artifacts: Iterable[Artifact]) -> set[Artifact]:
        """Return those artifacts that belong to several uncleaned jobs by their names."""
        owners = {artifact: ids for artifact in artifacts if len(ids := possible_owner_ids(artifact)) > 1}
        with self._session.database.read() as connection:
            rows = self._session.jobs.rows(connection, set(itertools.chain.from_iterable(owners.values())))
        uncleaned = {job_id for job_id, row in rows.items() if not row.cleaned}
        return {artifact for artifact, ids in owners.items() if len(uncleaned.intersection(ids)) > 1}

    def _size(self, artifacts: Iterable[Found]) -> int:
        return sum(self._measure(found.artifact).bytes for found in artifacts)

    def _record_sizes(self, sizes: Mapping[Job, int], upload_bytes: Mapping[str, int]) -> None:
        if self._run.stop.is_set():  # the measurement is incomplete
            return

        def work(connection: Connection) -> None:
            for job, own_bytes in sizes.items():
                size = own_bytes + upload_bytes[job.id]
                job_class = self._run.policy.classify(job.status)
                self._session.jobs.set_size(connection, job.id, size)
                self._session.ledger.set_measured(connection, job.id, job_class, size, self._now)

        by_id = {job.id: job for job in sizes}
        self._write_sizes(
            work,
            by_id,
            lambda job_id: self._record_sizes({by_id[job_id]: sizes[by_id[job_id]]}, upload_bytes),
        )

    def _write_sizes(
        self, work: Callable[[Connection], None], ids: Collection[str], alone: Callable[[str], None]
    ) -> None:
        """Write the sizes of jobs; if the database refuses some, ``alone`` writes that of each job."""
        try:
            self._session.database.write(work)
        except RowError as error:
            if len(ids) > 1:
                for job_id in ids:
                    alone(job_id)
                return
            (job_id,) = ids
            self._run.emit(Warned(f"Cannot record the size of job {printable(job_id)}. {error}"))


def count_orphans(
    config: Config, database: Database, ledger: Ledger, roots: Mapping[RootName, Root], now: datetime
) -> Mapping[EntryKind, JobTally]:
    """Count the orphans of a job store, those that the configuration deletes apart.

    Raises:
        StoreError: the database cannot be read.
    """
    policy = Policy.from_config(config.retention)
    uploads = UploadIndex(roots.get(RootName.UPLOADS))
    jobs = job_table(database, config, policy, has_parameters=False)
    session = StoreSession(config, policy, database, jobs, ledger, ledger.exists(), roots, uploads)
    run = RunContext.reading(config, policy, now, NullHooks())
    counts = dict.fromkeys(EntryKind, JobTally())

    def count(entries: Sequence[tuple[Found, int]], kind: EntryKind) -> None:
        size_bytes = sum(size for _, size in entries)
        counts[kind] = JobTally(counts[kind].jobs + len(entries), counts[kind].bytes_freed + size_bytes)

    Inventory(run, session, Planner(run, session), count, is_recording=False).census()
    return counts


def orphan_warning(config: Config, label: str, now: datetime) -> tuple[Found, str | None] | None:
    """Return the orphan at a path such as ``results/old/``, and why runs keep it.

    Returns:
        None if there is no such entry, a row names it, or it belongs to the filesystem.
        The reason is None if the next run deletes it.

    Raises:
        StoreError, RootError: the job store cannot be used.
        OSError: the entry cannot be checked.
    """
    root_name, _, name = label.rstrip("/").partition("/")
    if root_name not in set(RootName) or invalid_name_reason(name) is not None or is_system_entry(name):
        return None
    artifact, policy = Artifact(RootName(root_name), name), Policy.from_config(config.retention)
    with ExitStack() as stack:
        database = open_database(config, stack)
        jobs = job_table(database, config, policy, has_parameters=False)
        session = open_session(config, database, jobs, policy, stack)
        run = RunContext.reading(config, policy, now, NullHooks())
        planner = Planner(run, session)
        with database.read() as connection:
            is_owned = bool(planner.claimants(connection, [artifact])[artifact])
        root = session.roots.get(artifact.root)
        if (
            is_owned
            or root is None
            or not root.has(name)
            or session.reserved_entries.has(artifact.root, name)
        ):
            return None
        is_folder = stat.S_ISDIR(os.stat(name, dir_fd=root.fd, follow_symlinks=False).st_mode)
        found = Found(artifact, is_folder)
        if not Inventory(run, session, planner, lambda *_: None, is_recording=False).is_due(found):
            return found, _NO_ROW
        spelling = planner.other_spellings([artifact]).get(artifact)
        if spelling is not None:
            return found, _spelling_reason(spelling)
        return found, stay_reason(session, run.blockers(session.roots.values()), None, [found])


_NO_ROW = "no row of the job table names it"


def _spelling_reason(spelling: str) -> str:
    return f"the job table has it as {shortened(printable(spelling))}"
