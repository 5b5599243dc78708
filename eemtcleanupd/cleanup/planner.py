"""The plan of a run: which jobs expired, what belongs to them, and what other jobs still need."""

from __future__ import annotations

import os
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from eemtcleanupd.batches import batched
from eemtcleanupd.cleanup.context import RunContext
from eemtcleanupd.cleanup.report import NAMED_JOBS_LIMIT
from eemtcleanupd.cleanup.session import StoreSession, root_entries
from eemtcleanupd.deletion.blockers import HELD_BY_MARKER, keep_marker_reason
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.walk import measure
from eemtcleanupd.events import JobNote, JobSkipped
from eemtcleanupd.formatting import human_size, printable, shortened
from eemtcleanupd.model import Artifact, Decision, Found, Hold, Job, JobClass, RootName
from eemtcleanupd.policy.ownership import (
    ARCHIVE_SUFFIX,
    Claimant,
    blocking_claimant,
    folded,
    invalid_name_reason,
    owned_artifacts,
    possible_owner_ids,
)
from eemtcleanupd.policy.retention import TERMINAL, Policy, decide
from eemtcleanupd.store.intents import Intent
from eemtcleanupd.store.jobs import JobTable
from eemtcleanupd.store.values import Row

if TYPE_CHECKING:
    from eemtcleanupd.cleanup.pipeline import Pipeline

# The own size of a folder with some hundred entries.  Where folders count their subfolders as links, two
# links mean that there are none.
_SMALL_BYTES = 16 * 1024
# How far the time of a file can be behind the clock of a run.
_CLOCKS_DIFFER = timedelta(seconds=2)
# How many jobs are read ahead: which rows name their uploads takes a scan of the table.  So does each page of
# the newest jobs.
_JOBS_AHEAD = 10_000


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """An expired job, the artifacts that go with it, and the labels of those that other jobs still need.

    ``trashed`` is set when all of its data is in the trash already, so that only its row lacks the record.
    ``problem`` says why the job must stay although it expired: the folders do not say clearly what it owns.
    """

    decision: Decision
    artifacts: tuple[Found, ...]
    shared: tuple[str, ...] = ()
    trashed: Intent | None = None
    problem: str | None = None

    @property
    def job(self) -> Job:
        """The job."""
        return self.decision.job


