"""One run from plan to report; it keeps the configuration that it began with."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from eemtcleanupd.cleanup.census import Census, CensusResult
from eemtcleanupd.cleanup.claims import Tools
from eemtcleanupd.cleanup.guards import Guards, NoGuards
from eemtcleanupd.cleanup.outcomes import NOTED, Counts, largest
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planning import PlannedJob, Planner
from eemtcleanupd.cleanup.preflight import open_roots, open_trashes, remember_root, reserved_entries
from eemtcleanupd.cleanup.recovery import purge_expired, recover, report_unowned
from eemtcleanupd.cleanup.relief import Target, empty_trash, take_early
from eemtcleanupd.clock import Clock, system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.cluster import Cluster, ClusterAddress
from eemtcleanupd.deletion.inspection import disk_usage
from eemtcleanupd.deletion.limits import Limits
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.errors import AuditError, BreakerError, CleanupError
from eemtcleanupd.events import (
    DURATION_BUCKETS,
    ArtifactSize,
    AuditEntry,
    Emit,
    JobNote,
    JobPlanned,
    JobSkipped,
    RunFailed,
    RunFinished,
    RunReport,
    RunStarted,
    Tally,
    Warned,
)
from eemtcleanupd.model import Decision, Found, JobClass, RootName
from eemtcleanupd.policy.breakers import clock_fault, is_too_many
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.pressure import Pressure, early_policy
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.stop import StopFlag
from eemtcleanupd.store.catalog import Backlog, Catalog
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.location import Location
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.mounting import insist_on_journal
from eemtcleanupd.store.runs import RunRecord
from eemtcleanupd.store.timestamps import zone_named
from eemtcleanupd.units import human_size, printable


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is asked of one run.

    ``skip_larger_than_bytes`` leaves bigger jobs to another run.  ``only_trash`` cleans no job, it only
    empties the trash of what has outlived its grace, or has been there for ``purge_older_than``.
    ``pressure`` makes it go on, ahead of the retention, until the disk is no longer full; then nothing waits
    in the trash.
    """

    user: str
    trigger: str = "manual"
    dry_run: bool = False
    force: bool = False
    skip_larger_than_bytes: int | None = None
    only_trash: bool = False
    purge_older_than: timedelta | None = None
    pressure: Pressure | None = None


@dataclass(slots=True)
class Progress:
    """How far a run is, for whoever watches from another thread; jobs include those that are kept.

    ``limits`` are set when others than those of the run's configuration are to be in force.
    """

    jobs_total: int = 0
    jobs_done: int = 0
    pool: DeletionPool | None = None
    limits: Limits | None = None

    def limit(self, config: Config) -> None:
        """Put the limits of another configuration in force: all else stays as it was when the run began."""
        self.limits = limits_of(config)
        if self.pool is not None:
            self.pool.controls.set(self.limits)

    def begin(self, pool: DeletionPool) -> None:
        """Watch a pool; limits that came before it are put in force."""
        self.pool = pool
        if self.limits is not None:
            pool.controls.set(self.limits)


def limits_of(config: Config) -> Limits:
    """Return how fast and how politely a configuration wants files to be deleted."""
    performance = config.performance
    return Limits(
        deletes_per_second=performance.max_deletes_per_second,
        bytes_per_second=performance.max_bytes_per_second,
        truncate_chunk_bytes=performance.truncate_chunk,
        nice=performance.nice,
        idle_io=performance.io_priority == "idle",
    )


