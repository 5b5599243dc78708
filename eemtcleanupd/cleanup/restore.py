"""Restoring a job's data from the trash or from a backup, as safe against a kill as a run.

The first transaction marks the row as not cleaned, opens the intent and sets the hold.  Recovery puts back
the items of an open intent that are not being deleted.  So from there on either this process or the next run
finishes the restore.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from eemtcleanupd.backup import archive
from eemtcleanupd.backup.folder import BackupFolder
from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.context import RunHooks
from eemtcleanupd.cleanup.recovery import trash_bytes
from eemtcleanupd.cleanup.session import StoreSession, job_table, open_database, open_session
from eemtcleanupd.cleanup.staging import Item
from eemtcleanupd.clock import Clock, unique_stamp
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.copying import require_free_space
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.trash import UNPACKED, artifact_path, deleting_name
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.errors import BackupError, StoreError, TrashError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.formatting import printable, suggested
from eemtcleanupd.model import TRASH_NAME, Artifact, Found, Hold, JobClass, RootName
from eemtcleanupd.policy.ownership import possible_owner_ids
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.privileges import with_file_access
from eemtcleanupd.store.history import AuditLine, LogEntry
from eemtcleanupd.store.intents import PART_BACK, Intent, IntentKind, IntentState
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.values import Row

log = logging.getLogger(__name__)

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was restored, and until when the job is held so that the next run does not clean it again.

    ``held_until`` is None if the job is not held, or held permanently.

    ``not_restored`` has the other artifacts that were asked for, each with the reason.  ``warnings`` name
    attributes of files (modes, extended attributes) that could not be set, and older artifacts that stay.
    """

    job_id: str
    artifacts: tuple[Found, ...]
    held_until: datetime | None
    not_restored: tuple[tuple[Found, str], ...] = ()
    warnings: tuple[str, ...] = ()
    held_permanently: bool = False


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Which job's data to restore, and how.

    ``only`` has labels of artifacts (``results/<id>``), none for all.  With ``hold`` the job is held for its
    retention period, from now on.  ``hooks`` record the restore in the audit log.
    """

    config: Config
    job_id: str
    only: Collection[str]
    hold: bool
    user: str
    hooks: RunHooks
    clock: Clock


def restore(request: RestoreRequest) -> RestoreResult:
    """Move a job's data from the trash back to its place.

    This includes an upload that the job shares with another job in the trash, and what an interrupted run or
    restore left there.  The label of an orphan can stand in place of a job id.

    Raises:
        TrashError: the trash has nothing of the job, an artifact is missing from it, its deletion has
            started, or its place is taken; then nothing has moved.
        LockHeldError, StoreError, RootError, AuditError: the job store cannot be used.
    """
    with _locked_store(request) as store:
        own = [*store.session.ledger.trashed(request.job_id), *store.interrupted_intents()]
        shared = store.shared_uploads()
        orphans = [] if own or shared else store.orphan_intents()
        name = printable(request.job_id)
        if not (own or shared or orphans):
            raise TrashError(
                f"The trash has nothing of job {name}. List its content with `eemtcleanupd trash list`, the "
                "backups with `eemtcleanupd backup list`."
            )
        found_items = [*((intent, intent.items) for intent in (*own, *orphans)), *shared]
        wanted = [
            (intent, [pair for pair in pairs if _is_named(pair[0], request.only)])
            for intent, pairs in found_items
        ]
        older = _drop_older(wanted)
        chosen = [store.split(intent, pairs) for intent, pairs in wanted]
        items = [pair for intent, _ in chosen for pair in intent.items]
        if not items:
            known = ", ".join(printable(found.label) for _, pairs in found_items for found, _ in pairs)
            raise TrashError(f"The trash has no such artifact of job {name}. It has: {known}.")
        store.require_items(items)
        store.require_free_places([found for found, _ in items])
        row = store.row() if shared else None
        # What went with another job has the status of that job.
        status = own[0].status if own else None if row is None else row.job.status
        result = store.restore(status, chosen, "from the trash")
        warnings = [
            f"{printable(found.label)} is in the trash more than once. Only the newest was restored."
            for found in older
        ]
        return replace(result, warnings=tuple(warnings))


def restore_backup(request: RestoreRequest, backups: Sequence[Path]) -> RestoreResult:
    """Restore a job's data from its backups, which are verified first.

    Each artifact comes from the newest backup that has it: an upload that the job shared can be in a later
    one.  What only an older backup has is restored if its place is free.  The backups are unpacked into the
    trash, and one rename moves each artifact to its place.

    Args:
        request: the job, and what to restore.
        backups: at least one, in one folder, oldest first.

    Raises:
        BackupError: a backup is damaged or belongs to another job, or there is no space to unpack it.
        TrashError: the job has no row, is live or in the trash, or its place is taken; nothing has moved.
        LockHeldError, StoreError, RootError, AuditError: the job store cannot be used.
    """
    newest = backups[-1]
    # The user who owns a folder above can put another one in its place: all readings use this one.
    with BackupFolder(newest.parent).opened_for(*(path.name for path in backups)) as folder_fd:
        sources: dict[Found, Path] = {}
        unreadable: list[str] = []
        for path in reversed(backups):
            try:
                head = archive.read_head(path, folder_fd=folder_fd)
            except BackupError as error:
                if path == newest:
                    raise
                unreadable.append(str(error))
                continue
            if head.job_id != request.job_id:
                raise BackupError(
                    f"{path.name} is a backup of job {printable(head.job_id)}, not of job "
                    f"{printable(request.job_id)}."
                )
            known = {found.artifact for found in sources}
            sources |= {
                found: path for found in map(_from_label, head.artifacts) if found.artifact not in known
            }
        with _locked_store(request) as store:
            result = _restore_backups(store, sources, newest, folder_fd)
    return replace(result, warnings=(*result.warnings, *unreadable))


def _restore_backups(
    store: _LockedStore, sources: Mapping[Found, Path], newest: Path, folder_fd: int
) -> RestoreResult:
    request = store.request
    store.require_ended()
    wanted = [found for found in sources if _is_named(found, request.only)]
    if not wanted:
        known = ", ".join(printable(found.label) for found in sources)
        raise BackupError(
            f"The backup has no such artifact of job {printable(request.job_id)}. It has: {known}."
        )
    if not request.only:
        missing = [found for found in wanted if sources[found] == newest or not store.is_in_place(found)]
        wanted = missing or wanted
    heads = {
        path: archive.verify(path, folder_fd=folder_fd).head
        for path in dict.fromkeys(sources[found] for found in wanted)
    }
    store.require_free_places(wanted)
    intent_id = f"{UNPACKED}{unique_stamp(request.clock())}"
    items = tuple((found, f"{intent_id}.{number}") for number, found in enumerate(wanted, start=1))
    of_backups = {path: [each for each in items if sources[each[0]] == path] for path in heads}
    status = next(iter(heads.values())).status
    intent = Intent(intent_id, "", IntentKind.JOB, request.job_id, status, items)
    source = f"from the backup {', '.join(path.name for path in heads)}"
    store.remove_unpacked()  # of a restore that was killed
    try:
        warnings = store.unpack(of_backups, folder_fd)
        result = store.restore(status, [(intent, replace(intent, items=()))], source)
    except BaseException:
        with suppress(StoreError, OSError):  # the first error is the one to report
            store.remove_unpacked()
        raise
    return replace(result, warnings=tuple(warnings))


def _from_label(label: str) -> Found:
    root, _, name = label.partition("/")
    return Found(Artifact(RootName(root), name.rstrip("/")), is_folder=name.endswith("/"))


def _drop_older(wanted: Sequence[tuple[Intent, list[Item]]]) -> list[Found]:
    """Drop the items of artifacts that went into the trash again since; return these artifacts."""
    newest: dict[Artifact, Intent] = {}
    for intent, pairs in sorted(wanted, key=lambda each: each[0].created_at or _LONG_AGO):
        newest.update({found.artifact: intent for found, _ in pairs})
    older = []
    for intent, pairs in wanted:
        older += [found for found, _ in pairs if newest[found.artifact] is not intent]
        pairs[:] = [pair for pair in pairs if newest[pair[0].artifact] is intent]
    return older


@contextmanager
def _locked_store(request: RestoreRequest) -> Iterator[_LockedStore]:
    config = request.config
    with ExitStack() as stack:
        database = open_database(config, stack)
        stack.enter_context(run_lock(database, f"restore {printable(request.job_id)}", request.clock()))
        policy = Policy.from_config(config.retention)
        session = open_session(config, database, job_table(database, config, policy), policy, stack)
        session.create_ledger()
        session.lock_trashes(stack)
        yield _LockedStore(request, session)


@dataclass(frozen=True, slots=True)
class _LockedStore:
    """A locked job store, and the restore that is asked for."""

    request: RestoreRequest
    session: StoreSession

    def interrupted_intents(self) -> list[Intent]:
        """Return what an interrupted run or restore of the job left in the trash and is not being deleted.

        An intent whose artifacts are partly gone keeps these, so that the restore reports them.
        """
        return [
            left
            for intent in self.session.ledger.open_intents()
            if intent.kind is IntentKind.JOB and intent.job_id == self.request.job_id
            if (left := self._left_of(intent)) is not None
        ]

    def _left_of(self, intent: Intent) -> Intent | None:
        left = tuple(pair for pair in intent.items if self._in_trash(*pair) or not self.is_in_place(pair[0]))
        return replace(intent, items=left) if any(self._in_trash(*pair) for pair in left) else None

    def orphan_intents(self) -> list[Intent]:
        """Return the orphan that is named in place of a job, also one that an interrupted run left."""
        label, ledger = self.request.job_id.rstrip("/"), self.session.ledger
        return [
            left
            for intent in (*ledger.trashed(), *ledger.open_intents())
            if intent.kind is IntentKind.ORPHAN and any(f.label.rstrip("/") == label for f, _ in intent.items)
            if (left := intent if intent.state is IntentState.TRASHED else self._left_of(intent)) is not None
        ]

    def row(self) -> Row | None:
        """Return the row of the job."""
        job_id, session = self.request.job_id, self.session
        with session.database.read() as connection:
            return session.jobs.rows(connection, [job_id]).get(job_id)

    def shared_uploads(self) -> list[tuple[Intent, list[Item]]]:
        """Return the uploads of the job that went into the trash with another job, with their intents.

        An upload that is missing from the trash is among them, so that the restore reports it.
        """
        job_id, session, row = self.request.job_id, self.session, self.row()
        if row is None:
            return []
        dem = row.job.dem_filename
        uploads = []
        for intent in session.ledger.trashed():
            pairs = [
                (found, item)
                for found, item in intent.items
                if found.artifact.root is RootName.UPLOADS
                and (found.artifact.name == dem or job_id in possible_owner_ids(found.artifact))
                and not self.is_in_place(found)
            ]
            if pairs and intent.job_id != job_id:
                uploads.append((intent, pairs))
        there = {found for _, pairs in uploads for found, item in pairs if self._in_trash(found, item)}
        shared = []
        for intent, pairs in uploads:
            kept = [pair for pair in pairs if pair[0] not in there or self._in_trash(*pair)]
            if kept:
                shared.append((intent, kept))
        return shared

    def split(self, intent: Intent, wanted: Sequence[Item]) -> tuple[Intent, Intent]:
        """Split an intent into an open one for what is to be put back, and what stays in the trash."""
        rest = tuple(pair for pair in intent.items if pair not in wanted)
        # The items in the trash are named after the intent, so the part that stays there keeps its id.
        opened = replace(
            intent,
            id=f"{intent.id}{PART_BACK}{secrets.token_hex(4)}" if rest else intent.id,
            items=tuple(wanted),
            state=IntentState.OPEN,
            purge_after=None,
            size_bytes=0,
        )
        size = intent.size_bytes
        if wanted and rest:
            size = sum(trash_bytes(self.session, found, item, StopFlag()) for found, item in rest)
        return opened, replace(intent, items=rest, size_bytes=size)

    def is_in_place(self, found: Found) -> bool:
        """Return whether an entry is in the place of an artifact."""
        roots, artifact = self.session.roots, found.artifact
        return artifact.root in roots and roots[artifact.root].has(artifact.name)

    def _in_trash(self, found: Found, item: str) -> bool:
        """Return whether an item is in the trash and holds its artifact."""
        return self.session.in_trash(found.artifact.root, artifact_path(item, found.artifact.name))

    def require_items(self, items: Sequence[Item]) -> None:
        """Refuse, before anything moves, if an item is missing or its deletion has started."""
        reasons = [
            f"{printable(found.label)}: {self._missing_reason(found, item)}"
            for found, item in items
            if not self._in_trash(found, item)
        ]
        if reasons:
            raise TrashError(
                f"Cannot restore {'; '.join(reasons)}. Nothing was restored. Restore the other artifacts "
                f"with --only."
            )

    def _missing_reason(self, found: Found, item: str) -> str:
        if self.session.in_trash(found.artifact.root, deleting_name(item)):
            return "its deletion has started"
        return "it is no longer in the trash"

    def require_free_places(self, artifacts: Iterable[Found]) -> None:
        """Refuse, before anything moves, if another entry is in the place of an artifact."""
        roots = self.session.roots
        for found in artifacts:
            root, label = found.artifact.root, printable(found.label)
            if root not in roots:
                raise TrashError(
                    f"Cannot restore {label}: the folder paths.{root} does not exist. Create it first."
                )
            if roots[root].has(found.artifact.name):
                raise TrashError(
                    f"Cannot restore {label}: it exists already. Move the existing one away first."
                )

    def require_ended(self) -> None:
        """Refuse a job that has no row, is live, or is in the trash, where a killed run can have left it."""
        job_id, name, session = self.request.job_id, printable(self.request.job_id), self.session
        row = self.row()
        if row is None:
            raise TrashError(f"The database has no job {name}, so its data would belong to no job.")
        if session.policy.classify(row.job.status) is JobClass.LIVE:
            raise TrashError(f"Job {name} is {printable(row.job.status)}. Wait until it has ended.")
        if session.ledger.trashed(job_id) or self.interrupted_intents():
            raise TrashError(
                f"Job {name} is in the trash. Restore it with {suggested('trash restore', job_id)}."
            )

    def unpack(self, backups: Mapping[Path, Sequence[Item]], folder_fd: int) -> list[str]:
        """Unpack backups into new items of the trash; return the attributes that could not be set.

        Raises:
            BackupError: that failed, or leaves too little space for the records of the next run.
        """
        items = [item for of_backup in backups.values() for item in of_backup]
        folders: dict[Artifact, int] = {}
        warnings: list[str] = []
        try:
            with ExitStack() as stack:
                for found, item in items:
                    folders[found.artifact] = self.session.trashes[found.artifact.root].create(item)
                    stack.callback(os.close, folders[found.artifact])
                for backup, of_backup in backups.items():
                    own = {found.artifact: folders[found.artifact] for found, _ in of_backup}
                    warnings += _unpack(backup, own, folder_fd)
                    self._require_unpacked(backup, of_backup)
                for folder in folders.values():
                    require_free_space(folder, 0)
        except OSError as error:
            names = ", ".join(path.name for path in backups)
            raise BackupError(f"Cannot unpack {names}: {error.strerror}.") from error
        os.sync()
        return warnings

    def _require_unpacked(self, backup: Path, items: Sequence[Item]) -> None:
        missing = [printable(found.label) for found, item in items if not self._in_trash(found, item)]
        if missing:
            raise BackupError(f"Nothing was restored: {backup.name} has no files of {', '.join(missing)}.")

    def remove_unpacked(self) -> None:
        """Delete what a restore has unpacked and no intent owns; what stays is logged, and runs report it."""
        folders = [
            (trash, deleting_name(item) if is_deleting else item)
            for trash in self.session.trashes.values()
            for item, is_deleting in trash.items()
            if item.startswith(UNPACKED) and not self.session.owns_item(item)
        ]
        if not folders:
            return
        with DeletionPool(1, StopFlag()) as pool:
            for trash, folder in folders:
                for _, place, reason in pool.remove(trash, folder).result().errors:
                    path = trash.root.path / TRASH_NAME / folder / place
                    log.warning("Cannot delete an unpacked file: %s. It is %s.", reason, printable(str(path)))

    def restore(
        self, status: str | None, chosen: Sequence[tuple[Intent, Intent]], source: str
    ) -> RestoreResult:
        """Move items to their places; the row first counts as not cleaned, so that no kill makes it wrong.

        Args:
            status: the status that decides how long the job is held, None for an orphan.
            chosen: intents with the items to move, each with the intent of what stays in the trash.
            source: where the data comes from, for the records.

        Raises:
            TrashError: not one item could be moved.
        """
        request, ledger, jobs = self.request, self.session.ledger, self.session.jobs
        now, job_id = request.clock(), request.job_id
        items = [pair for intent, _ in chosen for pair in intent.items]
        is_job = status is not None
        until = now + self._retention(status) if request.hold and is_job else None
        details: dict[str, object] = {"job_id": printable(job_id), "source": source}
        asked = [printable(found.label) for found, _ in items]
        request.hooks.expect_audit(ledger)
        request.hooks.audit([AuditEntry(now, request.user, "restoring", {**details, "artifacts": asked})])

        def begin(connection: Connection) -> None:
            if is_job:
                jobs.mark_uncleaned(connection, job_id)
            for opened, left in chosen:
                if opened.items:
                    ledger.delete_intents(connection, [left.id])
                    ledger.add_intents(connection, [opened], now)
                    if left.items:
                        ledger.add_intents(connection, [left], now)
            held = ledger.holds(connection, [job_id]).get(job_id)
            if until is not None and (held is None or not held.is_active(until)):
                is_held = held is not None and held.is_active(now)  # then its reason stays
                reason = "" if is_held else f"restored {source}"
                ledger.set_hold(connection, Hold(job_id, reason, request.user, until), now)

        self.session.database.write(begin)
        if not is_job:
            self._touch(items)
        failed = self._move_back(items)
        moved = [pair for pair in items if pair not in failed]
        if not moved:
            reasons = "; ".join(f"{printable(found.label)}: {why}" for (found, _), why in failed.items())
            raise TrashError(f"Cannot restore {reasons}.")
        for trash in self.session.trashes.values():
            trash.sync()
        labels = [printable(found.label) for found, _ in moved]
        details["artifacts"] = labels
        if failed:
            details["not_restored"] = [printable(found.label) for found, _ in failed]
        request.hooks.audit([AuditEntry(request.clock(), request.user, "restored", details)])

        def end(connection: Connection) -> None:
            ledger.delete_intents(connection, [opened.id for opened, _ in chosen if opened.items])
            for opened, _ in chosen:
                # The next run restores these.
                left = tuple(pair for pair in opened.items if pair in failed and self._in_trash(*pair))
                if left:
                    ledger.add_intents(connection, [replace(opened, items=left)], now)
            entry = LogEntry(job_id, status or "", "restored", 0, f"restored {source}: {', '.join(labels)}")
            ledger.add_log(connection, "", [entry], now)
            ledger.add_audit(connection, [AuditLine(job_id, "restored", 0)], request.user, now)
            request.hooks.anchor_audit(ledger, connection)

        self.session.database.write(end)
        not_restored = tuple((found, why) for (found, _), why in failed.items())
        result = RestoreResult(job_id, tuple(found for found, _ in moved), None, not_restored)
        return self._with_hold(result, now) if is_job else result

    def _retention(self, status: str | None) -> timedelta:
        """Return the retention of the job with this status."""
        policy, row = self.session.policy, self.row()
        return policy.retention(policy.classify(status), None if row is None else row.job.workflow_type)

    def _with_hold(self, result: RestoreResult, now: datetime) -> RestoreResult:
        """Add the hold of the job, which can be an older one that lasts longer."""
        with self.session.database.read() as connection:
            hold = self.session.ledger.holds(connection, [result.job_id]).get(result.job_id)
        if hold is None or not hold.is_active(now):
            return result
        return replace(result, held_until=hold.until, held_permanently=hold.until is None)

    def _move_back(self, items: Sequence[Item]) -> dict[Item, str]:
        """Move items to their places; return those that stay in the trash, each with the reason."""
        failed = {}
        for found, item in items:
            try:
                if not self._in_trash(found, item):
                    failed[found, item] = self._missing_reason(found, item)
                elif self.session.trashes[found.artifact.root].restore(item):
                    failed[found, item] = (
                        "another entry has just taken its place. Move it away; the next run restores the rest"
                    )
            except OSError as error:
                failed[found, item] = error.strerror or str(error)
        return failed

    @with_file_access
    def _touch(self, items: Sequence[Item]) -> None:
        """Count the age of an orphan from now on, as the hold does for a job.

        This happens in the trash: in its place, its name can lead to the file of another user at any time.
        """
        now = self.request.clock().timestamp()
        for found, item in items:
            trash_fd = self.session.trashes[found.artifact.root].fd
            # The owner of the store can put a link in place of the item or of the artifact.
            # The move reports what is missing, and renews the ctime of a file of another user.
            with suppress(OSError), ExitStack() as stack:
                path = artifact_path(item, found.artifact.name)
                folder = os.open(path.partition("/")[0], FOLDER_FLAGS, dir_fd=trash_fd)
                stack.callback(os.close, folder)
                entry = os.open(found.artifact.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                stack.callback(os.close, entry)
                status = os.fstat(entry)
                # A file with more names can be one of another user, and every move renews its ctime.
                if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                    os.utime(f"/proc/self/fd/{entry}", (now, now))


def _unpack(backup: Path, folders: Mapping[Artifact, int], folder_fd: int) -> list[str]:
    """Unpack the artifacts of a backup into open folders; return the attributes that could not be set."""
    return archive.unpack(backup, lambda root, name: folders.get(Artifact(root, name)), folder_fd=folder_fd)


def _is_named(found: Found, only: Collection[str]) -> bool:
    """Return whether an artifact is asked for, by its label or by its printable form."""
    label = found.label.rstrip("/")
    return not only or label in only or printable(label) in only