class Planner:
    """Decides on the candidates of one run, page by page, all at the time the run started.

    ``policy`` and ``jobs`` replace those of the run and its session (a run under disk pressure plans twice).
    """

    def __init__(
        self,
        run: RunContext,
        session: StoreSession,
        policy: Policy | None = None,
        jobs: JobTable | None = None,
    ) -> None:
        self._run = run
        self._session = session
        self._policy = policy or run.policy
        self._jobs = jobs or session.jobs
        self._reserved = session.reserved_entries
        self._last = self._newest()
        self._ahead: Sequence[Job] = ()
        self._named_ahead: dict[str, list[Row]] | None = None
        self._counted: list[list[Decision]] | None = None

    def count_expired(self, page_size: int, candidates: int) -> int:
        """Count the expired jobs among the gathered candidates.

        Of not too many candidates, the next :meth:`decisions` yields the same decisions again: a claim
        reads each row and hold again.
        """
        pages = self.decisions(page_size)
        if candidates <= _JOBS_AHEAD and not self._run.hooks.read_jobs:
            pages = iter(counted := list(pages))
            self._counted = counted
        return sum(decision.clean for page in pages for decision in page)

    def decide_again(self, unfinished: Collection[str]) -> None:
        """Decide again on what :meth:`count_expired` has read: recovery has written rows since.

        Files of the jobs ``unfinished`` can be deleted already, so ``keep_last`` does not count these jobs.
        """
        self._counted = None
        self._last = self._newest(unfinished)

    def _newest(self, unfinished: Collection[str] = ()) -> frozenset[str]:
        """Return the jobs that ``keep_last`` keeps.

        One without data stays too, but takes the place of no other: somebody can have held it when it was
        half deleted.
        """
        roots, newest = self._session.roots, partial(self._jobs.newest_successful, self._policy.keep_last)
        rows = newest(self._run.started_at, counts=lambda job: job.id not in unfinished)
        if all(_has_results(roots, job_id) for job_id in rows):
            return rows
        ledger = self._session.ledger
        intents = [*ledger.trashed(), *ledger.open_intents()] if self._session.has_ledger else []
        in_trash = {intent.job_id for intent in intents if not intent.is_purging}

        def has_data(job: Job) -> bool:
            return job.id not in unfinished and (job.id in in_trash or _has_results(roots, job.id))

        def with_data() -> Iterator[str]:
            yield from in_trash
            for name, root in roots.items():
                for entry, _ in root_entries(root) if name is not RootName.UPLOADS else ():
                    yield from possible_owner_ids(Artifact(name, entry))

        return rows | newest(self._run.started_at, _JOBS_AHEAD, counts=has_data, among=with_data)

    def decisions(self, page_size: int) -> Iterator[list[Decision]]:
        """Yield the decisions on all gathered candidates, in pages, oldest first."""
        if self._counted is not None:
            counted, self._counted = self._counted, None
            yield from counted
            return
        # Parameters can be large, so jobs that have them are not read ahead.
        ahead = page_size if self._run.hooks.read_jobs else max(page_size, _JOBS_AHEAD)
        for jobs in self._jobs.candidates(ahead):
            self._ahead, self._named_ahead = jobs, None
            for page in batched(jobs, page_size):
                with self._session.database.read() as connection:
                    holds = self.holds(connection, [job.id for job in page])
                yield [self.decide(job, holds.get(job.id)) for job in page]

    def decide(self, job: Job, hold: Hold | None) -> Decision:
        """Decide on a job that has not been cleaned, with all that can keep it before its files are read."""
        decision = decide(job, self._policy, self._run.started_at, hold=hold, among_last=job.id in self._last)
        if not decision.clean:
            return decision
        if any(self._reserved.has(artifact.root, artifact.name) for artifact in owned_artifacts(job)):
            reason = "invalid job: one of its names is a folder of eemtcleanupd (logs, backup or database)"
            return replace(decision, clean=False, reason=reason, notable=True)
        marker = keep_marker_reason(self._session.roots[RootName.RESULTS].fd, job.id)
        if marker is not None:
            return replace(decision, clean=False, reason=marker, notable=marker != HELD_BY_MARKER)
        if (veto := self._run.hooks.veto(job)) is not None:
            return replace(decision, clean=False, reason=veto, notable=True, vetoed=True)
        return decision

    def is_done(self, claimant: Claimant) -> bool:
        """Return whether a job needs nothing of its data any more: it was cleaned, or its row was reset."""
        if claimant.held:
            return False
        if claimant.cleaned and not claimant.ran_again:
            return claimant.job_class in TERMINAL
        return self.decide(claimant.job, None).clean

    def holds(self, connection: Connection, job_ids: Sequence[str]) -> dict[str, Hold]:
        """Return the holds on these jobs, active or not."""
        return self._session.ledger.holds(connection, job_ids) if self._session.has_ledger else {}

    def plan(self, expired: Sequence[Decision], in_flight: Collection[str]) -> list[PlannedJob]:
        """Find the artifacts of expired jobs.

        Args:
            expired: one batch of decisions to clean.
            in_flight: ids of jobs that this run cleans too and has not recorded yet (none in a dry run).

        Of several jobs of the batch that share an artifact, it goes with the last one.
        """
        artifacts = find_artifacts(self._session, [decision.job for decision in expired])
        everything = {found.artifact for entries in artifacts.values() for found in entries}
        ambiguous = _ambiguous_names(self._session.roots, everything)
        being_cleaned = {decision.job.id for decision in expired} | set(in_flight)
        with self._session.database.read() as connection:
            named = self._rows_ahead(connection, everything, being_cleaned)
            claimants = self.claimants(connection, everything, besides=being_cleaned, named=named)
            alike = {root: self._jobs.spelled_alike(connection, names) for root, names in ambiguous.items()}
        problems = self._spelling_problems(ambiguous, alike)
        last_owner = {found.artifact: job_id for job_id, entries in artifacts.items() for found in entries}
        plans = []
        for decision in expired:
            own, shared = [], []
            for found in artifacts[decision.job.id]:
                artifact = found.artifact
                if (
                    last_owner[artifact] != decision.job.id
                    or self._reserved.has(artifact.root, artifact.name)
                    or (
                        artifact in claimants
                        and blocking_claimant(claimants[artifact], being_cleaned) is not None
                    )
                ):
                    shared.append(found.label)
                else:
                    own.append(found)
            problem = next((problems[found.artifact] for found in own if found.artifact in problems), None)
            plans.append(PlannedJob(decision, tuple(own), tuple(shared), problem=problem))
        return self._with_trashed(plans)

    def _with_trashed(self, plans: list[PlannedJob]) -> list[PlannedJob]:
        """Add what is in the trash of jobs that got no data since: their rows were reset."""
        without_data = [
            plan.job.id
            for plan in plans
            if all(found.artifact.root is RootName.UPLOADS for found in plan.artifacts)
        ]
        if not without_data or not self._session.has_ledger:
            return plans
        trashed = self._session.ledger.trashed_jobs(without_data)
        return [
            replace(plan, trashed=intent)
            if (intent := trashed.get(plan.job.id)) is not None
            and _got_no_data_since(self._session, intent, plan.artifacts)
            else plan
            for plan in plans
        ]

    def _spelling_problems(
        self, ambiguous: Mapping[RootName, set[str]], alike: Mapping[RootName, Mapping[str, list[str]]]
    ) -> dict[Artifact, str]:
        """Return the artifacts that a filesystem might have found under the name of another entry or job.

        A filesystem that ignores case, or the composition of characters, finds one entry under several names.
        """
        problems = {}
        for root, names in ambiguous.items():
            listed = self._session.roots[root].listed(names)
            for name in names:
                label = shortened(printable(f"{root}/{name}"))
                if name not in listed:
                    problems[Artifact(root, name)] = f"{label} has another spelling on the disk"
                elif others := alike[root].get(folded(name)):
                    other = shortened(printable(others[0]))
                    problems[Artifact(root, name)] = f"{label} and {other} differ only in spelling"
        return problems

    def other_spellings(self, artifacts: Collection[Artifact]) -> dict[Artifact, str]:
        """Return how the job table spells those entries that no row names byte for byte, if it does."""
        ambiguous = _ambiguous_names(self._session.roots, artifacts)
        names = {
            artifact: {artifact.name, *possible_owner_ids(artifact)}
            for artifact in artifacts
            if artifact.name in ambiguous.get(artifact.root, ())
        }
        if not names:
            return {}
        with self._session.database.read() as connection:
            alike = self._jobs.spelled_alike(connection, set().union(*names.values()))
        found = {}
        for artifact, own in names.items():
            spellings = (spelling for name in own for spelling in alike.get(folded(name), ()))
            if (other := next(spellings, None)) is not None:
                found[artifact] = other
        return found

    def _rows_ahead(
        self, connection: Connection, artifacts: Iterable[Artifact], being_cleaned: Set[str]
    ) -> Mapping[str, Sequence[Row]]:
        """Return the rows that name an upload of the jobs read ahead, by upload.

        Rows that keep one of these artifacts are as they are now, because this run might have cleaned them
        since.  The others can be out of date; what counts is what is read again after the move.
        """
        if self._named_ahead is None:
            uploads = {job.dem_filename for job in self._ahead if job.dem_filename is not None}
            uploads |= self._session.uploads.names([job.id for job in self._ahead])
            self._named_ahead = self._rows_naming(connection, uploads, frozenset())
        ahead = self._named_ahead
        shared = {
            artifact.name: rows
            for artifact in artifacts
            if artifact.root is RootName.UPLOADS
            and (rows := ahead.get(artifact.name))
            and any(not row.cleaned and row.job.id not in being_cleaned for row in rows)
        }
        now = self._jobs.rows(connection, {row.job.id for rows in shared.values() for row in rows})
        ahead.update({name: [now.get(row.job.id, row) for row in rows] for name, rows in shared.items()})
        return ahead

    def _rows_naming(
        self, connection: Connection, uploads: Collection[str], besides: Collection[str]
    ) -> dict[str, list[Row]]:
        """Return the rows that name each of these uploads, without those of the ids ``besides``."""
        named: dict[str, list[Row]] = {upload: [] for upload in uploads}
        for row in self._jobs.naming(connection, list(uploads), besides=besides):
            for upload in _named_by(row.job.dem_filename, named):
                named[upload].append(row)
        return named

    def claimants(
        self,
        connection: Connection,
        artifacts: Iterable[Artifact],
        *,
        besides: Collection[str] = (),
        named: Mapping[str, Sequence[Row]] | None = None,
    ) -> dict[Artifact, list[Claimant]]:
        """Return, for each artifact, all rows that could own it, as they are now.

        A held id counts even if its row is gone.

        Args:
            connection: the job database.
            artifacts: entries of the roots.
            besides: ids whose rows are left out: the caller knows that these jobs are being cleaned.
            named: the rows that name uploads, by upload, if they were read before.
        """
        known = frozenset(besides)
        by_owner: dict[str, list[Artifact]] = defaultdict(list)
        uploads: list[Artifact] = []
        for artifact in artifacts:
            for owner in possible_owner_ids(artifact):
                if owner not in known:
                    by_owner[owner].append(artifact)
            if artifact.root is RootName.UPLOADS:
                uploads.append(artifact)
        rows: dict[str, Row] = self._jobs.rows(connection, by_owner)
        unread = {upload.name for upload in uploads if named is None or upload.name not in named}
        named = {**(named or {}), **self._rows_naming(connection, unread, known)} if unread else named or {}
        owning = [
            *((artifact, row) for row in rows.values() for artifact in by_owner[row.job.id]),
            *((upload, row) for upload in uploads for row in named[upload.name] if row.job.id not in known),
        ]
        holds = self.holds(connection, list({*by_owner, *(row.job.id for _, row in owning)}))
        result: dict[Artifact, list[Claimant]] = defaultdict(list)
        for artifact, row in owning:
            result[artifact].append(self._claimant(row, holds))
        for owner in by_owner.keys() & holds.keys() - rows.keys():
            for artifact in by_owner[owner]:
                result[artifact].append(self._claimant(Row(Job(owner, "held"), cleaned=True), holds))
        return result

    def _claimant(self, row: Row, holds: Mapping[str, Hold]) -> Claimant:
        hold = holds.get(row.job.id)
        held = hold is not None and hold.is_active(self._run.started_at)
        job_class = self._policy.classify(row.job.status)
        return Claimant(row.job, job_class, row.cleaned, held, row.cleaned_at)


