"""The inventory of the roots: entries that no row names, jobs whose files are gone, and sizes of new jobs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.planner import find_artifacts
from eemtcleanupd.cleanup.session import StoreSession, root_entries
from eemtcleanupd.deletion.walk import Measured, measure
from eemtcleanupd.events import OrphanFound
from eemtcleanupd.model import Artifact, Found, Job, RootName
from eemtcleanupd.policy.ownership import possible_owner_ids
from eemtcleanupd.policy.retention import TERMINAL
from eemtcleanupd.store.database import TempTablesLostError
from eemtcleanupd.store.inventory import InventoryTables
from eemtcleanupd.store.jobs import Row

_PAGE = 500


@dataclass(frozen=True, slots=True)
class InventoryResult:
    """How many entries no row names, and how many uncleaned terminal jobs have files."""

    orphans: int
    jobs_with_files: int


class Inventory:
    """Compares the roots with the job table.

    ``remove_orphan`` is called for an orphan that nothing changed for ``orphans.delete_after_hours``, and
    returns whether it removed the orphan.  Without it (a dry run) nothing is removed and no size recorded.
    """

    def __init__(
        self,
        run: RunContext,
        session: StoreSession,
        remove_orphan: Callable[[Found], bool] | None = None,
    ) -> None:
        self._run = run
        self._session = session
        self._remove_orphan = remove_orphan
        self._reserved = session.reserved_entries()
        self._now = run.clock()

    def scan(self) -> InventoryResult:
        """Walk all roots once, or again when the connection that has the temporary tables was lost."""
        while True:
            try:
                return self._scan_once()
            except TempTablesLostError:
                continue

    def _scan_once(self) -> InventoryResult:
        tables = InventoryTables(self._session.database, self._session.jobs)
        orphans = 0
        for name in (RootName.RESULTS, RootName.TEMP):
            if name in self._session.roots:
                for page in _pages(self._entries(name)):
                    orphans += self._classify(page, tables)
        if RootName.UPLOADS in self._session.roots:
            orphans += self._classify_uploads(tables)
        return InventoryResult(orphans, self._measure_seen(tables))

    def _entries(self, name: RootName) -> Iterable[Found]:
        for entry, is_folder in root_entries(self._session.roots[name]):
            if self._run.stop.is_set():
                return
            artifact = Artifact(name, entry)
            if artifact not in self._reserved:
                yield Found(artifact, is_folder)

    def _classify(self, page: list[Found], tables: InventoryTables) -> int:
        """Remember the jobs that own these entries, and report the orphans; return how many there are."""
        owners = {found: possible_owner_ids(found.artifact) for found in page}
        with self._session.database.read() as connection:
            rows = self._session.jobs.rows(connection, set(itertools.chain.from_iterable(owners.values())))
        tables.add_seen(rows)
        orphans = [found for found, ids in owners.items() if not any(owner in rows for owner in ids)]
        for orphan in orphans:
            self._report_orphan(orphan)
        return len(orphans)

    def _classify_uploads(self, tables: InventoryTables) -> int:
        is_empty = True
        for page in _pages(self._entries(RootName.UPLOADS)):
            tables.add_uploads([found.artifact.name for found in page])
            is_empty = False
        if is_empty:  # then the scans of the table are not needed
            return 0
        for name, uncleaned, job_id in tables.named_uploads():
            if uncleaned == 1 and job_id is not None:
                tables.add_seen([job_id], self._measure(Artifact(RootName.UPLOADS, name)).bytes)
        orphans = 0
        for names in tables.unnamed_uploads():
            page = [Found(Artifact(RootName.UPLOADS, name), is_folder=False) for name in names]
            orphans += self._classify(page, tables)
        return orphans

    def _report_orphan(self, orphan: Found) -> None:
        size = self._measure(orphan.artifact)
        if self._remove_orphan is not None and self._is_old(size) and self._remove_orphan(orphan):
            return
        self._run.emit(OrphanFound(orphan, size.bytes, removed=False))

    def _is_old(self, size: Measured) -> bool:
        """Return whether nothing in an orphan was modified lately; an unreadable one is never old."""
        hours = self._run.config.orphans.delete_after_hours
        if hours is None or size.errors or self._run.stop.is_set():
            return False
        return self._now - datetime.fromtimestamp(size.newest_mtime, UTC) >= timedelta(hours=hours)

    def _measure(self, artifact: Artifact) -> Measured:
        return measure(self._session.roots[artifact.root], artifact.name, self._run.stop)

    def _measure_seen(self, tables: InventoryTables) -> int:
        """Count the uncleaned terminal jobs that have files; measure those that were never measured."""
        with_files = 0
        is_recording = self._remove_orphan is not None
        with ThreadPoolExecutor(self._run.workers, "measure") as executor:
            for page in tables.seen():
                if self._run.stop.is_set():
                    break
                upload_bytes = dict(page)
                with self._session.database.read() as connection:
                    rows = self._session.jobs.rows(connection, upload_bytes)
                    known = self._session.ledger.measured(connection, list(rows)) if is_recording else {}
                terminal = [row.job for row in rows.values() if self._is_waiting(row)]
                with_files += len(terminal)
                new = [job for job in terminal if job.id not in known]
                if is_recording and new:
                    artifacts = self._artifacts(new, tables)
                    sizes = dict(zip(new, executor.map(self._size, artifacts), strict=True))
                    self._record_sizes(sizes, upload_bytes)
        return with_files

    def _is_waiting(self, row: Row) -> bool:
        return not row.cleaned and self._run.policy.classify(row.job.status) in TERMINAL

    def _artifacts(self, jobs: Sequence[Job], tables: InventoryTables) -> list[list[Found]]:
        """Return the artifacts of each job, without the uploads that rows name: these are counted there.

        An upload can be named by a row and be called ``<id>_*`` too, and others can share it.

        One call for all, in one thread: threads that list the same open folder share its position.
        """
        found = find_artifacts(self._session.roots, [Job(job.id, job.status) for job in jobs])
        uploads = {
            each.artifact.name
            for artifacts in found.values()
            for each in artifacts
            if each.artifact.root is RootName.UPLOADS
        }
        named = {Artifact(RootName.UPLOADS, name) for name in tables.named_by_uncleaned(sorted(uploads))}
        return [[each for each in found[job.id] if each.artifact not in named] for job in jobs]

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

        self._session.database.write(work)


def _pages(found: Iterable[Found]) -> Iterable[list[Found]]:
    iterator = iter(found)
    while page := list(itertools.islice(iterator, _PAGE)):
        yield page
