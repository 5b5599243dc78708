"""One run from plan to report, with the configuration of its start; refuses a run if a breaker trips."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.context import NullHooks, Progress, RunContext, RunHooks, RunRequest, rate_limits
from eemtcleanupd.cleanup.inventory import EntryKind, Inventory, InventoryResult, RootCensus
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import PlannedJob, Planner, Selection
from eemtcleanupd.cleanup.pressure import EarlyCleaning, PressureTarget
from eemtcleanupd.cleanup.recovery import (
    is_being_deleted,
    purge_expired,
    purgeable,
    recover_intents,
    remove_strays,
    stay_in_trash,
    trash_bytes,
)
from eemtcleanupd.cleanup.report import (
    ALREADY_TRASHED,
    RunCounts,
    RunStats,
    audit_summary,
    build_report,
    finished_record,
    is_idle_purge,
    run_started_event,
    run_totals,
)
from eemtcleanupd.cleanup.session import (
    StoreSession,
    job_table,
    job_table_problem,
    open_database,
    open_session,
    record_roots,
)
from eemtcleanupd.cleanup.staging import describe_oserror, stay_reason
from eemtcleanupd.clock import Clock, elapsed_seconds, system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.ballast import allocate_ballast, release_ballast, release_initial_ballast
from eemtcleanupd.deletion.blockers import Blockers
from eemtcleanupd.deletion.filesystem import disk_usage
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.errors import AuditError, BreakerError, CleanupError, JobTableError, RootError
from eemtcleanupd.events import (
    ORPHAN,
    ArtifactSize,
    DatabaseSummary,
    Emit,
    JobPlanned,
    JobSkipped,
    OrphanFound,
    PurgePlanned,
    RunFailed,
    RunFinished,
    RunReport,
    Warned,
)
from eemtcleanupd.formatting import plural, printable
from eemtcleanupd.model import Artifact, Found, Job, Outcome, RootName, Trigger
from eemtcleanupd.policy.breakers import (
    ZoneEvidence,
    clock_problem,
    is_too_many,
    orphans_problem,
)
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.ownership import blocking_claimant
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.privileges import exceeds_user
from eemtcleanupd.store.history import AuditLine, LogEntry
from eemtcleanupd.store.intents import Intent
from eemtcleanupd.store.jobs import Backlog
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.mount_check import check_journal
from eemtcleanupd.store.runs import RunRecord
from eemtcleanupd.store.tables import AUDIT, LOG
from eemtcleanupd.store.values import reload_zones

if TYPE_CHECKING:
    from eemtcleanupd.deletion.dask_executor import DaskExecutor

_UNOWNED_NAMED = 5
_UNFINISHED_NAMED = 5


def clean(
    config: Config,
    request: RunRequest,
    *,
    emit: Emit,
    stop: StopFlag | None = None,
    clock: Clock = system_clock,
    progress: Progress | None = None,
    hooks: RunHooks | None = None,
) -> RunReport:
    """Clean a job store once.

    Args:
        config: the effective configuration; its paths are absolute.
        request: what to do, and the user.
        emit: receives every event, in this thread.
        stop: stops the run gracefully once it is set.
        clock: the time source.
        progress: is updated as the run proceeds.
        hooks: can veto jobs, and record actions.

    Returns:
        The report, which was also emitted and recorded.

    Raises:
        LockHeldError, StoreError, RootError, BreakerError, AuditError: the run did not start, or failed; the
            next run finishes its work.
    """
    reload_zones()
    started = clock()
    run = RunContext(
        # Milliseconds of the time since boot, because a run takes more than one.  Two runs of the same second
        # differ unless the clock was set back by more than a minute; then 1 of 65,536 is refused.
        id=f"{started:%Y%m%dT%H%M%S}-{int(elapsed_seconds() * 1000) & 0xFFFF:04x}",
        started_at=started,
        config=config,
        request=request,
        policy=Policy.from_config(config.retention),
        emit=emit,
        stop=stop or StopFlag(),
        clock=clock,
        progress=progress or Progress(),
        hooks=hooks or NullHooks(),
    )
    run.progress.run_id = run.id
    try:
        with ExitStack() as stack:
            if not request.dry_run and (message := release_initial_ballast(config)):
                emit(Warned(message))
            try:
                return _Run(run, stack).execute()
            except OSError as error:
                raise _root_error(error) from error
    except CleanupError as error:
        if not request.dry_run and not isinstance(error, AuditError):
            with suppress(AuditError):  # the first error is the one to report
                run.audit("run_failed", error=printable(str(error)))
        emit(RunFailed(run.id, str(error), request.trigger, socket.gethostname(), clock()))
        raise


class _Run:
    """The steps of one run; ``stack`` closes what it opens."""

    def __init__(self, run: RunContext, stack: ExitStack) -> None:
        self._run = run
        self._stack = stack
        self._session, self._backlog = self._open()
        self._database: DatabaseSummary | None = None
        self._census: Mapping[RootName, RootCensus] = {}
        self._held_bytes = 0
        self._planner = Planner(run, self._session)
        self._selection = Selection(run, self._session)

    def execute(self) -> RunReport:
        """Check the breakers, then clean, or show what cleaning would do."""
        try:
            self._check_breakers()
        except BreakerError as error:
            raise type(error)(f"{error}{self._unfinished()}") from None
        return self._dry_run() if self._run.request.dry_run else self._clean()

    # -- before anything is touched ----------------------------------------------------------------

    def _open(self) -> tuple[StoreSession, Backlog]:
        """Open the job store, lock it unless this is a dry run, and count the jobs that need a decision."""
        run = self._run
        database = open_database(run.config, self._stack)
        if warning := check_journal(database, to_write=not run.request.dry_run):
            run.emit(Warned(warning))
        jobs = job_table(database, run.config, run.policy, has_parameters=run.hooks.read_jobs)
        if not run.request.dry_run:
            self._stack.enter_context(run_lock(database, run.id, run.started_at))
        session = open_session(run.config, database, jobs, run.policy, self._stack)
        backlog = jobs.backlog(run.started_at) if run.request.trigger.plans_jobs else Backlog(0, 0)
        if backlog.candidates:
            jobs.gather_candidates(run.started_at)
        run.progress.jobs_total = backlog.candidates
        return session, backlog

    def _check_breakers(self) -> None:
        """Refuse a wrong zone, a clock that is probably wrong, and a run that would clean nearly all jobs.

        Raises:
            BreakerError: nothing was changed.
        """
        if self._run.request.trigger.plans_jobs:
            self._check_zone()
        run, ledger, has_ledger = self._run, self._session.ledger, self._session.has_ledger
        last_run = ledger.last_run_at() if has_ledger else None
        problem = clock_problem(run.started_at, last_run, run.config.safety.max_clock_leap_days)
        if problem is not None:
            self._trip(problem, is_first=False)
        problem = self._fraction_problem()
        if problem is not None:
            # Every run counts as the first until one has checked all jobs.
            self._trip(problem, is_first=not has_ledger or not ledger.has_whole_run())
        if run.request.trigger.plans_jobs:
            self._check_job_table()

    def _unfinished(self) -> str:
        """Return a sentence on what an interrupted run left in the trash: a refused run leaves it there."""
        intents = self._session.ledger.open_intents() if self._session.has_ledger else []
        if not intents:
            return ""
        names = ", ".join(printable(intent.name) for intent in intents[:_UNFINISHED_NAMED])
        names += " …" if len(intents) > _UNFINISHED_NAMED else ""
        return (
            f" An interrupted run has left {plural(len(intents), 'item')} in the trash: {names}. "
            "`eemtcleanupd trash restore JOB` puts one back."
        )

    def _check_job_table(self) -> None:
        """Refuse a job table that lost its rows or never had any: the files would look like orphans.

        ``--force`` does not override this.
        """
        run, session = self._run, self._session
        self._database = session.jobs.summary()
        self._require_jobs(self._database.jobs, "Refused, nothing was changed")
        if run.config.orphans.delete_after_hours is None or run.request.allow_orphans:
            return
        census = Inventory(run, session, self._planner, lambda *_: None, is_recording=False).census()
        if session.has_ledger:
            self._held_bytes = sum(size for _, size in session.ledger.storage_by_class().values())
        self._require_few_orphans(census, "Refused, nothing was changed")
        self._census = {name: RootCensus(root.entries) for name, root in census.items()}

    def _check_due(self, entries: Sequence[tuple[Found, int]]) -> None:
        """Stop the run before it deletes orphans if the job table lost its rows since the start."""
        self._require_jobs(self._session.jobs.count(), "The run stopped before it deleted more orphans")
        for found, size_bytes in entries:
            if (census := self._census.get(found.artifact.root)) is not None:
                census.due += 1
                census.due_bytes += size_bytes
        self._require_few_orphans(self._census, "The run stopped before it deleted more orphans")

    def _require_jobs(self, rows: int, outcome: str) -> None:
        if (problem := job_table_problem(self._session, rows)) is not None:
            raise JobTableError(f"{outcome}: {problem}")

    def _require_few_orphans(self, census: Mapping[RootName, RootCensus], outcome: str) -> None:
        max_fraction = self._run.config.safety.max_orphan_fraction
        problem = orphans_problem(census, self._held_bytes, max_fraction)
        if problem is not None:
            raise BreakerError(
                f"{outcome}: {problem} Is this the right job database? "
                "`clean --dry-run --allow-orphans` lists them, `clean --allow-orphans` deletes them."
            )

    def _check_zone(self) -> None:
        """Refuse a default zone in which jobs seem older than they are; only warn of a configured one.

        Raises:
            BreakerError: nothing was changed.
        """
        evidence = ZoneEvidence.of(self._session.jobs.observed_starts())
        if evidence is None or (problem := evidence.problem) is None:
            return
        advice = "Set database.timezone to the zone of the web interface, for example UTC."
        if evidence.is_proof and self._run.config.database.timezone == "local":
            raise BreakerError(
                f"Refused, nothing was changed: {problem}. {advice} (--force does not override this.)"
            )
        self._run.emit(Warned(f"The time zone might be wrong: {problem}. {advice}"))

    def _fraction_problem(self) -> str | None:
        """Return the problem if the run would clean too many of the ended jobs, else None."""
        backlog, safety = self._backlog, self._run.config.safety
        limits = (safety.max_fraction, safety.max_fraction_min_jobs)
        cap = safety.max_jobs_per_run or backlog.candidates
        # Decide on every row twice only if the breaker can trip.
        if not is_too_many(min(backlog.candidates, cap), backlog.uncleaned, *limits):
            return None
        page_size = self._run.config.performance.batch_size
        expired = min(self._planner.count_expired(page_size, backlog.candidates), cap)
        if not is_too_many(expired, backlog.uncleaned, *limits):
            return None
        return (
            f"the run would clean {expired} of {backlog.uncleaned} ended jobs, more than safety.max_fraction "
            f"({safety.max_fraction:g}) of them. Is the retention correct?"
        )

    def _trip(self, problem: str, *, is_first: bool) -> None:
        """Raise BreakerError, or only warn on a first run or with --force."""
        if not is_first and not self._run.request.force:
            raise BreakerError(f"Refused, nothing was changed (--force overrides): {problem}")
        self._run.emit(Warned(f"{'This is the first run' if is_first else '--force'}: {problem}"))

    # -- dry run -----------------------------------------------------------------------------------

    def _dry_run(self) -> RunReport:
        """Report each expired job with its size; write nothing."""
        run, session, selection = self._run, self._session, self._selection
        run.emit(run_started_event(run, self._backlog, self._database))
        stats = RunStats(run, session)
        counts = stats.counts
        skipped, staged = self._plan_trash(counts)
        blockers = run.blockers(session.roots.values())
        sharing: set[str] = set()
        needed: set[str] = set()  # what jobs that stay share with later ones
        taken = 0

        plan_entries = partial(self._plan_entries, stats, blockers)
        for plans in selection.pages(self._planner, lambda: sharing):
            looked_at: list[str] = []
            for plan in plans:
                if run.stop.is_set():
                    break
                run.progress.done(looked_at)
                looked_at = [plan.job.id]
                if plan.job.id in skipped:
                    continue
                plan, sizes = self._with_staged(plan, staged)  # noqa: PLW2901
                if plan.trashed is not None:
                    counts.already_trashed += 1
                    run.emit(JobSkipped(plan.job, ALREADY_TRASHED, notable=False))
                    # An upload that no other job needs is deleted once the job is marked.
                    sized = [(found, selection.measure(found)) for found in plan.artifacts]
                    plan_entries(sized, EntryKind.LEFTOVER)
                    continue
                if selection.is_too_large(plan, {plan.job.id: sum(sizes.values())} if sizes else {}):
                    needed.update(plan.shared)
                    continue
                if not selection.room(taken):
                    selection.remaining += 1
                    continue
                reason = stay_reason(session, blockers, plan.job.id, plan.artifacts)
                if reason is not None:
                    needed.update(plan.shared)
                    stats.skipped(plan.job, reason)
                    continue
                taken += 1
                # A later job that shares the upload can delete it.
                if self._plan_job(counts, plan, sizes, needed):
                    sharing.add(plan.job.id)
            run.progress.done(looked_at)

        inventory = InventoryResult(0, 0)
        if run.request.trigger.plans_jobs:
            inventory = Inventory(run, session, self._planner, plan_entries, is_recording=False).scan()
        report = build_report(run, self._backlog, counts, selection, inventory)
        run.emit(RunFinished(report))
        return report

    def _with_staged(
        self, plan: PlannedJob, staged: Mapping[str, Intent]
    ) -> tuple[PlannedJob, dict[Artifact, int]]:
        """Add what an interrupted run moved and a run first puts back; return all sizes then, else none."""
        if (intent := staged.get(plan.job.id)) is None:
            return plan, {}
        session = self._session
        sizes = {each.artifact: self._selection.measure(each) for each in plan.artifacts}
        moved = [pair for pair in intent.items if pair[0].artifact not in sizes]
        with session.database.read() as connection:
            claimants = self._planner.claimants(connection, [found.artifact for found, _ in moved])
        free, shared = [], list(plan.shared)
        for found, item in moved:
            size = trash_bytes(session, found, item, self._run.stop)
            if not size or found.label in shared:
                continue
            owners = claimants[found.artifact]
            being_cleaned = {each.job.id for each in owners if self._planner.is_done(each)} & staged.keys()
            if blocking_claimant(owners, being_cleaned) is None:
                free.append(found)
                sizes[found.artifact] = size
            else:
                shared.append(found.label)
        return replace(plan, artifacts=(*plan.artifacts, *free), shared=tuple(shared)), sizes

    def _plan_job(
        self, counts: RunCounts, plan: PlannedJob, sizes: Mapping[Artifact, int], needed: Set[str]
    ) -> bool:
        """Count and report a job without what others need; return whether there is such an artifact.

        ``sizes`` are those that are known, in bytes.
        """
        run, decision = self._run, plan.decision
        kept = [found.label for found in plan.artifacts if found.label in needed] if needed else []
        artifacts = tuple(
            ArtifactSize(found, sizes.get(found.artifact) or self._selection.measure(found))
            for found in plan.artifacts
            if not kept or found.label not in kept
        )
        shared = (*plan.shared, *kept)
        size = sum(artifact.size_bytes for artifact in artifacts)
        counts.cleaned[decision.job_class] += 1
        (counts.trashed if run.grace else counts.freed)[decision.job_class] += size
        run.emit(
            JobPlanned(
                plan.job,
                decision.job_class,
                decision.age or timedelta(),
                decision.reason,
                artifacts,
                shared,
                to_trash=bool(run.grace),
            )
        )
        return bool(shared)

    def _plan_entries(
        self, stats: RunStats, blockers: Blockers, entries: Sequence[tuple[Found, int]], kind: EntryKind
    ) -> None:
        """Count and report the entries of one kind that no job needs."""
        counts, acknowledged = stats.counts, self._acknowledged(entries)
        for found, size_bytes in entries:
            is_planned, is_leftover = kind is not EntryKind.ORPHAN, kind is EntryKind.LEFTOVER
            reason = None
            if is_planned:
                now = self._run.clock() if is_leftover else None
                reason = stay_reason(self._session, blockers, None, [found], now)
            if reason is not None:
                is_planned = False
                stats.skipped(Job(found.label, ORPHAN), reason)
                if is_leftover:
                    continue
            counts.orphans += is_planned
            if is_planned and self._run.grace:
                counts.orphan_trashed_bytes += size_bytes
            elif is_planned:
                counts.orphan_bytes += size_bytes
            is_acknowledged = found in acknowledged and not is_planned
            self._run.emit(OrphanFound(found, size_bytes, False, is_planned, acknowledged=is_acknowledged))

    def _plan_trash(self, counts: RunCounts) -> tuple[frozenset[str], Mapping[str, Intent]]:
        """Report what a run would delete from the trash.

        Returns:
            The jobs whose deletion a run finishes or that cannot go back, and the intents of the jobs that it
            first puts back, by job.
        """
        run, session = self._run, self._session
        if not session.has_ledger or not session.ledger.has_intents():
            return frozenset(), {}
        unfinished = session.ledger.open_intents()
        finishing = [intent for intent in unfinished if is_being_deleted(session, intent)]
        skipped = stay_in_trash(session)
        if skipped:
            self._planner.decide_again(skipped)
        staged = {intent.job_id: intent for intent in unfinished if intent not in finishing}
        expired = session.ledger.expired(run.clock(), sys.maxsize, trashed_before=run.purge_trashed_before)
        for intent in (*finishing, *purgeable(session, self._planner, expired)):
            sizes = (trash_bytes(session, found, item, run.stop) for found, item in intent.items)
            size = intent.size_bytes or sum(sizes)
            counts.purged += 1
            counts.purged_bytes += size
            labels = tuple(found.label for found, _ in intent.items)
            run.emit(PurgePlanned(intent.job_id, labels, size))
        return skipped, staged

    # -- clean -------------------------------------------------------------------------------------

    def _clean(self) -> RunReport:
        """Recover, plan, delete and record, then report."""
        run, session, ledger = self._run, self._session, self._session.ledger
        # Entered before the pool, so that the trashes close only after the pool has finished.
        trashes = self._stack.enter_context(ExitStack())
        pool = self._start_pool()
        for message in release_ballast(run.config, session.roots.values()):
            run.emit(Warned(message))
        request = run.request
        run.hooks.expect_audit(ledger)
        run.audit("run_started", trigger=request.trigger, policy=str(run.policy), force=request.force)
        created = session.create_ledger()
        record = RunRecord(
            id=run.id,
            started_at=run.started_at,
            trigger=request.trigger,
            user=request.user,
            host=socket.gethostname(),
            pid=os.getpid(),
            policy=str(run.policy),
        )
        if not created >= {LOG, AUDIT}:  # the new ones accept all
            _require_writable_log(session, run)
        ledger.begin_run(record)
        try:
            session.lock_trashes(trashes)
            rows = None if self._database is None else self._database.jobs
            # An empty table is only accepted by a person: see job_table_problem.
            record_roots(ledger, session.roots, session.trashes, rows or None)
            run.progress.attach(pool)
            run.emit(run_started_event(run, self._backlog, self._database))
            pipeline = Pipeline(run, session, self._planner, pool)
            try:
                inventory, pressure = self._process(pipeline)
            except BaseException:
                run.stop.set()  # running deletions end soon; their intents are in the ledger
                raise
            counts = pipeline.stats.counts
            report = build_report(run, self._backlog, counts, self._selection, inventory, pressure=pressure)
            usage = disk_usage(session.roots[RootName.RESULTS].fd)
            warning = ledger.add_storage_sample(
                run.id, usage.free_bytes, usage.total_bytes, run.clock(), Budget.of(run.config.capacity)
            )
            if warning is not None:
                run.emit(warning)
            run.audit("run_finished", **audit_summary(report))
        except (CleanupError, OSError) as error:
            reason = str(_root_error(error) if isinstance(error, OSError) else error)
            with suppress(CleanupError):  # the database can be the cause; report the first error
                for so_far in ledger.runs(1, run.id):  # its row counts the jobs that were recorded
                    ledger.finish_run(
                        replace(so_far, finished_at=run.clock(), outcome=Outcome.FAILED, error=reason)
                    )
            raise
        anchor = partial(run.hooks.anchor_audit, ledger)
        if is_idle_purge(report, counts):
            ledger.forget_run(run.id, also=anchor)
        else:
            ledger.finish_run(finished_record(record, report), run_totals(report), also=anchor)
        storage = ledger.storage_state(run.clock(), usage.free_bytes, usage.total_bytes)
        report = replace(
            report,
            storage=replace(storage, capacity_max_bytes=run.config.capacity.max_bytes),
            totals=ledger.totals(),
        )
        run.emit(RunFinished(report))
        allocate_ballast(run.config, session.roots.values())
        return report

    def _start_pool(self) -> DeletionPool:
        """Start the pool early: the server of its helpers takes as long to start as the run to prepare."""
        run, performance = self._run, self._run.config.performance
        is_auto = performance.parallel_delete and performance.max_workers == "auto"
        pool = self._stack.enter_context(
            DeletionPool(
                run.workers,
                run.stop,
                auto=is_auto,
                cluster=_dask_executor(run),
                limits=rate_limits(run.config),
            )
        )
        if self._backlog.candidates and not run.grace and run.workers > 1:  # one worker is in no hurry
            pool.prepare()
        return pool

    def _process(self, pipeline: Pipeline) -> tuple[InventoryResult, str | None]:
        """Do what the request asks for; return the inventory, and a text on the disk pressure or None."""
        run, session, request = self._run, self._session, self._run.request
        in_progress: frozenset[str] = frozenset()
        if session.ledger.has_intents():
            in_progress = recover_intents(pipeline)
            self._planner.decide_again(in_progress)
            # Nobody asked for a recovery run, so it deletes nothing whose deletion had not started.
            if request.trigger is not Trigger.RECOVERY:
                purge_expired(pipeline, run.purge_trashed_before)
        remove_strays(pipeline)
        if not request.trigger.plans_jobs:
            return InventoryResult(0, 0), None
        self._warn_of_unowned_items()
        target = None if request.pressure is None else PressureTarget.of(request.pressure, session)
        for plans in self._selection.pages(self._planner, pipeline.taken_ids):
            batch = [plan for plan in plans if plan.job.id not in in_progress]
            with session.database.read() as connection:
                sizes = session.ledger.measured(connection, [plan.job.id for plan in batch])
            self._selection.process(pipeline, batch, sizes)
        pipeline.finish()
        pressure = None
        if target is not None:
            early = EarlyCleaning(pipeline, self._selection, target, self._backlog.uncleaned)
            early.run()
            pressure = early.summary()

        inventoried_at = run.clock()

        def handle(entries: Sequence[tuple[Found, int]], kind: EntryKind) -> None:
            staying = frozenset(found.artifact for found, _ in entries)
            if kind is EntryKind.DUE:
                self._check_due(entries)
            if kind is not EntryKind.ORPHAN:
                measured_at = inventoried_at if kind is EntryKind.LEFTOVER else None
                staying = pipeline.process_orphans([found for found, _ in entries], measured_at)
            if kind is EntryKind.LEFTOVER:
                return
            acknowledged = self._acknowledged(entries)
            for found, size_bytes in entries:
                if found.artifact in staying:
                    run.emit(
                        OrphanFound(found, size_bytes, removed=False, acknowledged=found in acknowledged)
                    )

        inventory = Inventory(run, session, self._planner, handle, is_recording=True).scan()
        pipeline.finish()
        return inventory, pressure

    def _acknowledged(self, entries: Sequence[tuple[Found, int]]) -> frozenset[Found]:
        """Return the orphans that an operator has acknowledged."""
        by_label = self._session.ledger.acknowledgements([found.label for found, _ in entries])
        return frozenset(found for found, _ in entries if found.label in by_label)

    def _warn_of_unowned_items(self) -> None:
        unowned = self._session.unowned_items()
        if unowned:
            named = ", ".join(unowned[:_UNOWNED_NAMED]) + (" …" if len(unowned) > _UNOWNED_NAMED else "")
            items = plural(len(unowned), "item")
            self._run.emit(Warned(f"The trash contains {items} that no run owns: {named}."))


def _root_error(error: OSError) -> RootError:
    """Return the error for a folder that fails as a whole; what fails for one job is that job's error."""
    return RootError(
        f"The run cannot go on: {describe_oserror(error)}. The next run continues from here. "
        "Check the disks of the folders, and the kernel log for their errors."
    )


