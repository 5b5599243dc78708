"""What an interrupted run left: finished where deletion had begun, undone where it had not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from eemtcleanupd.cleanup.claims import ClaimedJob, Tools, audit_details
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import has_files_in_place
from eemtcleanupd.deletion.trash import deleting_name
from eemtcleanupd.events import Warned
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Found, Job
from eemtcleanupd.policy.ownership import blocking_claimant
from eemtcleanupd.store.intents import Intent, IntentKind

_UNOWNED_NAMED = 5
_PURGE_PAGE = 100


def recover_intents(tools: Tools, pipeline: Pipeline) -> frozenset[str]:
    """Finish or undo every open intent of earlier runs.

    Returns:
        The ids of jobs that still are in the hands of an open intent; the plan leaves them alone.
    """
    for intent in tools.ledger.open_intents():
        if tools.stop.is_set():
            break
        _recover_one(tools, pipeline, intent)
    pipeline.finish()
    return frozenset(intent.job_id for intent in tools.ledger.open_intents() if intent.job_id)


def _recover_one(tools: Tools, pipeline: Pipeline, intent: Intent) -> None:
    items = [(found, item) for found, item in intent.items if found.artifact.root in tools.trashes]
    doomed = [(f, i) for f, i in items if tools.trashes[f.artifact.root].exists(deleting_name(i))]
    staged = [(f, i) for f, i in items if tools.trashes[f.artifact.root].exists(i)]
    job = _claimed(tools, intent)
    if not doomed:
        pipeline.staging.put_back(job, staged)
        return
    with tools.database.read() as connection:
        claimants = tools.planner.claimants(connection, [found.artifact for found, _ in staged])
    # Who was held or ran again since then has a claim on what is left, as any other job has.
    going = {intent.job_id} if job.marks_job_cleaned else frozenset[str]()
    needed = [
        entry
        for entry in staged
        if blocking_claimant(claimants.get(entry[0].artifact, ()), going) is not None
    ]
    pipeline.staging.restore(needed)
    job.items = doomed + [entry for entry in staged if entry not in needed]
    pipeline.submit(job)


def purge_expired(tools: Tools, pipeline: Pipeline, trashed_before: datetime | None = None) -> None:
    """Delete what has been in the trash for longer than its grace (or since some time), oldest first."""

    def due(limit: int) -> list[Intent]:
        return tools.ledger.expired(tools.clock(), limit, trashed_before=trashed_before)

    stuck: set[str] = set()  # what cannot go now is tried again by the next run
    while not tools.stop.is_set():
        expired = [intent for intent in due(len(stuck) + _PURGE_PAGE) if intent.id not in stuck]
        if not expired:
            return
        purge(tools, pipeline, expired)
        pipeline.finish()
        stuck |= {intent.id for intent in expired} & {intent.id for intent in due(len(stuck) + _PURGE_PAGE)}


def purge(tools: Tools, pipeline: Pipeline, intents: Sequence[Intent]) -> None:
    """Hand what these intents have in the trash to the pipeline for deletion.

    One stays whole as long as another job needs something of it: an upload that a held job shares, say.
    """
    with tools.database.read() as connection:
        claimants = tools.planner.claimants(
            connection, {found.artifact for intent in intents for found, _ in intent.items}
        )
    jobs = []
    for intent in intents:
        job = _claimed(tools, intent)
        needed = [
            f.label for f, _ in intent.items if blocking_claimant(claimants[f.artifact], {intent.job_id})
        ]
        if needed:
            reason = f"{printable(needed[0])} stays in the trash: another job needs it"
            pipeline.stats.skipped(job.job, reason)
            continue
        job.items = [
            (found, item)
            for found, item in intent.items
            if found.artifact.root in tools.trashes and _is_in_trash(tools, found, item)
        ]
        jobs.append(job)
    tools.audit(("purging", audit_details(job)) for job in jobs)
    for job in jobs:
        pipeline.submit(job)


def report_unowned(tools: Tools) -> None:
    """Warn of items in the trash that no intent owns."""
    unowned = [
        f"{root}/{printable(item)}"
        for root, trash in tools.trashes.items()
        for item in _items(trash.items())
        if not tools.ledger.exists_intent(item.rsplit(".", 1)[0])
    ]
    if unowned:
        named = ", ".join(unowned[:_UNOWNED_NAMED]) + (" …" if len(unowned) > _UNOWNED_NAMED else "")
        tools.emit(Warned(f"the trash holds {len(unowned)} items that no run owns: {named}"))


def _items(listing: Iterator[tuple[str, bool]]) -> Iterator[str]:
    return (name for name, _ in listing if not name.startswith("."))


def _is_in_trash(tools: Tools, found: Found, item: str) -> bool:
    trash = tools.trashes[found.artifact.root]
    return trash.exists(item) or trash.exists(deleting_name(item))


def _claimed(tools: Tools, intent: Intent) -> ClaimedJob:
    """Return the job of an intent as it stands now; its row may be gone or have another status by now."""
    job_class = tools.policy.classify(intent.status)
    if intent.kind is IntentKind.ORPHAN:
        name = intent.items[0][0].artifact.name
        return ClaimedJob(intent, Job(id=name, status="orphan"), job_class, None)
    with tools.database.read() as connection:
        row = tools.catalog.rows(connection, [intent.job_id]).get(intent.job_id)
        size = tools.ledger.measured(connection, [intent.job_id]).get(intent.job_id, 0)
        hold = tools.planner.holds(connection, [intent.job_id]).get(intent.job_id)
    if row is None:
        gone = Job(id=intent.job_id, status=intent.status)
        return ClaimedJob(intent, gone, job_class, None, known_size=size, marks_job_cleaned=False)
    same = row.job.status == intent.status and not row.cleaned
    held = hold is not None and hold.is_active(tools.clock())
    as_claimed = same and not held and not has_files_in_place(tools.roots, row.job)
    return ClaimedJob(intent, row.job, job_class, None, known_size=size, marks_job_cleaned=as_claimed)
