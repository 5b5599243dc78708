"""One run from plan to report; it keeps the configuration that it began with."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup.ballast import allocate_ballast, release_ballast, release_initial_ballast
from eemtcleanupd.cleanup.claims import Tools
from eemtcleanupd.cleanup.context import Progress, Run, RunRequest, limits_of
from eemtcleanupd.cleanup.dry_run import dry_run
from eemtcleanupd.cleanup.hooks import NullHooks, RunHooks
from eemtcleanupd.cleanup.inventory import Inventory, InventoryResult
from eemtcleanupd.cleanup.pipeline import Pipeline
from eemtcleanupd.cleanup.planner import PlannedJob, Planner
from eemtcleanupd.cleanup.preflight import open_trashes, record_root, reserved_entries
from eemtcleanupd.cleanup.pressure import PressureTarget, clean_early, empty_trash
from eemtcleanupd.cleanup.recovery import purge_expired, recover_intents, report_unowned
from eemtcleanupd.cleanup.report import (
    audit_summary,
    build_report,
    finished_record,
    run_started_event,
    run_totals,
)
from eemtcleanupd.cleanup.selection import Selection
from eemtcleanupd.cleanup.session import Opened, check_breakers, open_store
from eemtcleanupd.clock import Clock, system_clock
from eemtcleanupd.config import Config
from eemtcleanupd.deletion.blockers import disk_usage
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.errors import AuditError, CleanupError
from eemtcleanupd.events import Emit, RunFailed, RunFinished, RunReport, Warned
from eemtcleanupd.formatting import printable
from eemtcleanupd.model import Outcome, RootName
from eemtcleanupd.policy.breakers import is_too_many
from eemtcleanupd.policy.capacity import Budget
from eemtcleanupd.policy.pressure import early_policy
from eemtcleanupd.policy.retention import Policy
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.runs import RunRecord
from eemtcleanupd.store.timestamps import zone_named

if TYPE_CHECKING:
    from eemtcleanupd.deletion.dask_executor import DaskExecutor


def clean(
    config: Config,
    request: RunRequest,
    *,
    emit: Emit,
    stop: StopFlag | None = None,
    clock: Clock = system_clock,
    progress: Progress | None = None,
    guards: RunHooks | None = None,
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
    run = Run(
        id=f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}",
        started_at=started,
        config=config,
        request=request,
        policy=Policy.from_config(config.retention),
        emit=emit,
        stop=stop or StopFlag(),
        clock=clock,
        progress=progress or Progress(),
        guards=guards or NullHooks(),
    )
    try:
        with ExitStack() as stack:
            if not request.dry_run and (told := release_initial_ballast(config)):
                emit(Warned(told))
            opened = open_store(run, stack)
            check_breakers(run, opened)
            return dry_run(run, opened) if request.dry_run else _Execution(run, opened).run(stack)
    except CleanupError as error:
        _report_failure(run, error)
        raise


def _report_failure(run: Run, error: CleanupError) -> None:
    """Tell that the run was refused or broke off."""
    if not run.request.dry_run and not isinstance(error, AuditError):
        with suppress(AuditError):  # the first error is the one to tell
            run.audit("run_failed", error=printable(str(error)))
    run.emit(RunFailed(run.id, str(error), run.request.trigger, socket.gethostname(), run.clock()))


class _Execution:
    """A run that deletes and records, in a job store that is open and locked."""

    def __init__(self, run: Run, opened: Opened) -> None:
        self._run = run
        self._opened = opened
        self._selection = Selection(run, opened.roots)
        self._relieved: str | None = None

    def run(self, stack: ExitStack) -> RunReport:
        """Go from recovery to report; ``stack`` closes what was opened for it."""
        run, opened, ledger = self._run, self._opened, self._opened.ledger
        config, request = run.config, run.request
        for told in release_ballast(config, opened.roots.values()):
            run.emit(Warned(told))
        run.audit("run_started", trigger=request.trigger, policy=str(run.policy), force=request.force)
        later = stack.enter_context(ExitStack())  # closes what the pool works in, once the pool is done
        pool = self._pool(stack)
        ledger.create_tables()
        opened.planner.attach_ledger(ledger)
        opened.catalog.add_columns()
        record = RunRecord(
            id=run.id,
            started_at=run.started_at,
            trigger=request.trigger,
            user=request.user,
            host=socket.gethostname(),
            pid=os.getpid(),
            policy=str(run.policy),
        )
        ledger.begin_run(record)
        try:
            tools = self._tools(pool, later)
            run.emit(run_started_event(run, opened.backlog))
            pipeline = Pipeline(tools)
            counts = pipeline.stats.counts
            try:
                census = self._work(tools, pipeline)
            except BaseException:
                run.stop.set()  # what is in flight ends soon; the ledger knows of it
                raise
            report = build_report(
                run, opened.backlog, counts, self._selection, census, relieved=self._relieved
            )
            usage = disk_usage(opened.roots[RootName.RESULTS].fd)
            passed = ledger.add_storage_sample(
                run.id, usage.free_bytes, usage.total_bytes, run.clock(), Budget.of(config.capacity)
            )
            if passed is not None:
                run.emit(passed)
            run.audit("run_finished", **audit_summary(report))
        except CleanupError as error:
            with suppress(CleanupError):  # the database may be what broke; the first error is the one to tell
                ledger.finish_run(
                    replace(record, finished_at=run.clock(), outcome=Outcome.FAILED, error=str(error))
                )
            raise
        ledger.finish_run(finished_record(record, report), run_totals(report, counts.by_status))
        storage = ledger.storage_state(run.clock(), usage.free_bytes, usage.total_bytes)
        report = replace(
            report,
            storage=replace(storage, capacity_max_bytes=config.capacity.max_bytes),
            totals=ledger.totals(),
        )
        run.emit(RunFinished(report))
        allocate_ballast(config, opened.roots.values())
        return report

    def _pool(self, stack: ExitStack) -> DeletionPool:
        """Start a pool, early: its first helper is on its way while the ledger is made ready."""
        run, config = self._run, self._run.config
        is_auto = config.performance.parallel_delete and config.performance.max_workers == "auto"
        pool = stack.enter_context(
            DeletionPool(run.workers, run.stop, auto=is_auto, cluster=_cluster(run), limits=limits_of(config))
        )
        if self._opened.backlog.candidates and not self._grace:
            pool.prepare()
        return pool

    @property
    def _grace(self) -> timedelta:
        return timedelta(hours=0 if self._run.request.pressure else self._run.config.trash.grace_hours)

    def _tools(self, pool: DeletionPool, stack: ExitStack) -> Tools:
        """Lock the trash of each root."""
        run, opened, config = self._run, self._opened, self._run.config
        trashes = open_trashes(opened.roots, stack)
        opened.ledger.save_roots(record_root(root, trashes[name]) for name, root in opened.roots.items())
        run.progress.begin(pool)
        return Tools(
            database=opened.database,
            catalog=opened.catalog,
            ledger=opened.ledger,
            planner=opened.planner,
            policy=run.policy,
            roots=opened.roots,
            trashes=trashes,
            pool=pool,
            clock=run.clock,
            emit=run.emit,
            stop=run.stop,
            run_id=run.id,
            user=run.request.user,
            logs_folder=config.paths.logs,
            grace=self._grace,
            workers=run.workers,
            guards=run.guards,
        )

    def _work(self, tools: Tools, pipeline: Pipeline) -> InventoryResult:
        run, request = self._run, self._run.request
        in_hand = recover_intents(tools, pipeline)
        older = request.purge_older_than
        purge_expired(tools, pipeline, None if older is None else run.started_at - older)
        if request.only_trash:
            return InventoryResult(0, 0)
        report_unowned(tools)
        target = None
        if request.pressure is not None:
            target = PressureTarget.of(request.pressure, tools)
            empty_trash(tools, pipeline, target)
        for plans in self._selection.pages(tools.planner, pipeline.in_flight):
            batch = [plan for plan in plans if plan.job.id not in in_hand]
            with tools.database.read() as connection:
                sizes = tools.ledger.measured(connection, [plan.job.id for plan in batch])
            self._selection.process(pipeline, batch, sizes)
        pipeline.finish()
        if target is not None:
            self._relieve(tools, pipeline, target, in_hand)
        census = Inventory.of(run, self._opened, pipeline.process_orphan).scan()
        pipeline.finish()
        return census

    def _relieve(
        self, tools: Tools, pipeline: Pipeline, target: PressureTarget, in_hand: Collection[str]
    ) -> None:
        """Go on ahead of the retention while the disk is still too full, within the run's limits."""
        run, opened, selection = self._run, self._opened, self._selection
        policy = early_policy(run.policy, target.pressure.minimum_age)
        catalog = JobTable(opened.database, policy, zone_named(run.config.database.timezone))
        catalog.gather_candidates(run.started_at, failed_first=True)
        planner = Planner(
            database=opened.database,
            catalog=catalog,
            ledger=opened.ledger,
            roots=opened.roots,
            policy=policy,
            now=run.started_at,
            reserved=reserved_entries(run.config, opened.roots),
            veto=run.guards.veto,
        )
        safety, uncleaned = run.config.safety, opened.backlog.uncleaned

        def take(batch: Sequence[PlannedJob], sizes: Mapping[str, int]) -> int:
            if is_too_many(
                selection.claimed + 1, uncleaned, safety.max_fraction, safety.max_fraction_min_jobs
            ):
                run.emit(
                    Warned(
                        f"the disk is still full, but {selection.claimed} of {uncleaned} jobs that had ended "
                        f"are gone, and safety.max_fraction ({safety.max_fraction:g}) allows no more in one "
                        f"run"
                    )
                )
                return 0
            return selection.process(pipeline, batch, sizes)

        clean_early(
            tools,
            pipeline,
            target,
            planner=planner,
            policy=run.policy,
            in_hand=in_hand,
            take=take,
        )
        self._relieved = target.words(disk_usage(opened.roots[RootName.RESULTS].fd))


def _cluster(run: Run) -> DaskExecutor | None:
    performance = run.config.performance
    if performance.executor != "dask" or not performance.parallel_delete:
        return None
    from eemtcleanupd.deletion.dask_executor import DaskAddress, DaskExecutor

    dask = performance.dask
    files = (dask.tls_ca_file, dask.tls_cert_file, dask.tls_key_file)
    ca_file, cert_file, key_file = (file for file in files if file is not None)
    address = DaskAddress(str(dask.scheduler), ca_file, cert_file, key_file)
    return DaskExecutor.connect(address, lambda words: run.emit(Warned(words)))
