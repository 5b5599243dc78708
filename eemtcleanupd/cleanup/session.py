"""An open job store: its database, ledger, job table, roots and trashes, and the checks before a run."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sqlalchemy import Table

from eemtcleanupd.abbreviations import MOST_LISTED, complete
from eemtcleanupd.cleanup.other_databases import PRIVATE_FOLDERS, where_to_look
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.filesystem import locate, mounts
from eemtcleanupd.deletion.roots import Root, UploadIndex, check_roots, identity, open_root
from eemtcleanupd.deletion.trash import MARKER_NAME, Trash, is_group, read_marker, write_marker
from eemtcleanupd.errors import JobTableError, NoDatabaseError, RootError, StoreError
from eemtcleanupd.formatting import local_minute, plural, printable, suggested
from eemtcleanupd.model import TRASH_NAME, Hold, RootName
from eemtcleanupd.policy.breakers import table_problem
from eemtcleanupd.policy.ownership import ARCHIVE_SUFFIX, ReservedEntries, is_system_entry
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.mount_check import check_journal
from eemtcleanupd.store.roots import RootRecord
from eemtcleanupd.store.values import Row, zone_named


@dataclass
class StoreSession:
    """What is open of one job store.

    ``has_ledger`` says whether the tables of the ledger exist (a dry run before the first run finds none).
    ``trashes`` is empty until :meth:`lock_trashes`.
    """

    config: Config
    policy: Policy
    database: Database
    jobs: JobTable
    ledger: Ledger
    has_ledger: bool
    roots: Mapping[RootName, Root]
    uploads: UploadIndex
    trashes: dict[RootName, Trash] = field(default_factory=dict)

    def create_ledger(self) -> Set[Table]:
        """Create what is missing of the ledger's tables and of the columns in table ``jobs``.

        Returns:
            The tables that are new.

        Raises:
            StoreError: the database refuses it.
        """
        created = self.ledger.create_tables(self.jobs)
        self.has_ledger = True
        return created

    def lock_trashes(self, stack: ExitStack) -> None:
        """Open the trash of each root and lock it until ``stack`` closes.

        The owner of a root can rename its trash, and put another folder there.  So the marker of the folder
        that is open counts, and from here on no path leads to a trash.

        Raises:
            RootError: a trash is not safe to use, or belongs to another ledger.
            LockHeldError: another run holds a trash.
        """
        known = self.ledger.roots() if self.has_ledger else {}
        for name, root in self.roots.items():
            trash = self.trashes[name] = Trash(root)
            stack.callback(trash.close)
            _require_own_trash(root, trash.marker(), known.get(name), self.ledger)

    @cached_property
    def reserved_entries(self) -> ReservedEntries:
        """Return the entries that no job can own.

        A path is compared by its place on its filesystem, so that a bind mount hides nothing.
        """
        all_mounts = mounts()
        places = {name: locate(root.path, all_mounts) for name, root in self.roots.items()}
        reserved = set()
        for path in {*self.config.paths_in_use()}:
            for own in {path.parent.resolve() / path.name, path.resolve()}:
                for name, place in places.items():
                    if parts := locate(own, all_mounts).inside(place):
                        reserved.add((name, parts))
        return ReservedEntries(reserved)

    @cached_property
    def protected_inodes(self) -> frozenset[tuple[int, int]]:
        """Device and inode of each root, of each path of the configuration, and of all folders above them."""
        paths = {root.path for root in self.roots.values()}
        for path in self.config.paths_in_use():
            paths |= {path.parent.resolve() / path.name, path.resolve()}
        return frozenset(
            filter(None, map(identity, {place for path in paths for place in (path, *path.parents)}))
        )

    def unowned_items(self) -> list[str]:
        """Return the items in the trashes that no intent owns, as labels."""
        return [
            f"{root}/{printable(item)}"
            for root, trash in self.trashes.items()
            for item, _ in trash.items()
            if not item.startswith(".") and not self.owns_item(item)
        ]

    def owns_item(self, folder: str) -> bool:
        """Return whether an intent of this ledger owns a folder of the trash: an item, or that of a group."""
        exists = self.ledger.exists_intent
        return exists(folder) if is_group(folder) else exists(folder.rsplit(".", 1)[0])

    def in_trash(self, root: RootName, item: str) -> bool:
        """Return whether an item is in the trash of a root."""
        return root in self.trashes and self.trashes[root].exists(item)


def open_database(config: Config, stack: ExitStack, busy_timeout_seconds: float | None = None) -> Database:
    """Open the job database until ``stack`` closes.  Without a timeout the configured one applies.

    Raises:
        NoDatabaseError: there is none; the message names other job databases of this machine.
        StoreError: the database cannot be opened.
    """
    address = StoreAddress.of(config)
    try:
        database = address.open(busy_timeout_seconds)
    except NoDatabaseError as error:
        is_private = address.file is not None and address.file.parent in PRIVATE_FOLDERS
        hint = " A service with PrivateTmp= and a container have a /tmp of their own." if is_private else ""
        raise NoDatabaseError(f"{error}{hint} {where_to_look(config)}") from error
    stack.callback(database.close)
    return database


def job_table(
    database: Database, config: Config, policy: Policy | None = None, *, has_parameters: bool = True
) -> JobTable:
    """Return the job table of a database, as the configuration (or another policy) classifies its rows.

    Without ``has_parameters`` it does not read the parameters of jobs, which can be large.

    Raises:
        NoDatabaseError: it has no table ``jobs``; the message names other job databases of this machine.
        StoreError: its table ``jobs`` cannot be used.
    """
    try:
        return JobTable(
            database,
            policy or Policy.from_config(config.retention),
            zone_named(config.database.timezone),
            has_parameters=has_parameters,
        )
    except NoDatabaseError as error:
        raise NoDatabaseError(f"{error} {where_to_look(config)} Correct paths.database.") from error


def open_session(
    config: Config, database: Database, jobs: JobTable, policy: Policy, stack: ExitStack
) -> StoreSession:
    """Open the rest of a job store whose database is open: ledger and roots.

    Raises:
        StoreError: the database cannot be used.
        RootError: a root is missing, replaced, or not safe to delete in.
    """
    ledger = Ledger(database)
    has_ledger = ledger.exists()
    roots = open_roots(config, ledger, stack)
    uploads = stack.enter_context(closing(UploadIndex(roots.get(RootName.UPLOADS))))
    return StoreSession(config, policy, database, jobs, ledger, has_ledger, roots, uploads)


def open_roots(config: Config, ledger: Ledger | None, stack: ExitStack) -> dict[RootName, Root]:
    """Open the roots of a job store and verify that they are the folders of the last run.

    ``temp`` may be absent as long as no run has seen it: the web application creates it for its first job.

    Args:
        config: the effective configuration.
        ledger: knows the folders of the last run; None accepts any folders.
        stack: closes the roots.

    Raises:
        RootError: a root is missing, replaced, belongs to another job database, or is not safe to delete in.
    """
    known = ledger.roots() if ledger is not None and ledger.exists() else {}
    roots: dict[RootName, Root] = {}
    for name in RootName:
        path: Path = getattr(config.paths, name)
        if name is RootName.TEMP and name not in known and not path.exists():
            continue
        roots[name] = open_root(name, path)
        stack.callback(roots[name].close)
    check_roots(list(roots.values()), StoreAddress.of(config).file)
    if ledger is not None:
        for name, root in roots.items():
            if name in known:
                _require_same_folder(root, known[name])
            _require_own_trash(root, read_marker(root), known.get(name), ledger)
    return roots


def _require_same_folder(root: Root, record: RootRecord) -> None:
    """Refuse a folder that is not the one of the last run: an unmounted disk must not look empty.

    A device number can change when a machine restarts.  The inode and the marker in the trash together prove
    that the folder is the same.
    """
    if (root.device, root.inode) == (record.device, record.inode):
        return
    if root.inode == record.inode and read_marker(root) == record.marker:
        return
    raise RootError(
        f"{root.name} at {root.path} is not the folder of the last run ({printable(record.path)}). Is a disk "
        f"not mounted? If you moved or replaced the folder, run `eemtcleanupd roots --accept`."
    )


def _require_own_trash(root: Root, marker: str | None, record: RootRecord | None, ledger: Ledger) -> None:
    """Refuse a trash that belongs to another ledger, or that is gone although the ledger has jobs in it.

    To a job database that is new, empty or another store's, every file here looks like an orphan.
    """
    trash = root.path / TRASH_NAME
    if marker and (record is None or marker != record.marker):
        raise RootError(
            f"The trash {trash} belongs to another job database than {ledger.database_name}, so its jobs own "
            f"these files. Correct paths.database. If this database has taken over the folder, run "
            f"`eemtcleanupd roots --accept`."
        )
    if not marker and record is not None and (lost := _items_of(root.name, ledger)):
        raise RootError(
            f"The trash {trash} was removed or replaced, but it contains "
            f"{plural(lost, 'item')} of cleaned jobs. Put it back. If they are lost, run "
            "`eemtcleanupd roots --accept`."
        )


def _items_of(name: RootName, ledger: Ledger) -> int:
    """Return how many items the ledger has in the trash of a root."""
    intents = [*ledger.open_intents(), *ledger.trashed()]
    return sum(found.artifact.root is name for intent in intents for found, _ in intent.items)


def record_roots(
    ledger: Ledger,
    roots: Mapping[RootName, Root],
    trashes: Mapping[RootName, Trash],
    job_rows: int | None,
) -> list[RootRecord]:
    """Save the identity of the roots, and mark their trashes as those of this ledger.

    ``job_rows`` is how many rows the job table has, None to keep the number of the last run.

    The ledger comes first, so that a kill in between leaves no trash that seems to belong to another one.

    Raises:
        RootError: a marker is not writable.
        StoreError: the database cannot be written.
    """
    known = ledger.roots()
    records = [
        RootRecord(
            name,
            str(root.path),
            root.device,
            root.inode,
            known[name].marker if name in known else secrets.token_hex(16),
            known[name].job_rows if job_rows is None and name in known else job_rows,
        )
        for name, root in roots.items()
    ]
    ledger.save_roots(records)
    for record in records:
        trash = trashes[record.name]
        if trash.marker() != record.marker:
            try:
                write_marker(trash, record.marker)
            except OSError as error:
                path = trash.root.path / TRASH_NAME / MARKER_NAME
                raise RootError(f"Cannot write the marker {path}: {error.strerror}. Remove it.") from error
    return records


def job_table_problem(session: StoreSession, rows: int) -> str | None:
    """Return why the job table, with so many rows, is probably not the right one, or None.

    An operator accepts a small or empty table with ``roots --accept``, which records its number of rows.  A
    run does not record that a table is empty: results can appear before anyone notices a wrong database.
    """
    known = session.ledger.roots().values() if session.has_ledger else ()
    rows_before = max((record.job_rows for record in known if record.job_rows is not None), default=None)
    folders = [] if rows else _job_folders(session)
    problem = table_problem(rows, rows_before, folders)
    if problem is None:
        return None
    places = "" if rows else f" {where_to_look(session.config)} Correct paths.database."
    return (
        f"in job database {printable(session.database.name)}, {problem}{places} If that is intended, run "
        "`eemtcleanupd roots --accept`."
    )


def _job_folders(session: StoreSession) -> list[str]:
    """Return the names in the results folder that only jobs create: folders, and archives of results."""
    return sorted(
        name
        for name, is_folder in root_entries(session.roots[RootName.RESULTS])
        if (is_folder or name.endswith(ARCHIVE_SUFFIX))
        and not is_system_entry(name)
        and not session.reserved_entries.has(RootName.RESULTS, name)
    )


def check_store(config: Config, busy_timeout_seconds: float | None = None) -> None:
    """Check whether a run could start, and change nothing.  Without a timeout the configured one applies.

    Raises:
        StoreError: the database cannot be used, or is not an EEMT job database.
        RootError: a root is missing, replaced, or not safe to delete in.
    """
    with ExitStack() as stack:
        database = open_database(config, stack, busy_timeout_seconds)
        check_journal(database, to_write=True)
        policy = Policy.from_config(config.retention)
        open_session(config, database, job_table(database, config, policy), policy, stack)


def prepare_database(config: Config, before_change: Callable[[], None]) -> None:
    """Add what is missing of this program's columns and tables to the job database, as the first run does.

    Args:
        config: the effective configuration.
        before_change: is called first, unless nothing is missing; if it raises, nothing is added.

    Raises:
        BreakerError: the database is probably not the one of the web interface.
        StoreError, RootError: a run could not start, see :func:`check_store`.
    """
    with ExitStack() as stack:
        database = open_database(config, stack)
        check_journal(database, to_write=True)
        policy = Policy.from_config(config.retention)
        jobs = job_table(database, config, policy)
        session = open_session(config, database, jobs, policy, stack)
        if (problem := job_table_problem(session, jobs.count())) is not None:
            raise JobTableError(f"Refused, nothing was changed: {problem}")
        if jobs.missing_columns or not session.ledger.is_current():
            before_change()
            session.create_ledger()


def find_row(config: Config, job_id: str) -> Row | None:
    """Return the row of a job as it is now, None when there is none.

    Raises:
        StoreError: the database cannot be used.
    """
    with ExitStack() as stack:
        database = open_database(config, stack)
        jobs = job_table(database, config)
        with database.read() as connection:
            return jobs.rows(connection, [job_id]).get(job_id)


def find_job_id(config: Config, given: str) -> str | None:
    """Return the id of the only job that has this id, or whose id starts with it; None if there is none.

    Raises:
        IdError: several ids start with it.
        StoreError: the database cannot be used.
    """
    with ExitStack() as stack:
        database = open_database(config, stack)
        jobs = job_table(database, config)
        with database.read() as connection:
            if not given or given in jobs.rows(connection, [given]):
                return given or None
            ids = jobs.ids_starting_with(connection, given, MOST_LISTED + 1)
            rows = jobs.rows(connection, ids)
    return complete(given, {job_id: _state(rows.get(job_id)) for job_id in ids}, "jobs")


def _state(row: Row | None) -> str:
    if row is None:
        return "changed meanwhile"
    ended = row.job.completed_at
    return f"{row.job.status}, ended {local_minute(ended)}" if ended else row.job.status


def unknown_job(config: Config, given: str) -> str:
    """Return the message for an id, or the start of one, that no row has: where ids are listed."""
    return (
        f"The job database {StoreAddress.of(config)} has no job whose id is {printable(given)} or starts "
        "with it. The web interface and the page Jobs of the dashboard list the ids."
    )


def hold_warning(config: Config, ledger: Ledger, job_id: str) -> str | None:
    """Return why a new hold does not protect the data of its job, None when it does.

    Call this after the hold is set: a run that did not see the hold has left its intent by then.  An
    unreadable job table is therefore a warning and not an error: the hold is in force.
    """
    name = printable(job_id)
    try:
        row = find_row(config, job_id)
    except StoreError as error:
        return f"Cannot check whether the hold of job {name} is in time: {error}"
    if row is None:
        return f"The database has no job {name}. Check the id."
    if any(intent.job_id == job_id for intent in ledger.open_intents()):
        return f"A run had started to clean job {name} and may not have seen the hold. Check the job again."
    if ledger.trashed(job_id):
        return (
            f"Job {name} is in the trash and stays there while it is held. Restore it "
            f"with {suggested('trash restore', job_id)}."
        )
    return f"The data of job {name} has already been cleaned." if row.cleaned else None


def held_jobs(config: Config, ledger: Ledger) -> list[tuple[Hold, bool | None]]:
    """Return all holds, active or not, and whether the job database has the job.

    It is unknown (None) while the job table cannot be read: the holds are in force all the same.
    """
    holds = ledger.all_holds() if ledger.exists() else []
    try:
        jobs = job_table(ledger.database, config, has_parameters=False)
        with ledger.database.read() as connection:
            known = jobs.rows(connection, [hold.job_id for hold in holds])
    except StoreError:
        return [(hold, None) for hold in holds]
    return [(hold, hold.job_id in known) for hold in holds]


def root_entries(root: Root) -> Iterator[tuple[str, bool]]:
    """Yield the names in a root, without the trash, and whether each is a folder."""
    with os.scandir(root.fd) as listing:
        for entry in listing:
            if not entry.name.startswith(TRASH_NAME):
                yield entry.name, entry.is_dir(follow_symlinks=False)
