"""How a run begins: what it finds before it touches anything, and whether it may go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from eemtcleanupd.cleanup.context import Run
from eemtcleanupd.cleanup.planner import Planner
from eemtcleanupd.cleanup.preflight import open_roots, reserved_entries
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.errors import BreakerError
from eemtcleanupd.events import Warned
from eemtcleanupd.model import RootName
from eemtcleanupd.policy.breakers import clock_problem, is_too_many
from eemtcleanupd.store.address import StoreAddress
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import Backlog, JobTable
from eemtcleanupd.store.ledger import Ledger
from eemtcleanupd.store.lock import run_lock
from eemtcleanupd.store.mount_check import check_journal
from eemtcleanupd.store.timestamps import zone_named


@dataclass(frozen=True, slots=True)
class Opened:
    """What a run has found when nothing has been touched yet; ``has_ledger`` says whether one came before."""

    database: Database
    catalog: JobTable
    ledger: Ledger
    has_ledger: bool
    planner: Planner
    roots: Mapping[RootName, Root]
    backlog: Backlog


def open_store(run: Run, stack: ExitStack) -> Opened:
    """Open the job store of a run, and lock it unless it is a dry run.

    Raises:
        LockHeldError, StoreError, RootError: it cannot be worked on; nothing was changed.
    """
    config, request = run.config, run.request
    database = StoreAddress.of(config).open()
    stack.callback(database.close)
    if warning := check_journal(database, to_write=not request.dry_run):
        run.emit(Warned(warning))
    catalog = JobTable(database, run.policy, zone_named(config.database.timezone))
    if not request.dry_run:
        stack.enter_context(run_lock(database, run.id, run.started_at))
    ledger = Ledger(database)
    has_ledger = ledger.exists()
    known = ledger.roots() if has_ledger else {}
    roots = open_roots(config, known, stack)
    backlog = Backlog(0, 0) if request.only_trash else catalog.backlog(run.started_at)
    if backlog.candidates:
        catalog.gather_candidates(run.started_at)
    planner = Planner(
        database=database,
        catalog=catalog,
        ledger=ledger if has_ledger else None,
        roots=roots,
        policy=run.policy,
        now=run.started_at,
        reserved=reserved_entries(config, roots),
        veto=run.guards.veto,
    )
    run.progress.jobs_total = backlog.candidates
    return Opened(database, catalog, ledger, has_ledger, planner, roots, backlog)


def check_breakers(run: Run, opened: Opened) -> None:
    """Refuse a clock that cannot be right, and to take nearly all jobs.

    Raises:
        BreakerError: one of the two; nothing was changed.
    """
    ledger = opened.ledger
    last_run = ledger.last_run_at() if opened.has_ledger else None
    fault = clock_problem(run.started_at, last_run, run.config.safety.max_clock_leap_days)
    if fault is not None:
        _trip(run, fault, is_first=False)
    _check_fraction(run, opened, is_first=not opened.has_ledger or not ledger.has_whole_run())


def _check_fraction(run: Run, opened: Opened, *, is_first: bool) -> None:
    """Refuse to take nearly all; the first run may, and until it was whole the next one is the first."""
    backlog = opened.backlog
    safety = run.config.safety
    limits = (safety.max_fraction, safety.max_fraction_min_jobs)
    cap = safety.max_jobs_per_run or backlog.candidates
    # Deciding about every row twice is only worth it where the breaker could trip at all.
    if is_too_many(min(backlog.candidates, cap), backlog.uncleaned, *limits):
        pages = opened.planner.decisions(run.config.performance.batch_size)
        due = sum(decision.clean for page in pages for decision in page)
        if is_too_many(min(due, cap), backlog.uncleaned, *limits):
            _trip(
                run,
                f"the run would take {min(due, cap)} of {backlog.uncleaned} jobs that have ended and are "
                f"not cleaned, more than safety.max_fraction ({safety.max_fraction:g}) of them: is the "
                f"retention right?",
                is_first=is_first,
            )


def _trip(run: Run, fault: str, *, is_first: bool) -> None:
    """Trip a breaker, or warn where it does not count."""
    if not is_first and not run.request.force:
        raise BreakerError(f"refused, nothing was touched: {fault} (--force overrides)")
    run.emit(Warned(f"{'this is the first run' if is_first else '--force'}: {fault}"))
