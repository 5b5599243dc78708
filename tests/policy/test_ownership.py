"""Which jobs own an entry, and which jobs protect it."""

import pytest

from eemtcleanupd.model import Artifact, Job, JobClass, RootName
from eemtcleanupd.policy.ownership import Claimant, blocking_claimant, owned_artifacts, possible_owner_ids


def claimant(job_id: str, job_class: JobClass, *, cleaned: bool = False, held: bool = False) -> Claimant:
    return Claimant(Job(job_id, "any"), job_class, cleaned, held)


@pytest.mark.parametrize(
    ("other", "protects"),
    [
        (claimant("b", JobClass.LIVE), True),
        (claimant("b", JobClass.LIVE, cleaned=True), True),
        (claimant("b", JobClass.UNKNOWN, cleaned=True), True),
        (claimant("b", JobClass.SUCCESSFUL), True),
        (claimant("b", JobClass.SUCCESSFUL, cleaned=True), False),
        (claimant("b", JobClass.FAILED, cleaned=True), False),
        (claimant("b", JobClass.FAILED, cleaned=True, held=True), True),
        (claimant("a", JobClass.SUCCESSFUL), False),
    ],
)
def test_a_shared_upload_is_deleted_only_after_every_other_job_that_names_it_is_cleaned(
    other: Claimant, protects: bool
) -> None:
    mine = claimant("a", JobClass.SUCCESSFUL)
    assert (blocking_claimant([mine, other], {"a"}) is not None) is protects


def test_jobs_that_are_cleaned_together_do_not_block_each_other() -> None:
    together = [claimant("a", JobClass.SUCCESSFUL), claimant("b", JobClass.FAILED)]
    assert blocking_claimant(together, {"a", "b"}) is None


@pytest.mark.parametrize(
    ("root", "name", "owners"),
    [
        (RootName.RESULTS, "a", {"a"}),
        (RootName.RESULTS, "a_results.zip", {"a", "a_results.zip"}),
        (RootName.RESULTS, "_results.zip", {"_results.zip"}),
        (RootName.TEMP, "a_b", {"a_b"}),
        (RootName.UPLOADS, "a_b_dem.tif", {"a", "a_b"}),
        (RootName.UPLOADS, "_dem.tif", set()),
        (RootName.UPLOADS, "dem.tif", set()),
    ],
)
def test_every_job_that_could_own_an_entry_by_name_is_found(
    root: RootName, name: str, owners: set[str]
) -> None:
    assert set(possible_owner_ids(Artifact(root, name))) == owners


def test_each_entry_that_a_job_owns_by_name_leads_to_the_job() -> None:
    for entry in owned_artifacts(Job("job_1", "completed")):
        assert "job_1" in possible_owner_ids(entry)
