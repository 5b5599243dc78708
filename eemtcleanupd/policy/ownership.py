"""Ownership: which entries of a root belong to which job, and who else has a claim on them.

An upload's name starts with a UUID of its own, so the row's ``dem_filename`` is its only link, and several
jobs may name one upload.  Names overlap in other ways too (``results/a_results.zip`` is the download of
job ``a`` and would be the folder of a job called ``a_results.zip``), so every artifact is checked against
all rows that could own it before it goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from eemtcleanupd.model import TRASH_NAME, Artifact, Job, JobClass, RootName

ARCHIVE_SUFFIX = "_results.zip"
_NAME_MAX_BYTES = 255  # NAME_MAX of every Linux filesystem (limits.h)


@dataclass(frozen=True, slots=True)
class Claimant:
    """A job that may own an artifact, with what decides whether its claim protects the artifact."""

    job: Job
    job_class: JobClass
    cleaned: bool
    held: bool


def invalid_name_reason(name: str, *, suffix: str = "") -> str | None:
    """Return what makes a name from the database unfit to be one entry of a root, None when it is fit.

    Args:
        name: the name, bytes that are not UTF-8 carried by surrogateescape.
        suffix: the longest ending that is put behind it to name another entry.
    """
    if name == "":
        return "is empty"
    if name in {".", ".."}:
        return f"is '{name}'"
    if "/" in name:
        return "contains '/'"
    if "\0" in name:
        return "contains a NUL"
    # Reserved as a whole and as a prefix, so that no name can ever reach what is ours inside a root.
    if name.startswith(TRASH_NAME):
        return "is the trash's own name"
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "is not a file name"
    if len(encoded) + len(suffix) > _NAME_MAX_BYTES:
        return f"is too long for a file name ({len(encoded)} bytes)"
    return None


def owned_artifacts(job: Job) -> tuple[Artifact, ...]:
    """Return the entries that a job owns by name; uploads named ``<id>_*`` come from a listing besides."""
    entries = (
        Artifact(RootName.RESULTS, job.id),
        Artifact(RootName.RESULTS, job.id + ARCHIVE_SUFFIX),
        Artifact(RootName.TEMP, job.id),
    )
    return entries if job.dem_filename is None else (*entries, Artifact(RootName.UPLOADS, job.dem_filename))


def possible_owner_ids(artifact: Artifact) -> tuple[str, ...]:
    """Return every job id that would own this entry by its name alone (``dem_filename`` comes besides)."""
    name = artifact.name
    if artifact.root is RootName.UPLOADS:
        return tuple(name[:at] for at, character in enumerate(name) if character == "_" and at > 0)
    if artifact.root is RootName.RESULTS and name.endswith(ARCHIVE_SUFFIX) and name != ARCHIVE_SUFFIX:
        return (name, name.removesuffix(ARCHIVE_SUFFIX))
    return (name,)


def blocking_claimant(claimants: Iterable[Claimant], going: Set[str]) -> Claimant | None:
    """Return the first job whose claim keeps a shared artifact, None when it may go.

    Args:
        claimants: all jobs that could own the artifact.
        going: ids of the jobs that are being cleaned right now.

    A live, held or unknown job protects it always; any other until it has been cleaned or goes now, so
    that the last of the jobs that share an upload takes it along.
    """
    for claimant in claimants:
        if claimant.job.id in going:
            continue
        if claimant.held or not claimant.cleaned or claimant.job_class in {JobClass.LIVE, JobClass.UNKNOWN}:
            return claimant
    return None