class Selection:
    """Selects the jobs of one run within its limits, and reports the jobs that stay.

    ``kept_notable`` counts the kept jobs that an operator is warned of, ``acknowledged`` those of which an
    operator has acknowledged this warning, ``vetoed`` names some that a plugin
    keeps, ``remaining`` counts the jobs left to another run, ``remaining_bytes`` those of the too large ones.
    """

    def __init__(self, run: RunContext, session: StoreSession) -> None:
        self._run = run
        self._roots = session.roots
        self._ledger = session.ledger
        self.kept_notable = 0
        self.acknowledged = 0
        self.vetoed: list[JobNote] = []
        self.vetoed_jobs = 0
        self.remaining = 0
        self.remaining_bytes = 0

    def pages(self, planner: Planner, in_flight: Callable[[], Collection[str]]) -> Iterator[list[PlannedJob]]:
        """Yield the expired jobs with their artifacts, a batch at a time; report which jobs stay and why.

        Args:
            planner: decides; its candidates are gathered.
            in_flight: returns the ids of claimed jobs of earlier batches that are not recorded yet.
        """
        run = self._run
        for decisions in planner.decisions(run.config.performance.batch_size):
            if run.stop.is_set():
                return
            self._keep([each for each in decisions if not each.clean and each.job_class is not JobClass.LIVE])
            plans = planner.plan([decision for decision in decisions if decision.clean], in_flight())
            self._keep(
                [
                    replace(plan.decision, clean=False, reason=plan.problem, notable=True)
                    for plan in plans
                    if plan.problem is not None
                ]
            )
            planned = [plan for plan in plans if plan.problem is None]
            ids = {plan.job.id for plan in planned}
            run.progress.decided(len(decisions), ids)
            yield planned
            run.progress.done(ids.difference(in_flight()))

    def _keep(self, decisions: Sequence[Decision]) -> None:
        notable = [each.job.id for each in decisions if each.notable]
        known = self._ledger.acknowledgements(notable) if notable and self._any_acknowledged else {}
        for decision in decisions:
            acknowledgement = known.get(decision.job.id)
            is_known = acknowledgement is not None and acknowledgement.warning == decision.reason
            self._report_kept(decision, is_acknowledged=is_known)

    @cached_property
    def _any_acknowledged(self) -> bool:
        """Whether anything is acknowledged: usually nothing is, and jobs to warn about can be many."""
        return self._ledger.count_acknowledgements() > 0

    def _report_kept(self, decision: Decision, *, is_acknowledged: bool) -> None:
        notable = decision.notable and not is_acknowledged
        self.kept_notable += notable
        self.acknowledged += is_acknowledged
        if decision.vetoed:
            job_id, status = printable(decision.job.id), printable(decision.job.status)
            self.vetoed_jobs += notable
            if notable and len(self.vetoed) < NAMED_JOBS_LIMIT:
                self.vetoed.append(JobNote(job_id, status, message=decision.reason))
            if not self._run.request.dry_run:
                self._run.audit("vetoed", job_id=job_id, status=status, reason=decision.reason)
        self._run.emit(
            JobSkipped(decision.job, decision.reason, notable, decision.vetoed, acknowledged=is_acknowledged)
        )

    def process(self, pipeline: Pipeline, batch: Sequence[PlannedJob], sizes: Mapping[str, int]) -> int:
        """Clean those jobs of a batch that the run's limits allow.

        Args:
            pipeline: cleans the jobs.
            batch: the jobs and their artifacts.
            sizes: sizes in bytes measured earlier, by job id.

        Returns:
            The number of jobs that the limits allow.
        """
        trashed = [(plan.job, plan.trashed) for plan in batch if plan.trashed is not None]
        if trashed:
            pipeline.mark_trashed(trashed)
            batch = [plan for plan in batch if plan.trashed is None]
        batch = [plan for plan in batch if not self.is_too_large(plan, sizes)]
        allowed = 0
        while batch and not self._run.stop.is_set():
            if not self.room(pipeline.taken):  # a job that cannot go now leaves its place to the next
                pipeline.flush()
            part = batch[: self.room(pipeline.taken)]
            if not part:
                self.remaining += len(batch)
                break
            pipeline.process(part, sizes)
            batch = batch[len(part) :]
            allowed += len(part)
        return allowed

    def room(self, taken: int) -> int:
        """Return how many jobs the cap of the run allows after ``taken`` ones."""
        cap = self._run.config.safety.max_jobs_per_run
        return max(0, cap - taken) if cap else sys.maxsize

    def is_too_large(self, plan: PlannedJob, sizes: Mapping[str, int]) -> bool:
        """Return whether this run skips a job because of its size; count and report it then.

        ``sizes`` are those measured earlier, in bytes by job id.
        """
        limit = self._run.request.skip_larger_than_bytes
        if limit is None:
            return False
        size_bytes = sizes.get(plan.job.id)
        if size_bytes is None:
            size_bytes = sum(self.measure(found) for found in plan.artifacts)
        if size_bytes <= limit:
            return False
        reason = f"{human_size(size_bytes)} is larger than {human_size(limit)}: left for another run"
        self.remaining += 1
        self.remaining_bytes += size_bytes
        self._run.emit(JobSkipped(plan.job, reason, notable=True))
        return True

    def measure(self, found: Found) -> int:
        """Return the bytes of an artifact."""
        return measure(self._roots[found.artifact.root], found.artifact.name, self._run.stop).bytes