def clean(
    config: Config,
    request: RunRequest,
    *,
    emit: Emit,
    stop: StopFlag | None = None,
    clock: Clock = system_clock,
    progress: Progress | None = None,
    guards: Guards | None = None,
) -> RunReport:
    """Clean a job store once.

    Args:
        config: the effective configuration; its paths are absolute.
        request: who asks for what.
        emit: is told of every event, in this thread.
        stop: ends the run early and in order once it is set.
        clock: where the time comes from.
        progress: is kept up to date.
        guards: may keep a job, and write down what is done.

    Returns:
        The report, which was also emitted and recorded.

    Raises:
        LockHeldError, StoreError, RootError, BreakerError, AuditError: the run did not begin, or broke off;
            what it had begun is finished by the next one.
    """
    started = clock()
    run_id = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    run = _Run(
        config=config,
        request=request,
        run_id=run_id,
        emit=emit,
        stop=stop or StopFlag(),
        clock=clock,
        progress=progress or Progress(),
        guards=guards or NoGuards(),
    )
    try:
        with ExitStack() as stack:
            return run.run(started, stack)
    except CleanupError as error:
        run.tell_failure(error)
        raise


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a run has found when nothing has been touched yet."""

    started: datetime
    database: Database
    catalog: Catalog
    ledger: Ledger
    planner: Planner
    roots: Mapping[RootName, Root]
    backlog: Backlog


class _Run:
    def __init__(
        self,
        *,
        config: Config,
        request: RunRequest,
        run_id: str,
        emit: Emit,
        stop: StopFlag,
        clock: Clock,
        progress: Progress,
        guards: Guards,
    ) -> None:
        self._config = config
        self._guards = guards
        self._request = request
        self._run_id = run_id
        self._emit = emit
        self._stop = stop
        self._clock = clock
        self._progress = progress
        self._policy = Policy.from_config(config.retention)
        self._kept = 0
        self._remaining = 0
        self._taken = 0
        self._relieved: str | None = None
        self._vetoed: list[JobNote] = []

    def tell_failure(self, error: CleanupError) -> None:
        """Tell that the run was refused or broke off."""
        request = self._request
        if not request.dry_run and not isinstance(error, AuditError):
            with suppress(AuditError):  # the first error is the one to tell
                self._audit("run_failed", error=printable(str(error)))
        self._emit(RunFailed(self._run_id, str(error), request.trigger, socket.gethostname(), self._clock()))

    def _audit(self, action: str, **details: object) -> None:
        entry = AuditEntry(self._clock(), self._request.user, action, {"run_id": self._run_id, **details})
        self._guards.audit([entry])

    def run(self, started: datetime, stack: ExitStack) -> RunReport:
        config, request = self._config, self._request
        database = Location.of(config).open()
        stack.callback(database.close)
        if warning := insist_on_journal(database, to_write=not request.dry_run):
            self._emit(Warned(warning))
        catalog = Catalog(database, self._policy, zone_named(config.database.timezone))
        if not request.dry_run:
            stack.enter_context(run_lock(database, self._run_id, started))
        ledger = Ledger(database)
        has_ledger = ledger.exists()
        known = ledger.roots() if has_ledger else {}
        roots = open_roots(config, known, stack)
        backlog = Backlog(0, 0) if request.only_trash else catalog.backlog(started)
        if backlog.candidates:
            catalog.gather_candidates(started)
        planner = Planner(
            database=database,
            catalog=catalog,
            ledger=ledger if has_ledger else None,
            roots=roots,
            policy=self._policy,
            now=started,
            reserved=reserved_entries(config, roots),
            veto=self._guards.veto,
        )
        opened = _Opened(started, database, catalog, ledger, planner, roots, backlog)
        self._progress.jobs_total = backlog.candidates
        self._check_clock(started, ledger.last_run_at() if has_ledger else None)
        self._check_fraction(opened, is_first=not has_ledger or not ledger.has_whole_run())
        return self._dry_run(opened) if request.dry_run else self._real_run(opened, stack)

    # -- breakers ----------------------------------------------------------------------------------

    def _check_clock(self, now: datetime, last_run: datetime | None) -> None:
        fault = clock_fault(now, last_run, self._config.safety.max_clock_leap_days)
        if fault is not None:
            self._refuse(fault, is_first=False)

    def _check_fraction(self, opened: _Opened, *, is_first: bool) -> None:
        """Refuse to take nearly all; the first run may, and until it was whole the next one is the first."""
        backlog = opened.backlog
        safety = self._config.safety
        limits = (safety.max_fraction, safety.max_fraction_min_jobs)
        cap = safety.max_jobs_per_run or backlog.candidates
        # Deciding about every row twice is only worth it where the breaker could trip at all.
        if is_too_many(min(backlog.candidates, cap), backlog.uncleaned, *limits):
            due = sum(d.clean for page in opened.planner.decisions(self._page_size) for d in page)
            if is_too_many(min(due, cap), backlog.uncleaned, *limits):
                self._refuse(
                    f"the run would take {min(due, cap)} of {backlog.uncleaned} jobs that have ended and are "
                    f"not cleaned, more than safety.max_fraction ({safety.max_fraction:g}) of them: is the "
                    f"retention right?",
                    is_first=is_first,
                )

    def _refuse(self, fault: str, *, is_first: bool) -> None:
        """Trip a breaker, or warn where it does not count."""
        if not is_first and not self._request.force:
            raise BreakerError(f"refused, nothing was touched: {fault} (--force overrides)")
        self._emit(Warned(f"{'this is the first run' if is_first else '--force'}: {fault}"))

    @property
    def _page_size(self) -> int:
        return self._config.performance.batch_size

    # -- dry run -----------------------------------------------------------------------------------

    def _dry_run(self, opened: _Opened) -> RunReport:
        self._emit_started(opened.backlog)
        counts = Counts()
        planned_before: set[str] = set()
        with_size = {JobClass.SUCCESSFUL: 0, JobClass.FAILED: 0}
        for plans in self._planned_pages(opened.planner, lambda: planned_before):
            for plan in plans:
                if self._stop.is_set():
                    break
                sized = tuple(
                    ArtifactSize(found, self._measure(opened.roots, found)) for found in plan.artifacts
                )
                size = sum(artifact.size_bytes for artifact in sized)
                if self._is_too_large(plan, size):
                    continue
                if plan.shared:  # a later job that shares the upload may take it: remember this one
                    planned_before.add(plan.job.id)
                counts.cleaned[plan.decision.job_class] += 1
                with_size[plan.decision.job_class] += size
                self._emit(
                    JobPlanned(
                        plan.job,
                        plan.decision.job_class,
                        plan.decision.age or timedelta(),
                        plan.decision.reason,
                        sized,
                        plan.shared,
                    )
                )
        counts.freed.update(with_size)
        census = self._census(opened, None).take()
        report = self._report(opened, counts, census)
        self._emit(RunFinished(report))
        return report

    def _measure(self, roots: Mapping[RootName, Root], found: Found) -> int:
        return measure(roots[found.artifact.root], found.artifact.name, self._stop).bytes

    # -- real run ----------------------------------------------------------------------------------

    def _real_run(self, opened: _Opened, stack: ExitStack) -> RunReport:
        started, ledger, roots = opened.started, opened.ledger, opened.roots
        config, request = self._config, self._request
        self._audit("run_started", trigger=request.trigger, policy=str(self._policy), force=request.force)
        ledger.create_tables()
        opened.planner.adopt(ledger)
        opened.catalog.add_columns()
        record = RunRecord(
            id=self._run_id,
            started_at=started,
            trigger=request.trigger,
            user=request.user,
            host=socket.gethostname(),
            pid=os.getpid(),
            policy=str(self._policy),
        )
        ledger.begin_run(record)
        try:
            trashes = open_trashes(roots, stack)
            ledger.save_roots(remember_root(root, trashes[name]) for name, root in roots.items())
            is_auto = config.performance.parallel_delete and config.performance.max_workers == "auto"
            pool = stack.enter_context(
                DeletionPool(
                    self._workers,
                    self._stop,
                    auto=is_auto,
                    cluster=self._cluster(),
                    limits=limits_of(config),
                )
            )
            self._progress.begin(pool)
            if opened.backlog.candidates:
                pool.prepare()
            tools = Tools(
                database=opened.database,
                catalog=opened.catalog,
                ledger=ledger,
                planner=opened.planner,
                policy=self._policy,
                roots=roots,
                trashes=trashes,
                pool=pool,
                clock=self._clock,
                emit=self._emit,
                stop=self._stop,
                run_id=self._run_id,
                user=request.user,
                logs_folder=config.paths.logs,
                grace=timedelta(hours=0 if request.pressure else config.trash.grace_hours),
                workers=self._workers,
                guards=self._guards,
            )
            self._emit_started(opened.backlog)
            pipeline = Pipeline(tools)
            try:
                census = self._work(opened, tools, pipeline)
            except BaseException:
                self._stop.set()  # what is in flight ends soon; the ledger knows of it
                raise
            report = self._report(opened, pipeline.outcomes.counts, census)
            usage = disk_usage(roots[RootName.RESULTS].fd)
            passed = ledger.add_storage_sample(
                self._run_id, usage.free_bytes, usage.total_bytes, self._clock(), Budget.of(config.capacity)
            )
            if passed is not None:
                self._emit(passed)
            self._audit("run_finished", **_in_audit(report))
        except CleanupError as error:
            with suppress(CleanupError):  # the database may be what broke; the first error is the one to tell
                ledger.finish_run(
                    replace(record, finished_at=self._clock(), outcome="failed", error=str(error))
                )
            raise
        ledger.finish_run(_ended(record, report), totals_of(report, pipeline.outcomes.counts.by_status))
        storage = ledger.storage_state(self._clock(), usage.free_bytes, usage.total_bytes)
        report = replace(
            report,
            storage=replace(storage, capacity_max_bytes=config.capacity.max_bytes),
            totals=ledger.totals(),
        )
        self._emit(RunFinished(report))
        return report

    def _work(self, opened: _Opened, tools: Tools, pipeline: Pipeline) -> CensusResult:
        in_hand = recover(tools, pipeline)
        older = self._request.purge_older_than
        purge_expired(tools, pipeline, None if older is None else opened.started - older)
        if self._request.only_trash:
            return CensusResult(0, 0)
        report_unowned(tools)
        target = None
        if self._request.pressure is not None:
            target = Target.of(self._request.pressure, tools)
            empty_trash(tools, pipeline, target)
        for plans in self._planned_pages(tools.planner, pipeline.in_flight):
            batch = [plan for plan in plans if plan.job.id not in in_hand]
            with tools.database.read() as connection:
                sizes = tools.ledger.measured(connection, [plan.job.id for plan in batch])
            self._take(tools, pipeline, batch, sizes)
        pipeline.finish()
        if target is not None:
            self._relieve(opened, tools, pipeline, target, in_hand)
        census = self._census(opened, pipeline).take()
        pipeline.finish()
        return census

    def _take(
        self, tools: Tools, pipeline: Pipeline, batch: Sequence[PlannedJob], sizes: Mapping[str, int]
    ) -> int:
        """Take of a batch what the run's limits allow; returns how many jobs were claimed."""
        batch = self._without_large(tools.roots, batch, sizes)
        cap = self._config.safety.max_jobs_per_run
        if cap and self._taken + len(batch) > cap:
            self._remaining += len(batch) - (cap - self._taken)
            batch = batch[: cap - self._taken]
        claimed = pipeline.take(batch, sizes) if batch and not self._stop.is_set() else 0
        self._taken += claimed
        return claimed

    def _relieve(
        self, opened: _Opened, tools: Tools, pipeline: Pipeline, target: Target, in_hand: Collection[str]
    ) -> None:
        """Go on ahead of the retention while the disk is still too full, within the run's limits."""
        policy = early_policy(self._policy, target.pressure.minimum_age)
        catalog = Catalog(opened.database, policy, zone_named(self._config.database.timezone))
        catalog.gather_candidates(opened.started, failed_first=True)
        planner = Planner(
            database=opened.database,
            catalog=catalog,
            ledger=opened.ledger,
            roots=opened.roots,
            policy=policy,
            now=opened.started,
            reserved=reserved_entries(self._config, opened.roots),
            veto=self._guards.veto,
        )
        safety, uncleaned = self._config.safety, opened.backlog.uncleaned

        def take(batch: Sequence[PlannedJob], sizes: Mapping[str, int]) -> int:
            if is_too_many(self._taken + 1, uncleaned, safety.max_fraction, safety.max_fraction_min_jobs):
                self._emit(
                    Warned(
                        f"the disk is still full, but {self._taken} of {uncleaned} jobs that had ended are "
                        f"gone, and safety.max_fraction ({safety.max_fraction:g}) allows no more in one run"
                    )
                )
                return 0
            return self._take(tools, pipeline, batch, sizes)

        take_early(
            tools,
            pipeline,
            target,
            planner=planner,
            policy=self._policy,
            in_hand=in_hand,
            take=take,
        )
        self._relieved = target.words(disk_usage(opened.roots[RootName.RESULTS].fd))

    def _without_large(
        self, roots: Mapping[RootName, Root], batch: Sequence[PlannedJob], sizes: Mapping[str, int]
    ) -> Sequence[PlannedJob]:
        if self._request.skip_larger_than_bytes is None:
            return batch
        kept = []
        for plan in batch:
            size = sizes.get(plan.job.id)
            if size is None:
                size = sum(self._measure(roots, found) for found in plan.artifacts)
            if not self._is_too_large(plan, size):
                kept.append(plan)
        return kept

    # -- both --------------------------------------------------------------------------------------

    def _planned_pages(
        self, planner: Planner, going: Callable[[], Collection[str]]
    ) -> Iterator[list[PlannedJob]]:
        """Yield the jobs that are due, with their artifacts, a batch at a time; tell what is kept and why.

        ``going`` returns the ids of jobs that earlier batches took and that are not recorded yet.
        """
        for decisions in planner.decisions(self._page_size):
            if self._stop.is_set():
                return
            due = []
            for decision in decisions:
                if decision.clean:
                    due.append(decision)
                elif decision.job_class is not JobClass.LIVE:
                    self._keep(decision)
            yield planner.plan(due, going())
            self._progress.jobs_done += len(decisions)

    def _keep(self, decision: Decision) -> None:
        self._kept += decision.notable
        if decision.vetoed:
            job_id, status = printable(decision.job.id), printable(decision.job.status)
            if len(self._vetoed) < NOTED:
                self._vetoed.append(JobNote(job_id, status, words=decision.reason))
            if not self._request.dry_run:
                self._audit("vetoed", job_id=job_id, status=status, reason=decision.reason)
        self._emit(JobSkipped(decision.job, decision.reason, decision.notable, decision.vetoed))

    def _is_too_large(self, plan: PlannedJob, size: int) -> bool:
        limit = self._request.skip_larger_than_bytes
        if limit is None or size <= limit:
            return False
        reason = f"{human_size(size)} is larger than {human_size(limit)}: left for another run"
        self._remaining += 1
        self._emit(JobSkipped(plan.job, reason, notable=True))
        return True

    def _census(self, opened: _Opened, pipeline: Pipeline | None) -> Census:
        """Return the census of a real run, or of a dry run, which has no pipeline and records nothing."""
        hours = self._config.orphans.delete_after_hours
        return Census(
            database=opened.database,
            catalog=opened.catalog,
            ledger=None if pipeline is None else opened.ledger,
            roots=opened.roots,
            reserved=reserved_entries(self._config, opened.roots),
            policy=self._policy,
            now=self._clock(),
            emit=self._emit,
            stop=self._stop,
            workers=self._workers,
            orphan_age=None if hours is None or pipeline is None else timedelta(hours=hours),
            remove_orphan=pipeline.take_orphan if pipeline is not None else lambda _: False,
        )

    def _cluster(self) -> Cluster | None:
        performance = self._config.performance
        if performance.executor != "dask" or not performance.parallel_delete:
            return None
        dask = performance.dask
        files = (dask.tls_ca_file, dask.tls_cert_file, dask.tls_key_file)
        ca_file, cert_file, key_file = (file for file in files if file is not None)
        address = ClusterAddress(str(dask.scheduler), ca_file, cert_file, key_file)
        return Cluster.connect(address, lambda words: self._emit(Warned(words)))

    @property
    def _workers(self) -> int:
        """How many workers there are, or may be at most."""
        performance = self._config.performance
        if not performance.parallel_delete:
            return 1
        return performance.auto_max_workers if performance.max_workers == "auto" else performance.max_workers

    def _emit_started(self, backlog: Backlog) -> None:
        self._emit(
            RunStarted(
                self._run_id,
                self._request.dry_run,
                self._request.trigger,
                str(self._policy),
                backlog.uncleaned,
                backlog.candidates,
            )
        )

    def _report(self, opened: _Opened, counts: Counts, census: CensusResult) -> RunReport:
        cleaned = sum(counts.cleaned.values())
        interrupted = self._stop.is_set()
        # A dry run has cleaned nothing, so all that were uncleaned still are.
        uncleaned = opened.backlog.uncleaned - (0 if self._request.dry_run else cleaned)
        missing = max(0, uncleaned - census.jobs_with_files)
        if interrupted or self._request.only_trash:  # then nobody has looked
            missing = 0
        return RunReport(
            run_id=self._run_id,
            dry_run=self._request.dry_run,
            trigger=self._request.trigger,
            user=self._request.user,
            started_at=opened.started,
            finished_at=self._clock(),
            outcome="interrupted" if interrupted else "errors" if counts.errors else "success",
            successful=Tally(counts.cleaned[JobClass.SUCCESSFUL], counts.freed[JobClass.SUCCESSFUL]),
            failed=Tally(counts.cleaned[JobClass.FAILED], counts.freed[JobClass.FAILED]),
            orphans=Tally(counts.orphans, counts.orphan_bytes),
            trash_purged=Tally(counts.purged, counts.purged_bytes),
            orphans_found=census.orphans,
            missing=missing,
            skipped=counts.skipped + self._kept,
            errors=counts.errors,
            remaining=self._remaining,
            early=Tally(counts.early, counts.early_bytes),
            pressure=self._relieved,
            host=socket.gethostname(),
            biggest=tuple(largest(counts.biggest)),
            failures=tuple(counts.failures),
            vetoed=tuple(self._vetoed),
        )


