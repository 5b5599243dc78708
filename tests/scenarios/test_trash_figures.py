"""With the trash on, freed and waiting space are two figures wherever a run is reported."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eemtcleanupd.cli.console import ConsoleReporter
from eemtcleanupd.config.plugin_settings import NotifierSettings
from eemtcleanupd.daemon.status_document import run_document
from eemtcleanupd.delivery.routing import wants
from eemtcleanupd.events import JobCleaned, RunFinished
from eemtcleanupd.formatting import human_size
from eemtcleanupd.model import Trigger
from eemtcleanupd.notifiers.messages import render
from eemtcleanupd.store.ledger import Ledger
from tests.cleanup.conftest import NOW, JobStore
from tests.conftest import RunCli, disk_bytes


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store")
    store.job("a", files=3, dem="a.tif")
    store.upload("a.tif")
    store.job("b", "failed", files=2)
    return store


def test_a_report_counts_what_waits_in_the_trash_and_when_it_is_deleted(store: JobStore) -> None:
    sizes = [
        disk_bytes(store.results("a")) + disk_bytes(store.path / "uploads/a.tif"),
        disk_bytes(store.results("b")),
    ]
    planned = store.run(dry_run=True, trash__grace_hours=48)
    report = store.run(trash__grace_hours=48)
    for each in (planned, report):
        assert (each.bytes_freed, each.bytes_trashed) == (0, sum(sizes))
        assert [each.successful.bytes_trashed, each.failed.bytes_trashed] == sizes
    assert report.purge_after == NOW + timedelta(hours=48)
    cleaned = {event.job.id: event for event in store.of(JobCleaned) if isinstance(event, JobCleaned)}
    assert [cleaned[job].bytes_trashed for job in "ab"] == sizes
    assert sum(artifact.size_bytes for artifact in cleaned["a"].artifacts) == sizes[0]
    assert {note.job_id: note.bytes_trashed for note in report.biggest} == dict(zip("ab", sizes, strict=True))


def test_every_text_names_both_figures(store: JobStore, capsys: pytest.CaptureFixture[str]) -> None:
    report = store.run(trash__grace_hours=48)
    waiting = human_size(report.bytes_trashed)
    assert report.purge_after is not None
    deletion = f"{report.purge_after.astimezone():%Y-%m-%d}"
    event = RunFinished(report)
    ConsoleReporter(verbose=False)(event)
    message = render(event)
    for text in (
        capsys.readouterr().out,
        "\n".join(line for _, line in event.log_lines()),
        message.headline,
        dict(message.facts)["Moved to Trash"],
    ):
        assert waiting in text
        assert deletion in text
    (biggest,) = [listing.lines for listing in message.lists if listing.title == "Biggest jobs"]
    assert human_size(report.successful.bytes_trashed) in biggest[0]


def test_the_ledger_keeps_both_figures_of_a_run_and_of_its_jobs(store: JobStore) -> None:
    report = store.run(trash__grace_hours=48)
    ledger = Ledger(store.open())
    (run,) = ledger.runs(1)
    document = run_document(run)
    assert (document["bytes_freed"], document["bytes_trashed"]) == (0, report.bytes_trashed)
    assert datetime.fromisoformat(str(document["purge_after"])) == report.purge_after
    entries = list(ledger.log_entries(report.run_id))
    assert [entry.bytes_freed for entry in entries] == [0, 0]
    assert sum(entry.bytes_trashed for entry in entries) == report.bytes_trashed


def test_an_upload_that_another_job_needs_again_does_not_count_as_trashed(store: JobStore) -> None:
    def submit(_: object) -> None:
        if not store.sql("SELECT 1 FROM jobs WHERE id = 'new'"):
            store.job("new", "pending", days=None, dem="a.tif", files=0)

    report = store.run(on_event=submit, trash__grace_hours=48)
    assert report.bytes_trashed == Ledger(store.open()).trash_summary()[1]
    assert (store.path / "uploads" / "a.tif").exists()


def test_without_the_trash_nothing_is_said_about_it(
    store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    report = store.run()
    assert (report.bytes_trashed, report.purge_after) == (0, None)
    assert report.bytes_freed > 0
    ConsoleReporter(verbose=False)(RunFinished(report))
    assert "trash" not in capsys.readouterr().out.lower() + render(RunFinished(report)).text().lower()


def test_a_purge_is_reported_by_default_only_if_it_frees_space(store: JobStore) -> None:
    settings = NotifierSettings()
    store.run(trash__grace_hours=48)
    assert not wants(settings, RunFinished(store.run(trigger=Trigger.TRASH, trash__grace_hours=48)))
    store.now += timedelta(hours=49)
    purge = store.run(trigger=Trigger.TRASH, trash__grace_hours=48)
    assert purge.bytes_freed > 0
    assert wants(settings, RunFinished(purge))
    assert human_size(purge.bytes_freed) in dict(render(RunFinished(purge)).facts)["Deleted from Trash"]


def test_the_commands_print_both_figures_as_json(tmp_path: Path, run_cli: RunCli) -> None:
    store = JobStore(tmp_path / "real", now=datetime.now(UTC))
    (store.path / "cleanup_config.yaml").write_text("trash: {grace_hours: 24}\ndatabase: {timezone: UTC}\n")
    store.job("a")
    answer = json.loads(run_cli("clean", "--json", cwd=store.path).stdout)
    assert answer["space_freed"]["bytes"] == 0
    trashed = answer["space_trashed"]["bytes"]
    assert trashed > 0
    assert [job["space_trashed_bytes"] for job in answer["details"]] == [trashed]
    (run,) = json.loads(run_cli("history", "--json", cwd=store.path).stdout)
    assert run["bytes_trashed"] == trashed
    last = json.loads(run_cli("status", "--json", cwd=store.path).stdout)["last_run"]
    assert (last["bytes_trashed"], last["purge_after"]) == (trashed, run["purge_after"])
    report = json.loads(run_cli("report", "--json", cwd=store.path).stdout)
    assert report["runs"]["last_24h"]["bytes_trashed"] == trashed
    assert run_cli("trash", "purge", "--yes", cwd=store.path).returncode == 0
    assert human_size(trashed) in (store.path / "logs" / "cleanup.log").read_text().splitlines()[-2]
