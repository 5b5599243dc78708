"""The progress of a run counts jobs and bytes as they go, wherever it is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.cleanup import Progress, RunRequest, clean
from eemtcleanupd.daemon.status import RunStatus
from eemtcleanupd.model import Trigger
from eemtcleanupd.store.ledger import Ledger
from tests.cleanup.conftest import JobStore
from tests.conftest import RunCli

_SECONDS = 30


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path / "store", now=datetime.now(UTC))
    for number in range(12):
        store.job(f"job{number}", files=4)
    store.job("young", days=1)
    store.job("live", "running", days=None)
    return store


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + _SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)
    return found


@contextmanager
def running(store: JobStore, **options: object) -> Iterator[Progress]:
    """A run in a thread, which is stopped at the end."""
    progress, stop = Progress(), StopFlag()
    config = store.config(**options)
    thread = threading.Thread(
        target=lambda: clean(config, RunRequest("tester"), emit=lambda _: None, stop=stop, progress=progress)
    )
    thread.start()
    try:
        yield progress
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_jobs_are_counted_one_by_one_and_not_by_the_batch(store: JobStore) -> None:
    with running(store, performance__max_deletes_per_second=5, performance__max_workers=1) as progress:
        counts = set[int]()

        def seen() -> bool:
            counts.add(progress.jobs_done)
            return len(counts) >= 4

        wait_for(seen)
        assert progress.jobs_total == 12
        assert max(counts) < 12
        freed = progress.bytes_freed
        assert freed > 0
        wait_for(lambda: progress.bytes_freed > freed)


@pytest.mark.parametrize("options", [{}, {"trash__grace_hours": 5}, {"safety__max_jobs_per_run": 3}])
def test_at_the_end_all_jobs_are_done(store: JobStore, options: dict[str, object]) -> None:
    progress = Progress()
    report = clean(store.config(**options), RunRequest("tester"), emit=lambda _: None, progress=progress)
    assert progress.jobs_done == progress.jobs_total == 12
    assert (progress.bytes_freed, progress.bytes_trashed) == (report.bytes_freed, report.bytes_trashed)


def test_a_dry_run_counts_its_jobs_too(store: JobStore) -> None:
    progress, counts = Progress(), []
    request = RunRequest("tester", dry_run=True)
    clean(store.config(), request, emit=lambda _: counts.append(progress.jobs_done), progress=progress)
    assert sorted(counts) == counts
    assert set(range(12)) <= set(counts)
    assert progress.jobs_done == 12


@pytest.mark.slow
def test_the_bytes_of_one_large_folder_are_counted_while_it_is_emptied(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "large", now=datetime.now(UTC))
    store.job("large", files=3000)
    store.job("other", files=3000)
    with running(store, performance__max_deletes_per_second=300, performance__max_workers=1) as progress:
        values = set[int]()

        def seen() -> bool:
            values.add(progress.bytes_freed)
            return len(values) >= 4

        wait_for(seen)
        assert progress.jobs_done == 0


@pytest.mark.slow
def test_the_row_of_a_run_counts_what_is_recorded_so_far(store: JobStore) -> None:
    database = store.open()
    store.run(dry_run=True)
    with running(store, performance__max_deletes_per_second=5, performance__max_workers=1):
        wait_for(Ledger(database).exists)
        run = wait_for(lambda: next((each for each in Ledger(database).runs(1) if each.successful), None))
        assert (run.outcome, run.finished_at) == (None, None)
        assert run.bytes_freed > 0
        (done,) = store.sql("SELECT count(*), sum(bytes_freed) FROM cleanup_log WHERE action = 'cleaned'")
        assert (run.successful, run.bytes_freed) <= done


def test_the_row_of_a_run_has_the_same_counts_before_and_after_its_end(store: JobStore) -> None:
    store.run()
    (run,) = Ledger(store.open()).runs(1)
    (counted,) = store.sql("SELECT count(*), sum(bytes_freed) FROM cleanup_log")
    assert (run.successful, run.bytes_freed, run.errors) == (*counted, 0)


@pytest.fixture
def clean_process(store: JobStore) -> Iterator[subprocess.Popen[bytes]]:
    """A slow `clean` without a daemon."""
    (store.path / "cleanup_config.yaml").write_text(
        "database: {timezone: UTC}\nsafety: {min_idle_minutes: 0}\nperformance: {max_deletes_per_second: 5}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "eemtcleanupd", "clean"], cwd=store.path, stdout=subprocess.DEVNULL
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_status_shows_the_progress_of_a_clean_without_a_daemon(
    store: JobStore, run_cli: RunCli, clean_process: subprocess.Popen[bytes]
) -> None:
    def status() -> Any:
        return json.loads(run_cli("status", "--json", cwd=store.path).stdout)

    run = wait_for(lambda: (found := status()["run"]) and found["bytes_freed"] and found)
    assert (run["trigger"], run["jobs_total"]) == ("manual", 12)
    assert status()["running"] is False
    assert (
        RunStatus(**{**run, "started_at": datetime.now(UTC)}).trigger
        in run_cli("status", cwd=store.path).stdout
    )
    os.kill(clean_process.pid, signal.SIGKILL)
    clean_process.wait()
    assert status()["run"] is None  # although its file is still there


def test_the_file_of_a_run_that_ended_is_removed(store: JobStore, run_cli: RunCli) -> None:
    assert run_cli("clean", cwd=store.path).returncode == 0
    assert not list(store.path.glob("*run.json"))
    assert Trigger.MANUAL in run_cli("status", cwd=store.path).stdout
