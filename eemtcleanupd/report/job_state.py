"""The state of one job's data: kept until when and why, cleaned when, or in the trash; changes nothing."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime

from eemtcleanupd.cleanup.context import RunContext, RunHooks
from eemtcleanupd.cleanup.planner import Planner
from eemtcleanupd.cleanup.recovery import stay_in_trash
from eemtcleanupd.cleanup.session import job_table, open_database, open_session
from eemtcleanupd.cleanup.staging import stay_reason
from eemtcleanupd.config import Config
from eemtcleanupd.model import Acknowledgement, Hold, JobClass
from eemtcleanupd.policy.ownership import Claimant
from eemtcleanupd.policy.retention import Policy, decide, kept_until
from eemtcleanupd.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job's data is, and for how long.  Times are aware, in UTC.

    Attributes:
        why: the reason for which the next run keeps or cleans the job, or what the run that cleaned it did.
        kept_until: the end of its retention and of its hold; None if it has none, or was cleaned.
        cleaned_at: when its data was cleaned; None if it was not, or the time in its row is invalid.
        size_bytes: what its data needs, or needed before it was cleaned; None if nothing has measured it.
        purge_after: when its data is deleted from the trash, where it waits; None if nothing of it is there.
        hold: the active hold.
        would_clean: whether the next run cleans the job.
        is_warned_of: whether runs warn that they keep the job for this reason.
        acknowledgement: who has acknowledged this warning, so that runs only count it; None if nobody has.
        shared: the uploads that stay with other jobs when this one goes; empty unless it was looked for.
    """

    job_id: str
    status: str
    cleaned: bool
    why: str
    kept_until: datetime | None
    cleaned_at: datetime | None
    size_bytes: int | None
    purge_after: datetime | None
    hold: Hold | None
    would_clean: bool
    is_warned_of: bool
    acknowledgement: Acknowledgement | None
    shared: tuple[str, ...]


def job_state(
    config: Config, job_id: str, hooks: RunHooks, now: datetime, *, is_thorough: bool = False
) -> JobState | None:
    """Return the state of a job at ``now``, or None if the database has no such job.

    With ``is_thorough`` an expired job is checked like in a dry run: whether it is still in use, and which
    other jobs need its uploads.  That reads the whole job table, and the open files of all processes.

    Raises:
        StoreError: the database cannot be used.
        RootError: the job is expired, but the folders that could keep it cannot be used.
    """
    with ExitStack() as stack:
        database = open_database(config, stack)
        policy = Policy.from_config(config.retention)
        jobs = job_table(database, config, policy, has_parameters=hooks.read_jobs)
        ledger = Ledger(database)
        has_ledger = ledger.exists()
        with database.read() as connection:
            row = jobs.rows(connection, [job_id]).get(job_id)
            if row is None:
                return None
            record = jobs.cleanup_record(connection, job_id)
            hold = ledger.holds(connection, [job_id]).get(job_id) if has_ledger else None
            measured = ledger.measured(connection, [job_id]).get(job_id) if has_ledger else None
        trashed = ledger.trashed(job_id) if has_ledger else []
        why, until, would_clean = record.describe(in_trash=bool(trashed)), None, False
        shared: tuple[str, ...] = ()
        is_warned_of = False
        owner = Claimant(row.job, policy.classify(row.job.status), row.cleaned, False, row.cleaned_at)
        if row.cleaned and (owner.ran_again or owner.job_class is JobClass.LIVE):
            why += ". It was started again since. Runs keep its new data until its data_cleaned_at is NULL"
        if not row.cleaned:
            decision = decide(row.job, policy, now, hold=hold)
            if decision.clean:  # what else can keep it is known to the planner of a run
                session = open_session(config, database, jobs, policy, stack)
                run = RunContext.reading(config, policy, now, hooks)
                planner = Planner(run, session)
                if staying := stay_in_trash(session):
                    planner.decide_again(staying)
                decision = planner.decide(row.job, hold)
                if decision.clean and is_thorough:
                    (plan,) = planner.plan([decision], ())
                    shared = plan.shared
                    blockers = run.blockers(session.roots.values())
                    if plan.problem is not None:
                        decision = replace(decision, clean=False, reason=plan.problem, notable=True)
                    elif reason := stay_reason(session, blockers, job_id, plan.artifacts):
                        decision = replace(decision, clean=False, reason=reason)
            is_warned_of = decision.notable
            why, until = decision.reason, kept_until(decision, policy, now, hold)
            would_clean = decision.clean
        acknowledgement = ledger.acknowledgements([job_id]).get(job_id) if is_warned_of else None
        return JobState(
            job_id=job_id,
            status=row.job.status,
            cleaned=row.cleaned,
            why=why,
            kept_until=until,
            cleaned_at=row.cleaned_at,
            size_bytes=record.size_bytes if measured is None else measured,
            purge_after=min((intent.purge_after for intent in trashed if intent.purge_after), default=None),
            hold=hold if hold is not None and hold.is_active(now) else None,
            would_clean=would_clean,
            is_warned_of=is_warned_of,
            acknowledgement=acknowledgement if acknowledgement and acknowledgement.warning == why else None,
            shared=shared,
        )
