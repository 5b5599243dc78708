"""The plan: which jobs are due, what belongs to them, and what others still need."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from eemtcleanupd.deletion.blockers import keep_marker_reason
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.model import TRASH_NAME, Artifact, Decision, Found, Hold, Job, RootName
from eemtcleanupd.policy.ownership import (
    Claimant,
    blocking_claimant,
    invalid_name_reason,
    owned_artifacts,
    possible_owner_ids,
)
from eemtcleanupd.policy.retention import Policy, decide
from eemtcleanupd.store.database import Database
from eemtcleanupd.store.jobs import JobTable, Row
from eemtcleanupd.store.ledger import Ledger


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job that is due, the artifacts that go with it, and those that stay for another job's sake."""

    decision: Decision
    artifacts: tuple[Found, ...]
    shared: tuple[str, ...] = ()

    @property
    def job(self) -> Job:
        """The job."""
        return self.decision.job


class Planner:
    """Decides about the candidates of one run, page by page; ``now`` is the same for the whole run.

    ``ledger`` is None where its tables do not exist yet (a dry run before the first run).
    """

    def __init__(
        self,
        *,
        database: Database,
        catalog: JobTable,
        ledger: Ledger | None,
        roots: Mapping[RootName, Root],
        policy: Policy,
        now: datetime,
        reserved: frozenset[Artifact],
        veto: Callable[[Job], str | None],
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._ledger = ledger
        self._roots = roots
        self._policy = policy
        self._now = now
        self._reserved = reserved
        self._veto = veto
        self._last = catalog.newest_successful(policy.keep_last)

    def decisions(self, page_size: int) -> Iterator[list[Decision]]:
        """Yield the decisions about all gathered candidates, in pages, oldest first."""
        for page in self._catalog.candidates(page_size):
            with self._database.read() as connection:
                holds = self.holds(connection, [job.id for job in page])
            yield [self._decide(job, holds.get(job.id)) for job in page]

    def _decide(self, job: Job, hold: Hold | None) -> Decision:
        decision = decide(job, self._policy, self._now, hold=hold, among_last=job.id in self._last)
        if decision.clean and any(entry in self._reserved for entry in owned_artifacts(job)):
            reason = "refused: one of its names is a folder of ours (logs, backup or database)"
            return Decision(
                job, decision.job_class, clean=False, reason=reason, age=decision.age, notable=True
            )
        marked = keep_marker_reason(self._roots[RootName.RESULTS].fd, job.id) if decision.clean else None
        if marked is not None:
            return replace(decision, clean=False, reason=marked)
        if decision.clean and (veto := self._veto(job)) is not None:
            return replace(decision, clean=False, reason=veto, notable=True, vetoed=True)
        return decision

    def attach_ledger(self, ledger: Ledger) -> None:
        """Use the ledger, whose tables have been made, from now on."""
        self._ledger = ledger

    def holds(self, connection: Connection, job_ids: Sequence[str]) -> dict[str, Hold]:
        """Return the holds on these jobs."""
        return {} if self._ledger is None else self._ledger.holds(connection, job_ids)

    def plan(self, due: Sequence[Decision], taken_before: Collection[str]) -> list[PlannedJob]:
        """Find what belongs to jobs that are due.

        Args:
            due: decisions to clean, one batch.
            taken_before: ids of jobs that this run takes, too, and has not recorded (a dry run never does).

        Of several jobs of the batch that share an artifact, the last one takes it.
        """
        found = find_artifacts(self._roots, [decision.job for decision in due])
        with self._database.read() as connection:
            claimants = self.claimants(
                connection, {f.artifact for entries in found.values() for f in entries}
            )
        going = {decision.job.id for decision in due} | set(taken_before)
        taker = {f.artifact: job_id for job_id, entries in found.items() for f in entries}
        plans = []
        for decision in due:
            taken, shared = [], []
            for entry in found[decision.job.id]:
                if taker[entry.artifact] != decision.job.id or self._is_protected(
                    entry.artifact, claimants, going
                ):
                    shared.append(entry.label)
                else:
                    taken.append(entry)
            plans.append(PlannedJob(decision, tuple(taken), tuple(shared)))
        return plans

    def _is_protected(
        self, artifact: Artifact, claimants: Mapping[Artifact, Sequence[Claimant]], going: set[str]
    ) -> bool:
        return artifact in self._reserved or blocking_claimant(claimants[artifact], going) is not None

    def claimants(
        self, connection: Connection, artifacts: Iterable[Artifact]
    ) -> dict[Artifact, list[Claimant]]:
        """Return, for each artifact, all rows that could own it as they stand now.

        An id that is held counts although its row is gone.
        """
        by_owner: dict[str, list[Artifact]] = defaultdict(list)
        by_upload: dict[str, Artifact] = {}
        for artifact in artifacts:
            for owner in possible_owner_ids(artifact):
                by_owner[owner].append(artifact)
            if artifact.root is RootName.UPLOADS:
                by_upload[artifact.name] = artifact
        rows: dict[str, Row] = self._catalog.rows(connection, by_owner)
        naming = self._catalog.naming(connection, list(by_upload))
        every_id = {*by_owner, *(row.job.id for row in naming)}
        holds = self.holds(connection, list(every_id))
        result: dict[Artifact, list[Claimant]] = defaultdict(list)
        for row in rows.values():
            for artifact in by_owner[row.job.id]:
                result[artifact].append(self._claimant(row, holds))
        for row in naming:
            if row.job.dem_filename is not None:
                result[by_upload[row.job.dem_filename]].append(self._claimant(row, holds))
        for owner in by_owner.keys() & holds.keys() - rows.keys():
            for artifact in by_owner[owner]:
                result[artifact].append(self._claimant(Row(Job(owner, "held"), cleaned=True), holds))
        return result

    def _claimant(self, row: Row, holds: Mapping[str, Hold]) -> Claimant:
        hold = holds.get(row.job.id)
        held = hold is not None and hold.is_active(self._now)
        return Claimant(row.job, self._policy.classify(row.job.status), row.cleaned, held)


def find_artifacts(roots: Mapping[RootName, Root], jobs: Sequence[Job]) -> dict[str, list[Found]]:
    """Return the artifacts of each job that exist, by job id.

    Uploads named ``<id>_*`` are found by one listing of the folder for the whole batch.
    """
    found: dict[str, list[Found]] = {job.id: [] for job in jobs}
    for job in jobs:
        for artifact in owned_artifacts(job):
            root = roots.get(artifact.root)
            mode = None if root is None else _mode(root, artifact.name)
            if mode is not None:
                found[job.id].append(Found(artifact, stat.S_ISDIR(mode)))
    uploads = roots.get(RootName.UPLOADS)
    if uploads is not None and jobs:
        with os.scandir(uploads.fd) as listing:
            for entry in listing:
                artifact = Artifact(RootName.UPLOADS, entry.name)
                for owner in possible_owner_ids(artifact):
                    known = found.get(owner)
                    if known is not None and all(f.artifact != artifact for f in known):
                        known.append(Found(artifact, entry.is_dir(follow_symlinks=False)))
    return found


def has_files_in_place(roots: Mapping[RootName, Root], job: Job) -> bool:
    """Tell whether a job, all of which was staged, has results or working files in their places again."""
    folders = (root for name, root in roots.items() if name is not RootName.UPLOADS)
    return invalid_name_reason(job.id) is None and any(root.has(job.id) for root in folders)


def _mode(root: Root, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=root.fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def root_entries(root: Root) -> Iterator[tuple[str, bool]]:
    """Yield the names in a root, without the trash, and whether each is a folder."""
    with os.scandir(root.fd) as listing:
        for entry in listing:
            if not entry.name.startswith(TRASH_NAME):
                yield entry.name, entry.is_dir(follow_symlinks=False)
