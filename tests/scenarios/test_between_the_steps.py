"""What changes between two steps of a run: what a job still needs then stays, and is not lost in the trash."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.events import AuditEntry, RunReport
from eemtcleanupd.model import ArtifactPath, Job
from tests.cleanup.conftest import JobStore


class At(NullHooks):
    """Does something once, when a run has come to an action on a job."""

    def __init__(self, action: str, job_id: str, act: Callable[[], object]) -> None:
        self._moment = (action, job_id)
        self._act: Callable[[], object] | None = act

    def _reach(self, *moment: object) -> None:
        if moment == self._moment and self._act is not None:
            act, self._act = self._act, None
            act()

    def before_stage(self, job: Job, artifacts: Sequence[ArtifactPath]) -> str | None:
        self._reach("backup", job.id)
        return None

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        for entry in entries:
            self._reach(entry.action, entry.details.get("job_id"))


def run(store: JobStore, hooks: NullHooks, **options: object) -> RunReport:
    return clean(
        store.config(**options),
        RunRequest(user="tester"),
        emit=store.events.append,
        clock=lambda: store.now,
        hooks=hooks,
    )


@pytest.mark.parametrize("grace_hours", [0, 24])
def test_a_marker_that_comes_up_late_keeps_the_upload_that_the_job_shares(
    store: JobStore, grace_hours: int
) -> None:
    store.job("a", days=20, dem="dem.tif")
    store.job("b", days=10, dem="dem.tif")
    store.upload("dem.tif")
    run(
        store,
        At("cleaning", "a", (store.results("a") / ".eemt-keep").touch),
        trash__grace_hours=grace_hours,
    )
    assert store.cleaned() == {"b"}
    assert (store.results("a") / ".eemt-keep").exists()
    assert (store.path / "uploads/dem.tif").exists()


def test_a_job_that_is_run_again_while_it_is_deleted_keeps_the_upload_that_it_shares(store: JobStore) -> None:
    store.job("a", days=20, dem="dem.tif")
    for number in range(4):  # the first group has two jobs, and the next run on before that is recorded
        store.job(f"b{number}", days=10 - number / 10, dem="dem.tif")
    store.upload("dem.tif")

    def run_again() -> None:
        store.sql("UPDATE jobs SET status = 'running', completed_at = NULL WHERE id = 'a'")

    run(store, At("cleaning", "b3", run_again), performance__max_workers=1)
    assert store.cleaned() == {"b0", "b1", "b2", "b3"}
    assert (store.path / "uploads/dem.tif").exists()
