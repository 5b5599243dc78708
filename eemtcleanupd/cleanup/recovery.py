"""Recovery: finish or undo what an interrupted run left, and purge expired trash."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.context import NullHooks, RunContext
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import Planner, has_files_in_place
from eemtcleanupd.cleanup.session import StoreSession, job_table, open_database, open_session
from eemtcleanupd.cleanup.staging import ClaimedJob
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import UNPACKED, artifact_path, deleting_name, is_group, is_grouped
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
from eemtcleanupd.deletion.truncate import BLOCK_BYTES
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.events import ORPHAN
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import TRASH_NAME, Decision, Found, Job
from eemtcleanupd.policy.ownership import blocking_claimant
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.intents import Intent, IntentKind, IntentState

_PURGE_PAGE = 100


def recover_intents(pipeline: Pipeline) -> frozenset[str]:
    """Finish or undo every open intent of earlier runs.

    Returns:
        The ids of jobs that still have an open intent; the plan skips them.
    """
    ledger = pipeline.session.ledger
    unfinished = ledger.open_intents()
    pipeline.stats.counts.recovered = len(unfinished)
    # Of several jobs that are finished here, none needs a shared upload any more.
    finished = {intent.job_id for intent in unfinished if intent.job_id and _has_begun(pipeline, intent)}
    for intent in unfinished:
        if pipeline.run.stop.is_set():
            break
        _recover(pipeline, intent, finished)
    pipeline.finish()
    return frozenset(intent.job_id for intent in ledger.open_intents() if intent.job_id)


def remove_strays(pipeline: Pipeline) -> None:
    """Remove the folders of groups whose intents are all closed, and what a killed restore had unpacked.

    A killed run or restore can have left an empty group or item, or a run moved something up into a group
    whose deletion had started.
    """
    session = pipeline.session
    for trash in session.trashes.values():
        for folder, is_deleting in list(trash.items()):
            if session.owns_item(folder):
                continue
            if folder.startswith(UNPACKED) or (is_group(folder) and is_deleting):
                pipeline.remove_strays(trash, deleting_name(folder) if is_deleting else folder)
            elif not is_deleting and (is_group(folder) or is_group(folder.rsplit(".", 2)[0])):
                trash.remove_if_empty(folder)


def _has_begun(pipeline: Pipeline, intent: Intent) -> bool:
    """Return whether the deletion of a job had begun, and nothing speaks against finishing it."""
    is_deleting = any(
        pipeline.session.in_trash(found.artifact.root, deleting_name(item)) for found, item in intent.items
    )
    has_begun = is_deleting or _is_deleted(pipeline.session, intent)
    return has_begun and _claimed_job(pipeline, intent).marks_job_cleaned


def _recover(pipeline: Pipeline, intent: Intent, finished: Set[str]) -> None:
    session = pipeline.session
    items = [(found, item) for found, item in intent.items if found.artifact.root in session.trashes]
    deleting = [pair for pair in items if session.in_trash(pair[0].artifact.root, deleting_name(pair[1]))]
    staged = [pair for pair in items if session.in_trash(pair[0].artifact.root, pair[1])]
    job = _claimed_job(pipeline, intent)
    # A hold protects what is left of a job.  If nothing is, the row must not say that its data is there.
    can_be_gone = job.marks_job_cleaned or (
        not (staged or _is_in_place(pipeline, job))
        and _claimed_job(pipeline, intent, although_held=True).marks_job_cleaned
    )
    if not deleting and not (can_be_gone and _is_deleted(session, intent)):
        pipeline.staging.put_back(job, staged)
        return
    with session.database.read() as connection:
        claimants = pipeline.planner.claimants(connection, [found.artifact for found, _ in staged])
    # A job that was held or ran again since the claim needs the rest, like any other job.
    being_cleaned = finished if job.marks_job_cleaned else frozenset[str]()
    needed = [
        pair
        for pair in staged
        if blocking_claimant(claimants.get(pair[0].artifact, ()), being_cleaned) is not None
    ]
    if not pipeline.staging.put_back_needed(job, needed):
        return
    job.items = deleting + [pair for pair in staged if pair not in needed]
    job.marks_job_cleaned = can_be_gone
    pipeline.submit([job])


def _is_in_place(pipeline: Pipeline, job: ClaimedJob) -> bool:
    """Return whether anything that no other job needs is in its place: put back, or restored by a person."""
    session = pipeline.session
    places = [(session.roots.get(found.artifact.root), found.artifact.name) for found, _ in job.intent.items]
    if any(root is None or root.has(name) for root, name in places):
        return True
    (plan,) = pipeline.planner.plan([Decision(job.job, job.job_class, clean=True, reason="")], ())
    return bool(plan.artifacts)


def _is_deleted(session: StoreSession, intent: Intent) -> bool:
    """Return whether an item of a job was deleted, and the run died before it could record that.

    All items are staged before the first one is deleted, so a job with an entry in its place was not staged.
    A job that is to wait in the trash is recorded before, so what is missing of it was gone when it moved.
    """
    if intent.kind is IntentKind.ORPHAN or intent.purge_after is not None:
        return False
    if any(found.artifact.root not in session.trashes for found, _ in intent.items):
        return False
    artifacts = [found.artifact for found, _ in intent.items]
    if any(session.roots[artifact.root].has(artifact.name) for artifact in artifacts):
        return False
    return not all(session.in_trash(found.artifact.root, item) for found, item in intent.items)


def purge_expired(pipeline: Pipeline, trashed_before: datetime | None = None) -> None:
    """Delete trash whose grace period has ended (or that is older than a time), oldest first.

    A purge that a person asked for, with a time, also reports the held jobs that it keeps.
    """
    if trashed_before is not None:
        session, now = pipeline.session, pipeline.run.clock()
        due = session.ledger.expired(now, sys.maxsize, trashed_before=trashed_before, with_held=True)
        held = _held(session, due, now)
        for intent in due:
            if intent.id in held:
                pipeline.stats.skipped(_claimed_job(pipeline, intent).reported_job, held[intent.id])

    def expired(limit: int) -> list[Intent]:
        return pipeline.session.ledger.expired(pipeline.run.clock(), limit, trashed_before=trashed_before)

    stuck: set[str] = set()  # the next run tries these again
    while not pipeline.run.stop.is_set():
        intents = [intent for intent in expired(len(stuck) + _PURGE_PAGE) if intent.id not in stuck]
        if not intents:
            return
        purge(pipeline, intents)
        pipeline.finish()
        left = {intent.id for intent in expired(len(stuck) + _PURGE_PAGE)}
        stuck |= {intent.id for intent in intents} & left


def purge(pipeline: Pipeline, intents: Sequence[Intent]) -> None:
    """Submit the trash of these intents for deletion.

    An intent keeps all its items while another job needs one of them, such as an upload that a held job
    shares.
    """
    session = pipeline.session
    needed = _needed(session, pipeline.planner, intents)
    jobs = []
    for intent in intents:
        job = _claimed_job(pipeline, intent)
        if intent.id in needed:
            pipeline.stats.skipped(job.reported_job, f"it stays in the trash: {needed[intent.id]}")
            continue
        job.items = [
            (found, item)
            for found, item in intent.items
            if session.in_trash(found.artifact.root, item)
            or session.in_trash(found.artifact.root, deleting_name(item))
        ]
        if len(job.items) < len(intent.items) and not intent.is_purging:
            missing = next(found.label for found, item in intent.items if (found, item) not in job.items)
            pipeline.stats.failed(job.job, _missing_message(missing))
            if not pipeline.run.request.forget_missing:
                continue
        jobs.append(job)
    # A row that was reset must not look like a job whose files nobody has counted yet.
    reset = [Decision(job.job, job.job_class, clean=True, reason="") for job in jobs if job.is_row_reset]
    plans = pipeline.planner.plan(reset, ()) if reset else []
    pipeline.mark_before_purge([(plan.job, plan.trashed) for plan in plans if plan.trashed is not None])
    session.database.write(
        lambda connection: session.ledger.begin_purge(connection, [job.intent.id for job in jobs])
    )
    pipeline.run.audit_all(("purging", job.audit_details()) for job in jobs)
    pipeline.submit(jobs)


def _missing_message(label: str) -> str:
    return (
        f"{printable(label)} is not in the trash any more, and no run has deleted it. If it is lost, "
        "`eemtcleanupd trash purge --yes` removes its entry."
    )


def purgeable(session: StoreSession, planner: Planner, intents: Sequence[Intent]) -> list[Intent]:
    """Return those intents whose trash no other job needs."""
    needed = _needed(session, planner, intents)
    return [intent for intent in intents if intent.id not in needed]


def plan_purge(
    config: Config, older_than: timedelta, now: datetime
) -> tuple[list[Intent], list[tuple[Intent, str]]]:
    """Return what a purge at ``now`` deletes from the trash, and what it keeps with the reason for each.

    Raises:
        StoreError, RootError: the job store cannot be used.
    """
    policy = Policy.from_config(config.retention)
    with ExitStack() as stack:
        database = open_database(config, stack)
        session = open_session(config, database, job_table(database, config, policy), policy, stack)
        if not session.has_ledger:
            return [], []
        before = now - older_than
        due = session.ledger.expired(now, sys.maxsize, trashed_before=before, with_held=True)
        planner = Planner(RunContext.reading(config, policy, now, NullHooks()), session)
        reasons = _needed(session, planner, due)
        reasons |= _held(session, due, now)
        kept = [(intent, reasons[intent.id]) for intent in due if intent.id in reasons]
        return [intent for intent in due if intent.id not in reasons], kept


def _held(session: StoreSession, intents: Sequence[Intent], now: datetime) -> dict[str, str]:
    """Return the intents whose job is held, and the reason."""
    with session.database.read() as connection:
        holds = session.ledger.holds(connection, [intent.job_id for intent in intents])
    return {
        intent.id: f"held by {printable(hold.owner)}: {printable(hold.reason)}"
        for intent in intents
        if (hold := holds.get(intent.job_id)) is not None and hold.is_active(now)
    }


def _needed(session: StoreSession, planner: Planner, intents: Sequence[Intent]) -> dict[str, str]:
    """Return the intents with an item that a job needs, and the sentence that says so.

    The job of an intent needs it too if it is not due any more (it runs again, say) and has nothing in its
    place.
    """
    with session.database.read() as connection:
        claimants = planner.claimants(
            connection, {found.artifact for intent in intents for found, _ in intent.items}
        )
    needed = {}
    for intent in intents:
        for found, _ in intent.items:
            root = session.roots.get(found.artifact.root)
            is_in_place = root is not None and root.has(found.artifact.name, in_doubt=False)
            owners = claimants[found.artifact]
            own = {each.job.id for each in owners if is_in_place or planner.is_done(each)} & {intent.job_id}
            if (blocking := blocking_claimant(owners, own)) is not None:
                needed[intent.id] = f"job {printable(blocking.job.id)} needs {printable(found.label)}"
                break
    return needed


def is_being_deleted(session: StoreSession, intent: Intent) -> bool:
    """Return whether a run would finish an open intent, as far as this shows without the lock of the trash.

    What waits for its grace is put back, and so is a job of which everything is in the trash or in place.
    """
    if intent.purge_after is not None or intent.kind is IntentKind.ORPHAN:
        return False
    return not all(
        (root := session.roots.get(found.artifact.root)) is None
        or root.has(found.artifact.name)
        or _is_staged(root, found, item)
        for found, item in intent.items
    )


def is_replaced(session: StoreSession, found: Found, item: str) -> bool:
    """Return whether an item cannot go back, because another entry is in its place."""
    root = session.roots.get(found.artifact.root)
    return root is not None and root.has(found.artifact.name) and _is_staged(root, found, item)


def stay_in_trash(session: StoreSession) -> frozenset[str]:
    """Return the jobs that a run does not put back: it finishes their deletion, or their place is taken."""
    intents = session.ledger.open_intents() if session.has_ledger else []
    return frozenset(
        intent.job_id
        for intent in intents
        if is_being_deleted(session, intent) or any(is_replaced(session, *pair) for pair in intent.items)
    )


def _is_staged(root: Root, found: Found, item: str) -> bool:
    """Return whether the trash of a root has an item with its artifact; False too if it cannot be read."""
    path = artifact_path(item, found.artifact.name)
    try:
        trash_fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
    except OSError:
        return False
    try:
        os.stat(path, dir_fd=trash_fd, follow_symlinks=False)
    except OSError:
        return False
    finally:
        os.close(trash_fd)
    return True


def trash_bytes(session: StoreSession, found: Found, item: str, stop: StopFlag) -> int:
    """Return the size of an item in the trash of a root, whatever its state, 0 if it is not there."""
    root = session.roots.get(found.artifact.root)
    if root is None:
        return 0
    try:
        trash_fd = os.open(TRASH_NAME, FOLDER_FLAGS, dir_fd=root.fd)
    except OSError:
        return 0
    try:
        trash, size = replace(root, fd=trash_fd), 0
        for name in (item, deleting_name(item)):
            measured = measure(trash, name, stop).bytes
            if not is_grouped(item):  # the item itself is a folder of the trash, and not of the job
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=trash_fd, follow_symlinks=False)
                    measured -= status.st_blocks * BLOCK_BYTES
            size += max(0, measured)
        return size
    finally:
        os.close(trash_fd)


def _claimed_job(pipeline: Pipeline, intent: Intent, *, although_held: bool = False) -> ClaimedJob:
    """Return the current job of an intent: its row can be missing or have another status."""
    session = pipeline.session
    job_class = pipeline.run.policy.classify(intent.status)
    if intent.kind is IntentKind.ORPHAN:
        name = intent.items[0][0].artifact.name
        return ClaimedJob(intent, Job(id=name, status=ORPHAN), job_class, None)
    with session.database.read() as connection:
        row = session.jobs.rows(connection, [intent.job_id]).get(intent.job_id)
        size = session.ledger.measured(connection, [intent.job_id]).get(intent.job_id, 0)
        hold = pipeline.planner.holds(connection, [intent.job_id]).get(intent.job_id)
    if row is None:
        removed = Job(id=intent.job_id, status=intent.status)
        return ClaimedJob(intent, removed, job_class, None, known_size=size, marks_job_cleaned=False)
    is_same = row.job.status == intent.status and not row.cleaned and not _ended_again(row.job, intent)
    is_held = not although_held and hold is not None and hold.is_active(pipeline.run.clock())
    as_claimed = is_same and not is_held and not has_files_in_place(session.roots, row.job.id)
    return ClaimedJob(intent, row.job, job_class, None, known_size=size, marks_job_cleaned=as_claimed)


def _ended_again(job: Job, intent: Intent) -> bool:
    """Return whether a job ran again, and ended with the same status, since a run claimed it."""
    ended, claimed = job.completed_at, intent.created_at
    is_open = intent.state is IntentState.OPEN
    return is_open and ended is not None and claimed is not None and ended > claimed
