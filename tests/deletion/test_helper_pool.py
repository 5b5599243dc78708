"""Helper processes: what they remove, and the effect when they or the run end early."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion import helper_pool as module
from eemtcleanupd.deletion.helper_pool import HelperPool
from eemtcleanupd.deletion.pool import DeletionPool, RemovalResult
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.deletion.tree import FolderTask
from tests.deletion.conftest import fill, helper_servers, helpers_of, stage_for_deletion, wait_until


@pytest.mark.slow
def test_helpers_empty_folders_and_end_with_the_pool(trash: Trash) -> None:
    for number in range(12):
        fill(trash.root.path / "job" / f"folder-{number}" / "deeper", 300)
    with DeletionPool(2, StopFlag()) as pool:
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result()
        helpers = helpers_of()
    assert len(helpers) == 2
    assert not any(_alive(helper) for helper in helpers)
    assert helper_servers() == []
    assert (removed.files, removed.folders, removed.complete) == (3600, 25, True)
    assert list(trash.items()) == []


def test_no_two_helpers_give_a_folder_the_same_name(trash: Trash) -> None:
    folders = ["first", "second"]
    for folder in folders:
        fill(trash.root.path / folder / "deeper", 1)
    trash.stage("job", folders)
    item = os.open("job", os.O_RDONLY | os.O_DIRECTORY, dir_fd=trash.fd)
    controls = DeletionControls(StopFlag())
    helpers = HelperPool(1, controls)
    helpers.ensure_processes(2)
    fresh: list[str] = []
    for folder in folders:  # the first helper returns to the end of the queue
        task = FolderTask(folder, "", trash.root.device)
        helpers.empty_folder(item, task, lambda name, _label: fresh.append(name), lambda _: None)
    helpers.close()
    controls.close()
    os.close(item)
    assert len(set(fresh)) == 2


def test_no_process_is_started_for_a_few_files(trash: Trash) -> None:
    fill(trash.root.path / "job" / "folder", 100)
    with DeletionPool(4, StopFlag()) as pool:
        assert pool.remove(trash, stage_for_deletion(trash, "job")).result().complete
        assert helper_servers() == []


def test_a_prepared_pool_without_work_leaves_no_process(trash: Trash) -> None:
    with DeletionPool(4, StopFlag()) as pool:
        pool.prepare()
        wait_until(helper_servers)
    assert helper_servers() == []


def test_removal_succeeds_after_the_server_process_was_killed(
    trash: Trash, caplog: pytest.LogCaptureFixture
) -> None:
    fill(trash.root.path / "job" / "folder", 1000)
    with DeletionPool(4, StopFlag()) as pool:
        pool.prepare()
        wait_until(helper_servers)
        (server,) = helper_servers()
        os.kill(server, signal.SIGKILL)
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result()
    assert (removed.complete, removed.files) == (True, 1000)
    assert _warnings(caplog) == [module.__name__]


def test_removal_succeeds_if_no_process_can_be_started(
    trash: Trash, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(trash.root.path / "job" / "folder", 1000)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with DeletionPool(4, StopFlag()) as pool:
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result()
    assert (removed.complete, removed.files) == (True, 1000)
    assert _warnings(caplog) == [module.__name__]


def test_removal_succeeds_if_the_server_process_does_not_respond(
    trash: Trash, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT_SECONDS", 0.1)
    fill(trash.root.path / "job" / "folder", 1000)
    with DeletionPool(4, StopFlag()) as pool:
        pool.prepare()
        wait_until(helper_servers)  # its command line becomes readable shortly after its start
        (server,) = helper_servers()
        os.kill(server, signal.SIGSTOP)
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result(timeout=20)
    assert (removed.complete, removed.files) == (True, 1000)
    assert _warnings(caplog) == [module.__name__]


def test_removal_succeeds_without_free_descriptors_for_helpers(
    trash: Trash, caplog: pytest.LogCaptureFixture
) -> None:
    fill(trash.root.path / "job" / "folder", 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with DeletionPool(4, StopFlag()) as pool:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            pool.prepare()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result(timeout=20)
    assert (removed.complete, removed.files) == (True, 1000)
    assert _warnings(caplog) == [module.__name__]


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.name for record in caplog.records if record.levelname == "WARNING"]


_NO_THREADS = """
import sys, threading
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
from eemtcleanupd.deletion.helper_process import main
main()
"""


def test_removal_succeeds_if_helpers_cannot_start_threads(
    trash: Trash, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "HELPER_CODE", f"import sys; sys.path.append(sys.argv.pop(1)); {_NO_THREADS}")
    for number in range(8):
        fill(trash.root.path / "job" / f"folder-{number}", 300)
    with DeletionPool(2, StopFlag()) as pool:
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result()
    assert (removed.complete, removed.files, removed.errors) == (True, 2400, ())
    assert not capfd.readouterr().err


def test_an_inode_whose_links_many_helpers_remove_is_counted_once(trash: Trash) -> None:
    original = trash.root.path / "original"
    original.write_bytes(b"x" * 100_000)
    size = original.stat().st_blocks * 512
    links = 100
    for number in range(16):
        fill(trash.root.path / "job" / f"folder-{number}", 0)
        for link in range(links):
            for name in ("a", "b", "c"):
                target = trash.root.path / "job" / f"folder-{number}" / f"{link}-{name}"
                first = trash.root.path / "job" / "folder-0" / f"{link}-{name}"
                if number == 0:
                    target.write_bytes(b"x" * 100_000)
                else:
                    os.link(first, target)
    folders = sum(path.stat().st_blocks for path in (trash.root.path / "job").rglob("*") if path.is_dir())
    folders += (trash.root.path / "job").stat().st_blocks
    with DeletionPool(4, StopFlag()) as pool:
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result()
    assert removed.bytes_freed == 3 * links * size + folders * 512


@pytest.mark.slow
def test_a_killed_helper_leaves_its_items_incomplete_and_the_others_are_removed(trash: Trash) -> None:
    for job in ("first", "second", "third"):
        for number in range(8):
            fill(trash.root.path / job / f"folder-{number}", 600)
    # The first folder takes two seconds, all take nine: a busy machine does not finish before the kill.
    with DeletionPool(1, StopFlag(), limits=RateLimits(deletes_per_second=1000)) as pool:
        futures = [pool.remove(trash, stage_for_deletion(trash, job)) for job in ("first", "second")]
        wait_until(helpers_of)
        (helper,) = helpers_of()
        wait_until(lambda: pool.files > 0)
        os.kill(helper, signal.SIGKILL)
        pool.controls.apply(RateLimits())
        results = [future.result(timeout=20) for future in futures]
        later = pool.remove(trash, stage_for_deletion(trash, "third")).result(timeout=20)
        again = [pool.remove(trash, f"{job}.deleting").result(timeout=20) for job in ("first", "second")]
    assert any(not result.complete and result.errors for result in results)
    assert later.complete
    assert all(result.complete for result in again)
    assert list(trash.items()) == []


@pytest.mark.slow
def test_a_stop_reaches_helpers_in_the_middle_of_a_folder(trash: Trash) -> None:
    fill(trash.root.path / "job" / "folder", 20_000)
    stop = StopFlag()
    folder = trash.fd
    with DeletionPool(1, stop, limits=RateLimits(deletes_per_second=1000)) as pool:
        future = pool.remove(trash, stage_for_deletion(trash, "job"))
        item = os.open("job.deleting", os.O_RDONLY, dir_fd=folder)
        wait_until(lambda: _moved_up(item) and _count_entries(item) < 20_000)
        stop.set()
        removed: RemovalResult = future.result(timeout=20)
        left = _count_entries(item)
        os.close(item)
    assert not removed.complete
    assert removed.errors == ()
    assert left > 0
    assert removed.files + left == 20_000


def _moved_up(item: int) -> bool:
    return any("-" in name for name in os.listdir(item))


def _count_entries(item: int) -> int:
    (name,) = (name for name in os.listdir(item) if "-" in name)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=item)
    try:
        return len(os.listdir(folder))
    finally:
        os.close(folder)


_SCRIPT = """
import sys
from pathlib import Path
from eemtcleanupd.deletion.helper_pool import HelperPool
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.model import RootName
from eemtcleanupd.cancellation import StopFlag
trash = Trash(open_root(RootName.RESULTS, Path(sys.argv[1])))
with DeletionPool(2, StopFlag(), limits=RateLimits(deletes_per_second=1000)) as pool:
    trash.stage("job", ["job"])
    pool.remove(trash, trash.mark_deleting("job"))
    print("started", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_helpers_ignore_signals_and_end_when_the_run_is_killed(
    tmp_path: Path, number: signal.Signals
) -> None:
    fill(tmp_path / "results" / "job" / "folder", 30_000)
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path / "results")], stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        wait_until(lambda: len(helpers_of(run.pid)) == 2)
        helpers = helpers_of(run.pid)
        wait_until(lambda: all(_ignores(helper, number) for helper in helpers))
        for helper in helpers:
            os.kill(helper, number)
        assert all(_alive(helper) for helper in helpers)
        run.kill()
    wait_until(lambda: not any(_alive(helper) for helper in helpers))
    assert any((tmp_path / "results" / ".eemtcleanupd-trash").iterdir())


