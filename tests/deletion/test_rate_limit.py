"""Rates that hold across threads and processes, priorities, and changes during a run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eemtcleanupd.cancellation import StopFlag
from eemtcleanupd.deletion import rate_limit as module
from eemtcleanupd.deletion.pool import DeletionPool
from eemtcleanupd.deletion.priority import Priority
from eemtcleanupd.deletion.rate_limit import DeletionControls, RateLimits
from eemtcleanupd.deletion.trash import Trash
from eemtcleanupd.deletion.tree import RemovalStats, unlink_entry
from tests.deletion.conftest import fill, helpers_of, stage_for_deletion, wait_until

_IDLE = 3 << 13


@pytest.fixture
def controls() -> Iterator[DeletionControls]:
    opened = DeletionControls(StopFlag())
    yield opened
    opened.close()


class Time:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(module, "monotonic_seconds", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def test_without_limits_no_thread_waits(controls: DeletionControls, clock: Time) -> None:
    assert all(controls.acquire(1 << 40) for _ in range(10_000))
    assert clock.slept == 0


@pytest.mark.parametrize(
    ("limits", "files", "size", "seconds"),
    [
        (RateLimits(deletes_per_second=100), 1000, 1 << 30, 10),
        (RateLimits(bytes_per_second=1 << 20), 100, 1 << 20, 100),
        (RateLimits(bytes_per_second=1 << 20, deletes_per_second=10), 1000, 1 << 10, 100),
        (RateLimits(deletes_per_second=1), 5, 0, 5),
        (RateLimits(bytes_per_second=1000), 1, 100_000, 100),
    ],
)
def test_the_time_follows_from_the_limits(
    controls: DeletionControls, clock: Time, limits: RateLimits, files: int, size: int, seconds: float
) -> None:
    controls.apply(limits)
    for _ in range(files):
        assert controls.acquire(size)
    assert seconds - 1.2 <= clock.slept <= seconds + 0.1


def test_idle_time_is_not_accumulated(controls: DeletionControls, clock: Time) -> None:
    controls.apply(RateLimits(deletes_per_second=100))
    clock.now += 3600
    for _ in range(200):
        controls.acquire(0)
    assert clock.slept >= 1.8


def test_a_new_limit_reaches_a_thread_that_waits_for_the_old_one(
    controls: DeletionControls, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.slept > 1:
            controls.apply(RateLimits())

    monkeypatch.setattr(time, "sleep", sleep)
    controls.apply(RateLimits(bytes_per_second=1))
    assert controls.acquire(1 << 40)
    assert clock.slept < 1.2


def test_a_stop_reaches_a_waiting_thread(
    controls: DeletionControls, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: controls.stop.set())
    controls.apply(RateLimits(deletes_per_second=1))
    assert [controls.acquire(0) for _ in range(3)] == [True, False, False]


def test_a_reload_lifts_a_limit_while_helpers_empty_a_folder(trash: Trash) -> None:
    """At 5 per second, 600 files would take two minutes, longer than the timeout of a test."""
    for number in range(2):
        fill(trash.root.path / "job" / f"folder-{number}", 300)
    with DeletionPool(2, StopFlag(), limits=RateLimits(deletes_per_second=5)) as pool:
        future = pool.remove(trash, stage_for_deletion(trash, "job"))
        wait_until(helpers_of)
        assert not future.done()
        pool.controls.apply(RateLimits())
        removed = future.result(timeout=60)
    assert (removed.complete, removed.files) == (True, 600)


@pytest.mark.slow
def test_the_rate_limit_applies_to_all_processes_together(trash: Trash) -> None:
    for number in range(3):
        fill(trash.root.path / "job" / f"folder-{number}", 300)
    with DeletionPool(2, StopFlag(), limits=RateLimits(deletes_per_second=1000)) as pool:
        before = time.monotonic()
        removed = pool.remove(trash, stage_for_deletion(trash, "job")).result(timeout=60)
        seconds = time.monotonic() - before
        assert len(helpers_of()) == 2
    assert removed.files + removed.folders == 904
    assert 904 / seconds <= 1000 * 1.15


def _niceness(process: int) -> list[int]:
    """Return the niceness of all threads of a process except its main thread (field 19 of stat)."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    stats = [
        (task / "stat").read_text().rpartition(")")[2].split() for task in tasks if task.name != str(process)
    ]
    return [int(fields[16]) for fields in stats]


