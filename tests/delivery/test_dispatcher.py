"""Each notifier receives the events that it wants, once, and no run waits for it."""

from __future__ import annotations

from dataclasses import replace

from eemtcleanupd.clock import monotonic_seconds
from eemtcleanupd.delivery import Dispatcher
from eemtcleanupd.events import JobCleaned, RunFinished
from eemtcleanupd.model import Job, JobClass
from eemtcleanupd.store.address import StoreAddress
from tests.cleanup.conftest import NOW, JobStore
from tests.delivery.conftest import Recorder
from tests.notifiers.samples import FAILED, FINISHED, report
from tests.plugins.conftest import MakePlugins, Module


def test_each_event_arrives_once_and_is_counted(recorder: Recorder) -> None:
    dispatcher = recorder.open()
    dispatcher.publish(FINISHED)
    dispatcher.publish(FAILED)
    assert dispatcher.drain(10)
    assert recorder.events() == ["RunFinished", "RunFailed"]
    assert (recorder.stats().delivered, recorder.stats().waiting) == (2, 0)


def test_the_database_stays_unchanged_if_only_dry_runs_are_allowed(recorder: Recorder) -> None:
    dispatcher = recorder.open(", on: [dry_run]", durable=False)
    dispatcher.publish(RunFinished(replace(FINISHED.report, dry_run=True)))
    assert dispatcher.drain(10)
    assert recorder.events() == ["RunFinished"]
    assert recorder.store.sql("SELECT count(*) FROM sqlite_master WHERE name LIKE 'cleanup%'") == [(0,)]


def test_a_notifier_that_a_reload_disables_receives_nothing(recorder: Recorder) -> None:
    dispatcher = recorder.open()
    dispatcher.configure(recorder.plugins(", enabled: false"))
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    assert recorder.events() == []


def test_many_job_events_arrive_in_order_and_from_memory(
    module: Module, plugins: MakePlugins, store: JobStore
) -> None:
    file = store.path / "job_ids"
    name = module(
        "listener",
        f"@hookimpl\ndef job_cleaned(event):\n"
        f"    with open({str(file)!r}, 'a') as file:\n        print(event.job.id, file=file)\n",
    )
    dispatcher = Dispatcher(StoreAddress.of_file(store.path / "jobs.db"), lambda: NOW)
    dispatcher.configure(plugins(f"plugins: [{name}]"))
    for number in range(2000):
        job = Job(f"job-{number}", "completed")
        dispatcher.publish(JobCleaned("run", job, JobClass.SUCCESSFUL, None, (), 1))
    assert dispatcher.drain(30)
    dispatcher.close()
    assert file.read_text().split() == [f"job-{number}" for number in range(2000)]
    assert store.sql("SELECT count(*) FROM sqlite_master WHERE name = 'cleanup_outbox'") == [(0,)]


def test_an_error_while_queueing_does_not_reach_the_run(recorder: Recorder) -> None:
    dispatcher = recorder.open()
    dispatcher.publish(RunFinished(report(host=object())))  # not serializable
    dispatcher.publish(FINISHED)
    assert dispatcher.drain(10)
    assert recorder.events() == ["RunFinished"]


def test_publish_does_not_wait_for_a_notifier_that_hangs(recorder: Recorder) -> None:
    recorder.set_code("import threading; threading.Event().wait(30)")
    dispatcher = recorder.open(", timeout_seconds: 0.05")
    started = monotonic_seconds()
    dispatcher.publish(FINISHED)
    assert monotonic_seconds() - started < 5