_KILLED = """
import os, select, signal, socket, sys
from eemtcleanupd.deletion.helper_pool import HelperPool
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.tree import FolderTask
from eemtcleanupd.cancellation import StopFlag
requests, is_answered = int(sys.argv[2]), sys.argv[3] == "True"
send_fds = socket.send_fds
def send_and_be_killed(channel, *rest):
    global requests
    send_fds(channel, *rest)
    requests -= 1
    if not requests:
        if is_answered:
            select.select([channel], [], [])
        os.kill(os.getpid(), signal.SIGKILL)
socket.send_fds = send_and_be_killed
item = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
helpers = HelperPool(1, DeletionControls(StopFlag()))
helpers.ensure_processes(1)
helpers.empty_folder(item, FolderTask("folder", "", os.fstat(item).st_dev), print, print)
"""


@pytest.mark.parametrize("requests", [1, 2])  # for a helper, or to empty a folder
@pytest.mark.parametrize("is_answered", [False, True])
def test_helpers_of_a_killed_run_end_without_output(
    tmp_path: Path, requests: int, *, is_answered: bool
) -> None:
    fill(tmp_path / "folder", 1)
    command = [sys.executable, "-c", _KILLED, str(tmp_path), str(requests), str(is_answered)]
    run = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert (run.returncode, run.stderr) == (-signal.SIGKILL, b"")


def _ignores(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored.split()[1], 16) & 1 << (number - 1))


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