def test_only_deleting_threads_have_the_configured_priority_and_a_reload_changes_it(trash: Trash) -> None:
    for number in range(4):
        fill(trash.root.path / "job" / f"folder-{number}", 260)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    slow = RateLimits(deletes_per_second=20, nice=min(19, own + 3))
    with DeletionPool(1, StopFlag(), limits=slow) as pool:
        future = pool.remove(trash, stage_for_deletion(trash, "job"))
        wait_until(helpers_of)
        (helper,) = helpers_of()
        wait_until(lambda: set(_niceness(helper)) == {slow.nice})
        nicer = RateLimits(deletes_per_second=20, nice=min(19, own + 7), idle_io=True)
        pool.controls.apply(nicer)
        wait_until(lambda: set(_niceness(helper)) == {nicer.nice})
        thread = next(int(name) for name in os.listdir(f"/proc/{helper}/task") if name != str(helper))
        wait_until(lambda: Priority.of_thread(thread).io == _IDLE)
        assert os.getpriority(os.PRIO_PROCESS, 0) == own
        assert Priority.of_thread().io != _IDLE
        pool.controls.apply(RateLimits())
        assert future.result(timeout=60).complete


def test_a_priority_is_never_raised() -> None:
    own = Priority(nice=10, io=_IDLE)
    assert own.lowered(nice=5, idle_io=False) == own
    assert own.lowered(nice=15, idle_io=True) == Priority(15, _IDLE)
    assert Priority(0, 0).lowered(nice=0, idle_io=True) == Priority(0, _IDLE)


def test_a_refused_priority_returns_a_warning_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str | None] = []

    def work() -> None:
        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "setpriority", refuse)
        warnings.append(Priority(19, 0).apply())
        monkeypatch.setattr(os, "uname", lambda: type("", (), {"machine": "vax"}))
        warnings.append(Priority(os.getpriority(os.PRIO_PROCESS, 0), _IDLE).apply())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [str(warning).split(" ", 1)[0] for warning in warnings] == [
        "performance.nice",
        "performance.io_priority",
    ]


_HOLD = """
import sys
from eemtcleanupd.deletion.rate_limit import DeletionControls
from eemtcleanupd.cancellation import StopFlag
with DeletionControls(StopFlag(), int(sys.argv[1])).link_lock(int(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_link_is_removed_only_while_no_other_process_removes_one_of_the_same_inode(
    tmp_path: Path, controls: DeletionControls
) -> None:
    locks = {}
    for name in ("held", "one", "two", "three"):
        (tmp_path / name).write_bytes(b"x" * 5000)
        os.link(tmp_path / name, tmp_path / f"{name}-other")
        locks[name] = controls.link_lock((tmp_path / name).stat().st_ino)
    held = (tmp_path / "held").stat().st_ino
    free = next(name for name, lock in locks.items() if lock is not locks["held"])
    fd = os.open(tmp_path, os.O_RDONLY)
    command = [sys.executable, "-c", _HOLD, str(controls.fd), str(held)]
    with subprocess.Popen(
        command, pass_fds=[controls.fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        stats = RemovalStats()
        unlink_entry(fd, free, free, stats, controls)
        assert (stats.files, stats.bytes_freed) == (1, 0)
        waiting = threading.Thread(target=unlink_entry, args=(fd, "held", "held", stats, controls))
        waiting.start()
        wait_until(lambda: f"-> POSIX  ADVISORY  WRITE {os.getpid()} " in Path("/proc/locks").read_text())
        assert (tmp_path / "held").exists()
        other.communicate()
        waiting.join()
    os.close(fd)
    assert stats.files == 2
    assert not (tmp_path / "held").exists()
