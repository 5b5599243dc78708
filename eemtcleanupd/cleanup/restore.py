"""Taking a job's data back out of the trash or out of a backup, safe to be killed in as a run is.

First one transaction makes the row uncleaned, opens the intent and sets the hold; an open intent whose items
are not being deleted is what recovery puts back, so from there on either this process or the next run
finishes it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from eemtcleanupd.backup import archive
from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cleanup.hooks import RunHooks
from eemtcleanupd.cleanup.preflight import open_roots, open_trashes
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash, deleting_name
from eemtcleanupd.errors import BackupError, TrashError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import TRASH_NAME, Artifact, Found, Hold, JobClass, RootName
from eemtcleanupd.policy.ownership import possible_owner_ids
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.history import AuditLine, LogEntry
from eemtcleanupd.store.intents import PART_BACK, Intent, IntentKind, IntentState
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.timestamps import zone_named

_UNPACKED: Final = "backup-"


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What came back, and until when the job is held so that the next run does not take it again."""

    job_id: str
    artifacts: tuple[Found, ...]
    held_until: datetime | None


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Who puts a job's data back, and how.

    ``only`` has labels of artifacts (``results/<id>``), none for all; with ``hold`` the job is kept for its
    retention once more, counted from now; ``guards`` write it down.
    """

    config: Config
    job_id: str
    only: Collection[str]
    hold: bool
    user: str
    guards: RunHooks
    clock: Clock


def restore(request: RestoreRequest) -> RestoreResult:
    """Put a job's data back from the trash to where it was.

    With it come an upload that it shares with another job in the trash, and what an interrupted run or
    restoring left there.  An entry of no job is named by its label in place of a job.

    Raises:
        TrashError: nothing of it is in the trash, its deletion has begun, or something is in its place; then
            nothing has moved.
        LockHeldError, StoreError, RootError, AuditError: the job store cannot be worked on.
    """
    with _opened(request) as store:
        intents = [
            *store.ledger.trashed(request.job_id),
            *store.interrupted_intents(),
        ] or store.orphan_intents()
        shared = store.shared_uploads()
        if not intents and not shared:
            raise TrashError(f"nothing of job {printable(request.job_id)} is in the trash")
        chosen = [_split_intent(intent, request.only) for intent in intents]
        chosen += [
            _split_intent(intent, labels)
            for intent, labels in shared
            if not request.only or labels <= set(request.only)
        ]
        items = [pair for intent, _ in chosen for pair in intent.items]
        if not items:
            known = ", ".join(printable(found.label) for intent in intents for found, _ in intent.items)
            raise TrashError(
                f"none of that is in the trash; of job {printable(request.job_id)} there is {known}"
            )
        store.require_items(items)
        store.require_free_places([found for found, _ in items])
        return store.bring_back(chosen[0][0].status, chosen, "from the trash")


def restore_backup(request: RestoreRequest, backup: Path) -> RestoreResult:
    """Put a job's data back from a backup, which is verified first.

    It is unpacked in the trash, and moved to its place by one rename for each artifact, as from the trash.

    Raises:
        BackupError: the backup is damaged or another job's, or there is no room for what is in it.
        TrashError: the job's row is gone, the job is live or in the trash, or something is in its place; then
            nothing has moved.
        LockHeldError, StoreError, RootError, AuditError: the job store cannot be worked on.
    """
    folder = BackupFolder(backup.parent)
    folder.require_safe(backup.parent)
    folder.require_safe(backup)
    name = printable(request.job_id)
    with _opened(request) as store:
        head = archive.verify(backup).head
        if head.job_id != request.job_id:
            raise BackupError(f"{backup.name} is a backup of job {printable(head.job_id)}")
        store.require_ended()
        wanted = [found for found in map(_labelled, head.artifacts) if _is_named(found, request.only)]
        if not wanted:
            known = ", ".join(map(printable, head.artifacts))
            raise BackupError(f"none of that is in the backup; of job {name} there is {known}")
        store.require_free_places(wanted)
        intent_id = f"{_UNPACKED}{request.clock():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        items = tuple((found, f"{intent_id}.{at}") for at, found in enumerate(wanted, start=1))
        store.unpack(backup, items)
        intent = Intent(intent_id, "", IntentKind.JOB, request.job_id, head.status, items)
        return store.bring_back(
            head.status, [(intent, replace(intent, items=()))], f"from the backup {backup.name}"
        )


def _labelled(label: str) -> Found:
    root, _, name = label.partition("/")
    return Found(Artifact(RootName(root), name.rstrip("/")), is_folder=name.endswith("/"))


@contextmanager
def _opened(request: RestoreRequest) -> Iterator[_Store]:
    config = request.config
    with ExitStack() as stack:
        database = StoreAddress.of(config).open()
        stack.callback(database.close)
        stack.enter_context(run_lock(database, f"restore {printable(request.job_id)}", request.clock()))
        ledger = Ledger(database)
        ledger.create_tables()
        policy = Policy.from_config(config.retention)
        catalog = JobTable(database, policy, zone_named(config.database.timezone))
        catalog.add_columns()
        roots = open_roots(config, ledger.roots(), stack)
        trashes = open_trashes(roots, stack)
        yield _Store(request, database, ledger, catalog, policy, roots, trashes)


@dataclass(frozen=True, slots=True)
class _Store:
    """A job store that nobody else works on."""

    request: RestoreRequest
    database: Database
    ledger: Ledger
    catalog: JobTable
    policy: Policy
    roots: Mapping[RootName, Root]
    trashes: Mapping[RootName, Trash]

    def interrupted_intents(self) -> list[Intent]:
        """Return what an interrupted run, or restoring, of the job left in the trash and is not lost yet."""
        found = []
        for intent in self.ledger.open_intents():
            if intent.kind is IntentKind.JOB and intent.job_id == self.request.job_id:
                left = tuple(
                    pair for pair in intent.items if self._in_trash(*pair) or self._is_deleting(*pair)
                )
                if any(self._in_trash(*pair) for pair in left):
                    found.append(replace(intent, items=left))
        return found

    def orphan_intents(self) -> list[Intent]:
        """Return the entry of no job that is named instead of one."""
        label = self.request.job_id.rstrip("/")
        return [
            intent
            for intent in self.ledger.trashed()
            if intent.kind is IntentKind.ORPHAN and any(f.label.rstrip("/") == label for f, _ in intent.items)
        ]

    def shared_uploads(self) -> list[tuple[Intent, set[str]]]:
        """Return the uploads of the job that went into the trash with another one, as intents and labels."""
        job_id = self.request.job_id
        with self.database.read() as connection:
            row = self.catalog.rows(connection, [job_id]).get(job_id)
        if row is None:
            return []
        dem = row.job.dem_filename
        uploads = []
        for intent in self.ledger.trashed():
            labels = {
                found.label.rstrip("/")
                for found, item in intent.items
                if found.artifact.root is RootName.UPLOADS
                and (found.artifact.name == dem or job_id in possible_owner_ids(found.artifact))
                and self._in_trash(found, item)
                and not self.roots[RootName.UPLOADS].has(found.artifact.name)
            }
            if labels and intent.job_id != job_id:
                uploads.append((intent, labels))
        return uploads

    def _in_trash(self, found: Found, item: str) -> bool:
        root = found.artifact.root
        return root in self.trashes and self.trashes[root].exists(item)

    def _is_deleting(self, found: Found, item: str) -> bool:
        return self._in_trash(found, deleting_name(item))

    def require_items(self, items: Sequence[tuple[Found, str]]) -> None:
        """Refuse before anything moves where an item is gone, or on its way."""
        for found, item in items:
            if not self._in_trash(found, item):
                doomed = self._is_deleting(found, item)
                why = "its deletion has begun" if doomed else "it is not in the trash any more"
                raise TrashError(
                    f"{printable(found.label)} cannot be restored: {why}; --only restores the other artifacts"
                )

    def require_free_places(self, artifacts: Iterable[Found]) -> None:
        """Refuse before anything moves where something is in the place."""
        for found in artifacts:
            root, label = found.artifact.root, printable(found.label)
            if root not in self.roots:
                raise TrashError(f"{label} cannot be restored: there is no folder paths.{root}")
            if self.roots[root].has(found.artifact.name):
                raise TrashError(f"{label} cannot be restored: there is one already; move it away first")

    def require_ended(self) -> None:
        """Refuse a job that has no row, is live, or lies in the trash."""
        job_id, name = self.request.job_id, printable(self.request.job_id)
        with self.database.read() as connection:
            row = self.catalog.rows(connection, [job_id]).get(job_id)
        if row is None:
            raise TrashError(f"there is no job {name} in the database, so its data would belong to nobody")
        if self.policy.classify(row.job.status) is JobClass.LIVE:
            raise TrashError(f"job {name} is {printable(row.job.status)}: wait until it has ended")
        if self.ledger.trashed(job_id):
            raise TrashError(f"job {name} is in the trash: `trash restore` brings it back, `trash purge` not")

    def unpack(self, backup: Path, items: Sequence[tuple[Found, str]]) -> None:
        """Unpack a backup into new items of the trash; they are removed again when that fails."""
        self._remove_leftovers()
        places = {found.artifact: self._path(found.artifact.root, item) for found, item in items}
        try:
            for place in places.values():
                place.mkdir(mode=0o700)
            archive.unpack(backup, lambda root, name: places.get(Artifact(root, name)))
        except BaseException as error:
            for place in places.values():
                shutil.rmtree(place, ignore_errors=True)
            if isinstance(error, OSError):
                raise BackupError(f"{backup.name} cannot be unpacked: {error.strerror}") from error
            raise
        os.sync()

    def _remove_leftovers(self) -> None:
        """Remove what an unpacking left that was killed: no intent owns it."""
        for root, trash in self.trashes.items():
            for item, _ in list(trash.items()):
                if item.startswith(_UNPACKED) and not self.ledger.exists_intent(item.rsplit(".", 1)[0]):
                    shutil.rmtree(self._path(root, item), ignore_errors=True)

    def _path(self, root: RootName, item: str) -> Path:
        return self.roots[root].path / TRASH_NAME / item

    def bring_back(self, status: str, chosen: Sequence[tuple[Intent, Intent]], whence: str) -> RestoreResult:
        """Move items to their places: the row first counts as not cleaned, so that no kill makes it a lie."""
        request, ledger, catalog = self.request, self.ledger, self.catalog
        now, job_id = request.clock(), request.job_id
        items = [pair for intent, _ in chosen for pair in intent.items]
        is_job = all(opened.kind is IntentKind.JOB for opened, _ in chosen)
        holding = request.hold and is_job
        until = now + self.policy.retention(self.policy.classify(status), None) if holding else None
        labels = [printable(found.label) for found, _ in items]
        details = {"job_id": printable(job_id), "artifacts": labels, "source": whence}
        request.guards.audit([AuditEntry(now, request.user, "restoring", details)])

        def begin(connection: Connection) -> None:
            if is_job:
                catalog.mark_uncleaned(connection, job_id)
            for opened, left in chosen:
                if opened.items:
                    ledger.delete_intents(connection, [left.id])
                    ledger.add_intents(connection, [opened], now)
                    if left.items:
                        ledger.add_intents(connection, [left], now)
            held = ledger.holds(connection, [job_id]).get(job_id)
            if until is not None and (held is None or not held.is_active(until)):
                ledger.set_hold(connection, Hold(job_id, f"restored {whence}", request.user, until), now)

        def end(connection: Connection) -> None:
            ledger.delete_intents(connection, [opened.id for opened, _ in chosen if opened.items])
            entry = LogEntry(job_id, status, "restored", 0, f"restored {whence}: {', '.join(labels)}")
            ledger.add_log(connection, "", [entry], now)
            ledger.add_audit(connection, [AuditLine(job_id, "restored", 0)], request.user, now)

        self.database.write(begin)
        self._move_back(items)
        if not is_job:
            self._touch(items)
        for trash in self.trashes.values():
            trash.sync()
        request.guards.audit([AuditEntry(request.clock(), request.user, "restored", details)])
        self.database.write(end)
        return RestoreResult(job_id, tuple(found for found, _ in items), until)

    def _move_back(self, items: Sequence[tuple[Found, str]]) -> None:
        for found, item in items:
            if self.trashes[found.artifact.root].restore(item):
                raise TrashError(
                    f"{printable(found.label)} came up in this moment; move it away, and the next run "
                    f"restores the rest"
                )

    def _touch(self, items: Sequence[tuple[Found, str]]) -> None:
        """Let the age of an entry of no job count from now, as the hold does it for a job."""
        now = self.request.clock().timestamp()
        for found, _ in items:
            root = self.roots[found.artifact.root]
            os.utime(found.artifact.name, (now, now), dir_fd=root.fd, follow_symlinks=False)


def _is_named(found: Found, only: Collection[str]) -> bool:
    """Tell whether an artifact is asked for, by its label or as it is printed."""
    label = found.label.rstrip("/")
    return not only or label in only or printable(label) in only


def _split_intent(intent: Intent, only: Collection[str]) -> tuple[Intent, Intent]:
    """Split an intent into what is to be put back, open, and what stays in the trash."""
    wanted = [pair for pair in intent.items if _is_named(pair[0], only)]
    rest = tuple(pair for pair in intent.items if pair not in wanted)
    # The items in the trash are named after the intent, so what stays there keeps its id.
    opened = replace(
        intent,
        id=f"{intent.id}{PART_BACK}{secrets.token_hex(2)}" if rest else intent.id,
        items=tuple(wanted),
        state=IntentState.OPEN,
        purge_after=None,
        size_bytes=0,
    )
    return opened, replace(intent, items=rest)
