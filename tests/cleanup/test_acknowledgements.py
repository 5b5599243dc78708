"""Runs count acknowledged warnings, on every kind of database."""

from __future__ import annotations

from eemtcleanupd.cleanup import RunRequest, clean
from eemtcleanupd.cleanup.context import NullHooks
from eemtcleanupd.events import JobSkipped, RunReport
from eemtcleanupd.model import Acknowledgement, Job
from eemtcleanupd.store.ledger import Ledger
from tests.cleanup.conftest import JobStore


class Vetoes(NullHooks):
    def __init__(self, reason: str) -> None:
        self.reason = reason

    def veto(self, job: Job) -> str | None:
        return self.reason


def kept_by(store: JobStore, reason: str) -> RunReport:
    store.events = []
    request = RunRequest("tester")
    return clean(
        store.config(), request, emit=store.events.append, clock=lambda: store.now, hooks=Vetoes(reason)
    )


def skipped(store: JobStore) -> list[tuple[str, bool, bool]]:
    events = [event for event in store.events if isinstance(event, JobSkipped)]
    return [(event.job.id, event.notable, event.acknowledged) for event in events]


def test_an_acknowledged_veto_is_counted_until_its_reason_changes(store: JobStore) -> None:
    store.job("a")
    first = kept_by(store, "the paper needs it")
    assert (first.skipped, first.acknowledged, len(first.vetoed), first.vetoed_jobs) == (1, 0, 1, 1)
    ledger = Ledger(store.open())
    ledger.acknowledge(Acknowledgement("a", "the paper needs it", "we know", "ann"), store.now)
    second = kept_by(store, "the paper needs it")
    assert (second.skipped, second.acknowledged, second.vetoed, second.vetoed_jobs) == (0, 1, (), 0)
    assert skipped(store) == [("a", False, True)]
    third = kept_by(store, "the thesis needs it")
    assert (third.skipped, third.acknowledged, len(third.vetoed)) == (1, 0, 1)
    assert skipped(store) == [("a", True, False)]


def test_the_newest_acknowledgement_of_a_job_counts(store: JobStore) -> None:
    store.job("a")
    store.run(force=True)
    ledger = Ledger(store.open())
    for warning in ("first", "second"):
        ledger.acknowledge(Acknowledgement("a", warning, "we know", "ann"), store.now)
    assert [known.warning for known in ledger.all_acknowledgements()] == ["second"]
    assert ledger.acknowledgements(["a", "b"]).keys() == {"a"}
    assert ledger.count_acknowledgements() == 1
    ledger.remove_acknowledgement("a")
    assert ledger.acknowledgements(["a"]) == {}