def _require_writable_log(session: StoreSession, run: RunContext) -> None:
    """Check that the tables of the log accept an entry: other programs can have altered them.

    Raises:
        StoreError: they do not.
    """
    entry, line = LogEntry("", "", "rehearsal", 0, ""), AuditLine("", "rehearsal", 0)

    def rehearse(connection: Connection) -> None:
        session.ledger.add_log(connection, run.id, [entry], run.started_at)
        session.ledger.add_audit(connection, [line], run.request.user, run.started_at)

    session.database.rehearse(rehearse)


def _dask_executor(run: RunContext) -> DaskExecutor | None:
    performance = run.config.performance
    if performance.executor != "dask" or not performance.parallel_delete:
        return None
    if exceeds_user():  # an answer of a cluster is a pickle, which can run code here
        run.emit(
            Warned(
                f"performance.executor: dask is not used, because this process can change files that user "
                f"{os.geteuid()} cannot. The cluster could use that right too. Run as that user."
            )
        )
        return None
    from eemtcleanupd.deletion.dask_executor import DaskAddress, DaskExecutor

    dask = performance.dask
    files = (dask.tls_ca_file, dask.tls_cert_file, dask.tls_key_file)
    ca_file, cert_file, key_file = (file for file in files if file is not None)
    address = DaskAddress(str(dask.scheduler), ca_file, cert_file, key_file)
    return DaskExecutor.connect(address, lambda message: run.emit(Warned(message)))