def _ambiguous_names(
    roots: Mapping[RootName, Root], artifacts: Iterable[Artifact]
) -> dict[RootName, set[str]]:
    """Return the names that a filesystem can find under another spelling, by root.

    Few filesystems compare characters instead of bytes, and only for names that are not ASCII.
    """
    ambiguous: dict[RootName, set[str]] = defaultdict(set)
    ignores_case: dict[RootName, bool] = {}
    for artifact in artifacts:
        root = artifact.root
        if root not in ignores_case:
            ignores_case[root] = roots[root].ignores_case()
        if ignores_case[root] or not artifact.name.isascii():
            ambiguous[root].add(artifact.name)
    return ambiguous


def _named_by(dem_filename: str | None, uploads: Collection[str]) -> Iterable[str]:
    """Return which of some uploads a row names: one, or in doubt all that its column could mean."""
    if dem_filename is None:
        return ()
    if dem_filename in uploads:
        return (dem_filename,)
    # The column has another idea of equality than bytes (NOCASE, RTRIM, citext), and it protects more.
    key = folded(dem_filename).strip()
    return [name for name in uploads if folded(name).strip() == key] or uploads


def find_artifacts(session: StoreSession, jobs: Sequence[Job]) -> dict[str, list[Found]]:
    """Return the artifacts of each job that exist, by job id; what is no name of an entry exists nowhere."""
    roots = session.roots
    found: dict[str, list[Found]] = {job.id: [] for job in jobs}
    for job in jobs:
        for artifact in owned_artifacts(job):
            root = roots.get(artifact.root)
            if root is None or invalid_name_reason(artifact.name) is not None:
                continue
            try:
                status = os.stat(artifact.name, dir_fd=root.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:  # it is there: what looks at it before the move reports the error
                found[job.id].append(Found(artifact, is_folder=False))
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            is_small = not is_folder or (status.st_nlink == 2 and status.st_size <= _SMALL_BYTES)
            found[job.id].append(Found(artifact, is_folder, is_small))
    named_by_row = {(job.id, job.dem_filename) for job in jobs}
    for owner, upload in session.uploads.named_after(list(found)):
        if (owner, upload.artifact.name) not in named_by_row:
            found[owner].append(upload)
    return found


def has_files_in_place(roots: Mapping[RootName, Root], job_id: str) -> bool:
    """Return whether a job, all of which was staged, has results or working files in their places again.

    An entry that can belong to another job too (uploads, ``results/a_results.zip``) proves nothing: it stays
    in its place while the other job needs it.
    """
    folders = (Artifact(root, job_id) for root in roots if root is not RootName.UPLOADS)
    return invalid_name_reason(job_id) is None and any(
        roots[folder.root].has(folder.name) for folder in folders if len(possible_owner_ids(folder)) == 1
    )


def _has_results(roots: Mapping[RootName, Root], job_id: str) -> bool:
    """Return whether a job has results or working files in their places, or only their download."""
    return has_files_in_place(roots, job_id) or (
        invalid_name_reason(job_id, suffix=ARCHIVE_SUFFIX) is None
        and roots[RootName.RESULTS].has(job_id + ARCHIVE_SUFFIX)
    )


def _got_no_data_since(session: StoreSession, trashed: Intent, artifacts: Iterable[Found]) -> bool:
    """Return whether a job has nothing in place but uploads that stayed when the rest moved to the trash.

    Another job needed them then.  What was restored or uploaded since is newer: every move renews its ctime.
    """
    for found in artifacts:
        root, name = found.artifact.root, found.artifact.name
        if root is not RootName.UPLOADS or trashed.created_at is None:
            return False
        try:
            status = os.stat(name, dir_fd=session.roots[root].fd, follow_symlinks=False)
        except OSError:
            return False
        if status.st_ctime >= (trashed.created_at - _CLOCKS_DIFFER).timestamp():
            return False
    return True