def totals_of(report: RunReport, by_status: Mapping[str, int]) -> dict[tuple[str, str], float]:
    """Return what a run adds to the totals that the ledger keeps, by name and label."""
    seconds = (report.finished_at - report.started_at).total_seconds()
    return {
        ("runs", report.outcome): 1,
        ("run_seconds", ""): max(0.0, seconds),
        **{("run_seconds_bucket", f"{bound:g}"): 1 for bound in DURATION_BUCKETS if seconds <= bound},
        **{("jobs_cleaned", status): count for status, count in by_status.items()},
        ("bytes_freed", ""): report.bytes_freed,
        ("errors", ""): report.errors,
        ("skipped", ""): report.skipped,
    }


def _in_audit(report: RunReport) -> dict[str, object]:
    return {
        "outcome": report.outcome,
        "successful": report.successful.jobs,
        "failed": report.failed.jobs,
        "errors": report.errors,
        "bytes_freed": report.bytes_freed,
    }


def _ended(record: RunRecord, report: RunReport) -> RunRecord:
    return replace(
        record,
        finished_at=report.finished_at,
        outcome=report.outcome,
        successful=report.successful.jobs,
        failed=report.failed.jobs,
        orphans=report.orphans.jobs,
        skipped=report.skipped,
        errors=report.errors,
        bytes_freed=report.bytes_freed,
    )
