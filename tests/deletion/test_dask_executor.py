"""A Dask cluster of real processes on loopback: what it removes, and how a run survives its failures."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion.dask_executor import DaskAddress, DaskExecutor
from eemtcleanupd.deletion.dask_task import ItemLocation, remove_subtree
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.deletion.rate_limit import RateLimits
from eemtcleanupd.deletion.roots import Root
from eemtcleanupd.deletion.trash import MARKER_NAME, Trash
from eemtcleanupd.deletion.tree import FolderTask
from eemtcleanupd.model import TRASH_NAME, RootName
from tests.deletion.conftest import allocated, stage_for_deletion, wait_until
from tests.ports import free_port

pytestmark = [pytest.mark.xdist_group("dask"), pytest.mark.timeout(110)]

_MARKER = "0123456789abcdef"


def own_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the records of this program; the libraries of the cluster can warn too."""
    return [record for record in caplog.records if record.name.startswith("eemtcleanupd")]


def own_warnings(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often this program warned."""
    return len(own_records(caplog))


class Dask:
    """A scheduler and its workers, each a process with a certificate; all end with ``close``."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        identity = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        identity.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
        identity.private_key_pem.write_to_path(str(folder / "key.pem"))
        self._folder = folder
        self._tls = ["--tls-ca-file", "ca.pem", "--tls-cert", "cert.pem", "--tls-key", "key.pem"]
        self.port = free_port()
        self.scheduler = self._run(
            "scheduler", "--host", "tls://127.0.0.1", "--port", str(self.port), "--no-dashboard"
        )
        self.workers: list[subprocess.Popen[bytes]] = []

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:], *self._tls],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _add_worker(self) -> None:
        """Start a worker with one thread and without a nanny process, so that a kill ends the worker."""
        worker = self._run(
            "worker",
            f"tls://127.0.0.1:{self.port}",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--local-directory",
            str(self._folder),
        )
        self.workers.append(worker)

    @property
    def address(self) -> DaskAddress:
        """Its address and the client certificate."""
        files = (self._folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
        return DaskAddress(f"tls://127.0.0.1:{self.port}", *files)

    def start(self, workers: int) -> DaskExecutor:
        """Start workers, and return the cluster when all have connected."""
        for _ in range(workers):
            self._add_worker()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            cluster = DaskExecutor.connect(self.address, lambda _: None)
            if cluster is not None and cluster.threads == workers:
                return cluster
            if cluster is not None:
                cluster.close()
            time.sleep(0.05)
        raise AssertionError("the workers do not come up")

    def close(self) -> None:
        """End all processes."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Dask]:
    (tmp_path / "dask").mkdir()
    started = Dask(tmp_path / "dask")
    yield started
    started.close()


@pytest.fixture
def trash(root: Root) -> Iterator[Trash]:
    opened = Trash(root)
    (root.path / TRASH_NAME / MARKER_NAME).write_text(_MARKER)
    yield opened
    opened.close()


def fill(folder: Path, folders: int, files: int) -> None:
    for number in range(folders):
        below = folder / f"d{number}" / "deeper"
        below.mkdir(parents=True)
        for file in range(files):
            (below / f"f{file}").write_bytes(b"x" * 100)


@contextmanager
def deleting(
    trash: Trash, cluster: DaskExecutor, stop: StopFlag, deletes_per_second: int
) -> Iterator[tuple[DeletionPool, Future[RemovalResult]]]:
    """Delete the folder ``job`` slowly, and yield when the cluster has started."""
    slow = RateLimits(deletes_per_second=deletes_per_second)
    item = stage_for_deletion(trash, "job")
    with DeletionPool(1, stop, cluster=cluster, limits=slow) as pool:
        future = pool.remove(trash, item)
        wait_until(lambda: pool.files > 0)
        yield pool, future


def _location(root: Root, item: str = "item.deleting") -> ItemLocation:
    return ItemLocation(RootName.RESULTS, str(root.path), root.inode, _MARKER, item)


# -- the task by itself -------------------------------------------------------------------------------------


def test_a_task_removes_its_subtree_and_can_run_twice(root: Root, trash: Trash) -> None:
    fill(root.path / "job", 3, 5)
    trash.stage("item", ["job"])
    trash.mark_deleting("item")
    request = FolderTask("job", "job", 0)
    first = remove_subtree(_location(root), request, RateLimits())
    again = remove_subtree(_location(root), request, RateLimits())
    assert (first.stats.files, first.stats.folders, first.stats.errors, first.left) == (15, 7, [], ())
    assert (again.stats.files, again.stats.folders, again.stats.error_count, again.left) == (0, 0, 0, ())


def test_a_task_returns_what_is_left_when_its_time_is_up(root: Root, trash: Trash) -> None:
    fill(root.path / "job", 3, 5)
    trash.stage("item", ["job"])
    trash.mark_deleting("item")
    result = remove_subtree(_location(root), FolderTask("job", "job", 0), RateLimits(), seconds=0)
    assert (result.stats.files, result.left) == (0, (("job", "job"),))


@pytest.mark.parametrize("change", ["no root", "no trash", "another marker", "another folder"])
def test_a_task_touches_nothing_on_another_mount(
    root: Root, trash: Trash, tmp_path: Path, change: str
) -> None:
    other = tmp_path / "other"
    location = _location(root)
    if change != "no root":
        fill(other / "job", 1, 1)
        location = ItemLocation(RootName.RESULTS, str(other), other.stat().st_ino, _MARKER, "item.deleting")
    if change in {"another marker", "another folder"}:
        fill(other / TRASH_NAME / "item.deleting" / "job", 1, 1)
        (other / TRASH_NAME / MARKER_NAME).write_text("f" * 16 if change == "another marker" else _MARKER)
    if change == "another folder":
        location = ItemLocation(RootName.RESULTS, str(other), root.inode, _MARKER, "item.deleting")
    if change == "no root":
        location = ItemLocation(RootName.RESULTS, str(other), 1, _MARKER, "item.deleting")
    before = sorted(other.rglob("*"))
    result = remove_subtree(location, FolderTask("job", "job", 0), RateLimits())
    assert result.unusable_reason
    assert sorted(other.rglob("*")) == before


# -- a cluster ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_removes_and_counts_the_same_as_one_machine(
    root: Root, trash: Trash, dask: Dask, tmp_path: Path
) -> None:
    """Links across folders and gradually truncated files are counted correctly."""

    def build(job: Path) -> int:
        fill(job, 4, 300)
        for number in range(1, 4):
            os.link(job / "d0/deeper/f0", job / f"d{number}" / "deeper" / "link")
        (job / "d1" / "big").write_bytes(b"x" * (3 << 20))
        os.link(job / "d2/deeper/f1", tmp_path / f"outside-{job.name}")
        return allocated(job) - (tmp_path / f"outside-{job.name}").stat().st_blocks * 512

    def remove(job: str, cluster: DaskExecutor | None) -> RemovalResult:
        trash.stage(job, [job])
        limits = RateLimits(truncate_chunk_bytes=1 << 20)
        with DeletionPool(1, StopFlag(), cluster=cluster, limits=limits) as pool:
            return pool.remove(trash, trash.mark_deleting(job)).result(timeout=60)

    sizes = [build(root.path / "alone"), build(root.path / "together")]
    alone = remove("alone", None)
    together = remove("together", dask.start(2))
    assert together == alone
    assert [alone.bytes_freed, together.bytes_freed] == sizes
    assert (alone.complete, alone.files) == (True, 1204)
    assert list(trash.items()) == []


@pytest.mark.slow
def test_a_run_survives_the_death_of_a_worker_and_of_the_scheduler(
    root: Root, trash: Trash, dask: Dask, caplog: pytest.LogCaptureFixture
) -> None:
    fill(root.path / "job", 3, 1000)
    with (
        caplog.at_level(logging.WARNING),
        deleting(trash, dask.start(2), StopFlag(), 100) as (pool, future),
    ):
        dask.workers[0].send_signal(signal.SIGKILL)
        wait_until(lambda: own_warnings(caplog) == 1)
        assert not future.done()
        dask.scheduler.send_signal(signal.SIGKILL)
        wait_until(lambda: own_warnings(caplog) == 2)
        pool.controls.apply(RateLimits())
        removed = future.result(timeout=60)
    assert (removed.complete, removed.error_count) == (True, 0)
    assert removed.files <= 3000  # what the killed worker removed is unknown
    assert list(trash.items()) == []


@pytest.mark.slow
def test_a_run_survives_a_frozen_scheduler(
    root: Root, trash: Trash, dask: Dask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel keeps its connections open."""
    monkeypatch.setattr("eemtcleanupd.deletion.dask_executor.CHECK_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr("eemtcleanupd.deletion.dask_executor.REPLY_TIMEOUT_SECONDS", 0.5)
    fill(root.path / "job", 3, 1000)
    with (
        caplog.at_level(logging.WARNING),
        deleting(trash, dask.start(1), StopFlag(), 100) as (pool, future),
    ):
        dask.scheduler.send_signal(signal.SIGSTOP)
        wait_until(lambda: own_warnings(caplog) == 1)
        pool.controls.apply(RateLimits())
        removed = future.result(timeout=60)
    assert (removed.complete, removed.error_count) == (True, 0)
    assert list(trash.items()) == []


@pytest.mark.slow
def test_workers_without_the_mount_are_excluded(
    root: Root, trash: Trash, dask: Dask, caplog: pytest.LogCaptureFixture
) -> None:
    """The root's path does not exist for the workers, as on another machine."""
    fill(root.path / "job", 2, 300)
    cluster = dask.start(1)
    elsewhere = Root(root.name, Path("/nowhere/results"), root.fd, root.device, root.inode)
    trash.root = elsewhere
    trash.stage("item", ["job"])
    with caplog.at_level(logging.WARNING), DeletionPool(1, StopFlag(), cluster=cluster) as pool:
        removed = pool.remove(trash, trash.mark_deleting("item")).result(timeout=60)
    assert (removed.complete, removed.files) == (True, 600)
    excluded, disabled = (record.getMessage() for record in own_records(caplog))
    assert "/nowhere/results" in excluded
    assert disabled


@pytest.mark.slow
def test_a_stop_ends_the_tasks_of_the_cluster_and_the_next_run_completes_the_item(
    root: Root, trash: Trash, dask: Dask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eemtcleanupd.deletion.dask_executor.SLICE_SECONDS", 60)  # a worker can be slow
    fill(root.path / "job", 4, 300)
    stop = StopFlag()
    cluster = dask.start(1)
    with deleting(trash, cluster, stop, 50) as (pool, future):
        stop.set()
        first = future.result(timeout=100)
        # Thousands of folders can be waiting: none of them is sent to the cluster after a stop.
        rest = FolderTask("job", "job", root.device)
        assert cluster.empty_folder(trash, "job.deleting", rest, pool.controls, lambda *_: None) is None
    assert (first.complete, first.error_count) == (False, 0)
    with DeletionPool(1, StopFlag()) as pool:
        second = pool.remove(trash, "job.deleting").result(timeout=60)
    assert (second.complete, first.files + second.files) == (True, 1200)


@pytest.mark.slow
def test_a_missing_scheduler_causes_one_warning(dask: Dask, monkeypatch: pytest.MonkeyPatch) -> None:
    dask.scheduler.kill()
    monkeypatch.setattr("eemtcleanupd.deletion.dask_executor.CONNECT_SECONDS", 1)
    warnings: list[str] = []
    assert DaskExecutor.connect(dask.address, warnings.append) is None
    (warning,) = warnings
    assert dask.address.scheduler in warning
