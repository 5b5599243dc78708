"""Taking a job's data back out of the trash, safe to be killed in as a run is.

First one transaction makes the row uncleaned, opens the intent and sets the hold; an open intent whose items
are not being deleted is what recovery puts back, so from there on either this process or the next run
finishes it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from eemtcleanupd.cleanup.guards import Guards
from eemtcleanupd.cleanup.preflight import open_roots
from eemtcleanupd.clock import Clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import Trash, doomed_name
from eemtcleanupd.errors import TrashError
from eemtcleanupd.events import AuditEntry
from eemtcleanupd.model import Found, Hold, RootName
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.catalog import Catalog
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.ledger import Intent, IntentState, Ledger, LogEntry
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.timestamps import zone_named
from eemtcleanupd.units import printable


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back, and until when the job is held so that the next run does not take it again."""

    job_id: str
    artifacts: tuple[Found, ...]
    held_until: datetime | None


def restore(
    config: Config,
    job_id: str,
    *,
    only: Collection[str],
    hold: bool,
    user: str,
    guards: Guards,
    clock: Clock,
) -> Restored:
    """Put a job's data back where it was.

    Args:
        config: the effective configuration.
        job_id: the job.
        only: labels of artifacts (``results/<id>/``) to put back; empty for all.
        hold: whether to keep the job for its retention once more, counted from now.
        user: who asks.
        guards: write it down.
        clock: where the time comes from.

    Raises:
        TrashError: nothing of it is in the trash, its deletion has begun, or something is in its place; then
            nothing has moved.
        LockHeldError, StoreError, RootError, AuditError: the job store cannot be worked on.
    """
    now = clock()
    with ExitStack() as stack:
        database = Database(
            Path(config.paths.database), busy_timeout_seconds=config.database.busy_timeout_seconds
        )
        stack.callback(database.close)
        stack.enter_context(run_lock(database.path, f"restore {printable(job_id)}", now))
        ledger = Ledger(database)
        ledger.create_tables()
        policy = Policy.from_config(config.retention)
        catalog = Catalog(database, policy, zone_named(config.database.timezone))
        roots = open_roots(config, ledger.roots(), stack)
        trashes = {name: Trash(root) for name, root in roots.items()}
        for trash in trashes.values():
            stack.callback(trash.close)
        intents = ledger.trash_of(job_id)
        if not intents:
            raise TrashError(f"nothing of job {printable(job_id)} is in the trash")
        chosen = [_chosen(intent, only) for intent in intents]
        items = [pair for intent, _ in chosen for pair in intent.items]
        if not items:
            known = ", ".join(printable(found.label) for intent in intents for found, _ in intent.items)
            raise TrashError(f"none of that is in the trash; of job {printable(job_id)} there is {known}")
        _insist_on_room(roots, trashes, items)
        status = intents[0].status
        until = now + policy.retention(policy.classify(status), None) if hold else None
        labels = [printable(found.label) for found, _ in items]
        details = {"job_id": printable(job_id), "artifacts": labels}
        guards.audit([AuditEntry(now, user, "restoring", details)])

        def begin(connection: Connection) -> None:
            catalog.mark_uncleaned(connection, job_id)
            for opened, left in chosen:
                if opened.items:
                    ledger.drop_intents(connection, [left.id])
                    ledger.add_intents(connection, [opened], now)
                    if left.items:
                        ledger.add_intents(connection, [left], now)
            held = ledger.holds(connection, [job_id]).get(job_id)
            if until is not None and (held is None or not held.is_active(until)):
                ledger.set_hold(connection, Hold(job_id, "restored from the trash", user, until), now)

        def end(connection: Connection) -> None:
            ledger.drop_intents(connection, [opened.id for opened, _ in chosen if opened.items])
            entry = LogEntry(job_id, status, "restored", 0, "restored " + ", ".join(labels))
            ledger.add_log(connection, "", entry, now)
            ledger.add_audit(connection, job_id=job_id, action="restored", bytes_freed=0, user=user, now=now)

        database.write(begin)
        _move_back(trashes, items)
        for trash in trashes.values():
            trash.sync()
        guards.audit([AuditEntry(clock(), user, "restored", details)])
        database.write(end)
    return Restored(job_id, tuple(found for found, _ in items), until)


def _chosen(intent: Intent, only: Collection[str]) -> tuple[Intent, Intent]:
    """Split an intent into what is to be put back, open, and what stays in the trash."""
    wanted = [pair for pair in intent.items if not only or pair[0].label.rstrip("/") in only]
    rest = tuple(pair for pair in intent.items if pair not in wanted)
    # The items in the trash are named after the intent, so what stays there keeps its id.
    opened = replace(
        intent,
        id=f"{intent.id}.back" if rest else intent.id,
        items=tuple(wanted),
        state=IntentState.OPEN,
        purge_after=None,
        size_bytes=0,
    )
    return opened, replace(intent, items=rest)


def _insist_on_room(
    roots: dict[RootName, Root], trashes: dict[RootName, Trash], items: Sequence[tuple[Found, str]]
) -> None:
    """Refuse before anything moves where something cannot come back."""
    for found, item in items:
        root, label = found.artifact.root, printable(found.label)
        if root not in trashes or not trashes[root].exists(item):
            gone = root in trashes and trashes[root].exists(doomed_name(item))
            why = "its deletion has begun" if gone else "it is not in the trash any more"
            raise TrashError(f"{label} cannot be restored: {why}; --only restores the other artifacts")
        if roots[root].has(found.artifact.name):
            raise TrashError(f"{label} cannot be restored: there is one already; move it away first")


def _move_back(trashes: dict[RootName, Trash], items: Sequence[tuple[Found, str]]) -> None:
    for found, item in items:
        if trashes[found.artifact.root].restore(item):
            label = printable(found.label)
            raise TrashError(
                f"{label} came up in this moment; move it away, and the next run restores the rest"
            )
