"""Ownership: which entries belong to a job, which other jobs claim them, and which entries no job can own.

An upload's name starts with a UUID of its own, so only the row's ``dem_filename`` links it to a job.  Several
jobs can name one upload.  Other names overlap too: ``results/a_results.zip`` is the download of job ``a``
and would be the folder of a job ``a_results.zip``.  So every artifact is checked against all rows that
might own it before it is deleted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter

from eemtcleanupd.model import TRASH_NAME, Artifact, Job, JobClass, RootName

ARCHIVE_SUFFIX = "_results.zip"
_SYSTEM_ENTRIES = {
    "lost+found",  # mkfs(8) of ext
    "aquota.user",  # quotacheck(8)
    "aquota.group",
    "aquota.project",
    "quota.user",
    "quota.group",
    "System Volume Information",  # NTFS
    "@eaDir",  # Synology's index, bin and snapshots
    "#recycle",
    "#snapshot",
    "@Recycle",  # QNAP's bin
    "@Recently-Snapshot",
}
_NAME_MAX_BYTES = 255  # NAME_MAX of every Linux filesystem (limits.h)


@dataclass(frozen=True, slots=True)
class Claimant:
    """A job that might own an artifact, with the facts that decide whether it protects the artifact."""

    job: Job
    job_class: JobClass
    cleaned: bool
    held: bool
    cleaned_at: datetime | None = None

    @property
    def ran_again(self) -> bool:
        """Whether the job ended after it was cleaned: the web application does not reset our column."""
        ended = self.job.completed_at
        return ended is not None and self.cleaned_at is not None and ended > self.cleaned_at


def invalid_name_reason(name: str, *, suffix: str = "") -> str | None:
    """Return why a name from the database is not a valid entry of a root, or None if it is valid.

    ``suffix`` is the longest suffix that is appended to form the name of another entry.
    """
    if name == "":
        return "is empty"
    if name in {".", ".."}:
        return f"is '{name}'"
    if "/" in name:
        return "contains '/'"
    if "\0" in name:
        return "contains a NUL"
    # The name is reserved as a prefix too, so that no job can refer to our files inside a root.
    if name.startswith(TRASH_NAME):
        return "is reserved for the trash"
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "is not a valid file name"
    if len(encoded) + len(suffix) > _NAME_MAX_BYTES:
        return f"is too long for a file name ({len(encoded)} bytes)"
    return None


def folded(name: str) -> str:
    """Return what is equal for names that differ only in case or in the composition of their characters."""
    return name.casefold() if name.isascii() else unicodedata.normalize("NFC", name.casefold())


def is_system_entry(name: str) -> bool:
    """Return whether an entry of a root belongs to its filesystem or a service, so that it is no orphan.

    These are hidden entries (snapshots, ``.nfs…``), recycle bins, ``lost+found`` and quota files.
    """
    return name.startswith((".", "$")) or name in _SYSTEM_ENTRIES


def owned_artifacts(job: Job) -> tuple[Artifact, ...]:
    """Return the entries that a job owns by name, without uploads ``<id>_*``, which need a listing."""
    entries = (
        Artifact(RootName.RESULTS, job.id),
        Artifact(RootName.RESULTS, job.id + ARCHIVE_SUFFIX),
        Artifact(RootName.TEMP, job.id),
    )
    return entries if job.dem_filename is None else (*entries, Artifact(RootName.UPLOADS, job.dem_filename))


def possible_owner_ids(artifact: Artifact) -> tuple[str, ...]:
    """Return every job id that would own this entry by name, without owners through ``dem_filename``."""
    name = artifact.name
    if artifact.root is RootName.UPLOADS:
        return _starts_before_underscores(name)
    if artifact.root is RootName.RESULTS and name.endswith(ARCHIVE_SUFFIX) and name != ARCHIVE_SUFFIX:
        return (name, name.removesuffix(ARCHIVE_SUFFIX))
    return (name,)


def _starts_before_underscores(name: str) -> tuple[str, ...]:
    starts, index = [], 0
    while (index := name.find("_", index + 1)) > 0:
        starts.append(name[:index])
    return tuple(starts)


def blocking_claimant(claimants: Iterable[Claimant], being_cleaned: Set[str]) -> Claimant | None:
    """Return the first job whose claim protects a shared artifact, or None if it can be deleted.

    A live, held or unknown job always protects the artifact.  Any other job protects it until the job was
    cleaned or is being cleaned.  So a shared upload is deleted with the last job that names it.
    ``being_cleaned`` has the ids of the jobs that this run is cleaning.
    """
    return next(filter(_protects, (other for other in claimants if other.job.id not in being_cleaned)), None)


def is_leftover(
    claimants: Collection[Claimant], changed_at: datetime, logged: Mapping[str, datetime]
) -> bool:
    """Return whether an interrupted run left an artifact behind: its jobs are all cleaned, and it is older.

    Args:
        claimants: all jobs that could own the artifact.
        changed_at: when anything in it changed last.  What is newer than the cleanup came back on purpose.
        logged: before which time the log has the cleanup of a job, by its id; the row can say a later one.
    """
    cleaned = [
        min(claimant.cleaned_at, logged.get(claimant.job.id, claimant.cleaned_at))
        for claimant in claimants
        if claimant.cleaned_at is not None
    ]
    return bool(cleaned) and changed_at < max(cleaned) and not any(map(_protects, claimants))


def newest_owner(claimants: Iterable[Claimant]) -> Job | None:
    """Return the job that was cleaned last of those that could own an artifact, None if none was cleaned."""
    cleaned = [
        (claimant.cleaned_at, claimant.job) for claimant in claimants if claimant.cleaned_at is not None
    ]
    return max(cleaned, key=itemgetter(0))[1] if cleaned else None


def _protects(claimant: Claimant) -> bool:
    is_finished = claimant.cleaned and claimant.job_class not in {JobClass.LIVE, JobClass.UNKNOWN}
    return claimant.held or not is_finished or claimant.ran_again


class ReservedEntries:
    """The entries of roots that no job can own: paths of the configuration, or folders that contain one.

    A file in a root also reserves names with the same stem.  These are its lock, its head, its text copy,
    and what rotation made of it.
    """

    def __init__(self, paths: Iterable[tuple[RootName, tuple[str, ...]]]) -> None:
        """``paths`` are below the roots, as their components."""
        self._names: dict[RootName, set[str]] = {root: set() for root in RootName}
        self._stems: dict[RootName, tuple[str, ...]] = dict.fromkeys(RootName, ())
        for root, parts in paths:
            self._names[root].add(parts[0])
            if len(parts) == 1:
                self._stems[root] += (f"{parts[0].rpartition('.')[0] or parts[0]}.",)

    def has(self, root: RootName, name: str) -> bool:
        """Return whether the entry ``name`` of a root is reserved."""
        return name in self._names[root] or name.startswith(self._stems[root])
