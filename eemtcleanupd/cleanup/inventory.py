"""The census: entries that no row names, rows whose files are gone, and sizes of what is seen first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.context import Run
from eemtcleanupd.cleanup.planner import find_artifacts, root_entries
from eemtcleanupd.cleanup.preflight import reserved_entries
from eemtcleanupd.cleanup.session import Opened
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import Measured, measure
from eemtcleanupd.events import Emit, OrphanFound
from eemtcleanupd.model import Artifact, Found, Job, RootName
from eemtcleanupd.policy.ownership import possible_owner_ids
from eemtcleanupd.policy.retention import TERMINAL, Policy
from eemtcleanupd.store.database import Database, TempTablesLostError
from eemtcleanupd.store.inventory import InventoryTables
from eemtcleanupd.store.jobs import JobTable, Row
from eemtcleanupd.store.ledger import Ledger

_PAGE = 500


@dataclass(frozen=True, slots=True)
class InventoryResult:
    """How many entries no row names, and how many uncleaned terminal jobs have files."""

    orphans: int
    jobs_with_files: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """Compares roots and table.

    ``remove_orphan`` is called for an orphan that has been untouched for ``orphan_age`` (None: never) and
    returns whether it took it.  With ``ledger`` None (a dry run) sizes are not recorded.
    """

    database: Database
    catalog: JobTable
    ledger: Ledger | None
    roots: Mapping[RootName, Root]
    reserved: frozenset[Artifact]
    policy: Policy
    now: datetime
    emit: Emit
    stop: StopFlag
    workers: int
    orphan_age: timedelta | None
    remove_orphan: Callable[[Found], bool]

    @classmethod
    def of(cls, run: Run, opened: Opened, remove_orphan: Callable[[Found], bool] | None = None) -> Inventory:
        """Return the census of a run; without ``remove_orphan`` (a dry run) it records nothing either."""
        hours = run.config.orphans.delete_after_hours
        return cls(
            database=opened.database,
            catalog=opened.catalog,
            ledger=None if remove_orphan is None else opened.ledger,
            roots=opened.roots,
            reserved=reserved_entries(run.config, opened.roots),
            policy=run.policy,
            now=run.clock(),
            emit=run.emit,
            stop=run.stop,
            workers=run.workers,
            orphan_age=None if hours is None or remove_orphan is None else timedelta(hours=hours),
            remove_orphan=remove_orphan or (lambda _: False),
        )

    def scan(self) -> InventoryResult:
        """Walk all roots once, or again when the connection was lost that remembers what was seen."""
        while True:
            try:
                return self._scan_once()
            except TempTablesLostError:
                continue

    def _scan_once(self) -> InventoryResult:
        tables = InventoryTables(self.database, self.catalog)
        orphans = 0
        for name in (RootName.RESULTS, RootName.TEMP):
            if name in self.roots:
                for page in _pages(self._entries(name)):
                    orphans += self._classify(page, tables)
        if RootName.UPLOADS in self.roots:
            orphans += self._uploads(tables)
        return InventoryResult(orphans, self._measure_seen(tables))

    def _entries(self, name: RootName) -> Iterable[Found]:
        for entry, is_folder in root_entries(self.roots[name]):
            if self.stop.is_set():
                return
            artifact = Artifact(name, entry)
            if artifact not in self.reserved:
                yield Found(artifact, is_folder)

    def _classify(self, page: list[Found], tables: InventoryTables) -> int:
        """Remember the jobs that own these entries, report the entries of nobody; returns how many."""
        owners = {found: possible_owner_ids(found.artifact) for found in page}
        with self.database.read() as connection:
            rows = self.catalog.rows(connection, set(itertools.chain.from_iterable(owners.values())))
        tables.add_seen(rows)
        orphans = [found for found, ids in owners.items() if not any(owner in rows for owner in ids)]
        for orphan in orphans:
            self._report(orphan)
        return len(orphans)

    def _uploads(self, tables: InventoryTables) -> int:
        root = self.roots[RootName.UPLOADS]
        is_empty = True
        for page in _pages(self._entries(RootName.UPLOADS)):
            tables.add_uploads([found.artifact.name for found in page])
            is_empty = False
        if is_empty:  # then the scans of the table can be saved
            return 0
        for name, uncleaned, job_id in tables.named_uploads():
            if uncleaned == 1 and job_id is not None:
                tables.add_seen([job_id], measure(root, name, self.stop).bytes)
        orphans = 0
        for names in tables.unnamed_uploads():
            found = [Found(Artifact(RootName.UPLOADS, name), is_folder=False) for name in names]
            orphans += self._classify(found, tables)
        return orphans

    def _report(self, orphan: Found) -> None:
        measured = measure(self.roots[orphan.artifact.root], orphan.artifact.name, self.stop)
        if self.orphan_age is not None and self._is_old(measured) and self.remove_orphan(orphan):
            return
        self.emit(OrphanFound(orphan, measured.bytes, removed=False))

    def _is_old(self, measured: Measured) -> bool:
        """Tell whether nothing in an orphan was modified lately; one that could not be read whole is not."""
        if self.orphan_age is None or measured.errors or self.stop.is_set():
            return False
        return self.now - datetime.fromtimestamp(measured.newest_mtime, UTC) >= self.orphan_age

    def _measure_seen(self, tables: InventoryTables) -> int:
        """Count the uncleaned terminal jobs that have files; measure those that were never measured."""
        with_files = 0
        with ThreadPoolExecutor(self.workers, "measure") as executor:
            for page in tables.seen():
                if self.stop.is_set():
                    break
                uploads = dict(page)
                with self.database.read() as connection:
                    rows = self.catalog.rows(connection, uploads)
                    known = {} if self.ledger is None else self.ledger.measured(connection, list(rows))
                terminal = [row.job for row in rows.values() if self._is_waiting(row)]
                with_files += len(terminal)
                new = [job for job in terminal if job.id not in known]
                if self.ledger is not None and new:
                    self._record_sizes(dict(zip(new, executor.map(self._size, new), strict=True)), uploads)
        return with_files

    def _is_waiting(self, row: Row) -> bool:
        return not row.cleaned and self.policy.classify(row.job.status) in TERMINAL

    def _size(self, job: Job) -> int:
        own = Job(job.id, job.status)  # without its upload, which others may share
        return sum(
            measure(self.roots[found.artifact.root], found.artifact.name, self.stop).bytes
            for found in find_artifacts(self.roots, [own])[job.id]
        )

    def _record_sizes(self, sizes: Mapping[Job, int], uploads: Mapping[str, int]) -> None:
        ledger = self.ledger
        if ledger is None or self.stop.is_set():
            return

        def work(connection: Connection) -> None:
            for job, own_bytes in sizes.items():
                size = own_bytes + uploads[job.id]
                self.catalog.set_size(connection, job.id, size)
                ledger.set_measured(connection, job.id, self.policy.classify(job.status), size, self.now)

        self.database.write(work)


def _pages(found: Iterable[Found]) -> Iterable[list[Found]]:
    iterator = iter(found)
    while page := list(itertools.islice(iterator, _PAGE)):
        yield page
