"""A job whose data is still in use waits for a later run, however its row says that it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from eemtcleanupd.deletion.blockers import keep_marker_reason
from eemtcleanupd.events import JobSkipped
from tests.cleanup.conftest import JobStore
from tests.conftest import settle
from tests.requirements import needs

IDLE: dict[str, Any] = {"safety__min_idle_minutes": 60}


def touch(path: Path, moment: datetime) -> None:
    os.utime(path, (moment.timestamp(), moment.timestamp()))


def reasons(store: JobStore) -> list[str]:
    return [event.reason for event in store.events if isinstance(event, JobSkipped) and event.notable]


@contextmanager
def open_elsewhere(*command: str | Path) -> Iterator[None]:
    """Keep a file open in another process."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        yield
        holder.communicate(b"\n")


HOLD = "import sys; file = open(sys.argv[1]); print(sys.argv[2], flush=True); sys.stdin.read()"


@pytest.mark.fast_parameters(2)
@pytest.mark.parametrize("place", ["results/a", "results/a/global", "temp/a", "results/a_results.zip"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_folder_or_zip_that_changed_lately_keeps_its_job(
    store: JobStore, place: str, dry_run: bool
) -> None:
    store.job("a")
    store.job("b")
    (store.path / "temp/a").mkdir()
    (store.path / "results/a_results.zip").write_bytes(b"zip")
    settle(store.path / "temp/a", store.now.replace(year=2025))
    settle(store.path / "results/a_results.zip", store.now.replace(year=2025))
    touch(store.path / place, store.now)
    report = store.run(dry_run=dry_run, **IDLE)
    assert (report.successful.jobs, report.skipped) == (1, 1)
    assert place in reasons(store)[0]
    assert store.results("a").exists()
    touch(store.path / place, store.now.replace(year=2025))
    assert store.run(**IDLE).successful.jobs == (2 if dry_run else 1)


def test_a_zip_that_appears_after_the_plan_keeps_its_job(store: JobStore) -> None:
    store.job("a")

    def build(event: object) -> None:
        if type(event).__name__ == "RunStarted":
            archive = store.path / "results/a_results.zip"
            archive.write_bytes(b"half")
            touch(archive, store.now)

    assert store.run(on_event=build, **IDLE).successful.jobs == 0
    assert store.results("a").exists()


def test_a_file_that_another_process_has_open_keeps_its_job(store: JobStore) -> None:
    store.job("a", dem="dem.tif")
    upload = store.upload("dem.tif")
    for file in (store.results("a") / "global/day_0.tif", upload):
        with open_elsewhere(sys.executable, "-c", HOLD, file, "open"):
            assert store.run(**IDLE).successful.jobs == 0
        assert "open" in reasons(store)[0]
    assert store.run(**IDLE).successful.jobs == 1


LIST = """
import os, sys
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
folder = os.open(sys.argv[1], FOLDER_FLAGS)
flags = {
    "use": os.O_RDONLY,
    "write": os.O_TMPFILE | os.O_WRONLY | os.O_NOFOLLOW,
    "anchor": os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW,
}
user = os.open(sys.argv[1], flags[sys.argv[2]]) if sys.argv[2] in flags else None
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("how", "cleaned"), [("list", 1), ("use", 0), ("write", 0), ("anchor", 0)])
def test_a_process_that_only_lists_a_folder_does_not_use_it(store: JobStore, how: str, cleaned: int) -> None:
    store.job("a")
    with open_elsewhere(sys.executable, "-c", LIST, store.results("a"), how):
        assert store.run(**IDLE).successful.jobs == cleaned


@pytest.mark.root
@needs("unshare", "mount")
def test_a_file_that_is_open_in_a_container_under_another_path_keeps_its_job(
    store: JobStore, tmp_path: Path
) -> None:
    store.job("a")
    elsewhere = tmp_path / "output"
    elsewhere.mkdir()
    script = f"mount --bind '{store.path}/results' '{elsewhere}' && exec '{sys.executable}' -c '{HOLD}' \
'{elsewhere}/a/global/day_0.tif' open"
    with open_elsewhere("unshare", "-m", "sh", "-c", script):
        assert store.run(**IDLE).successful.jobs == 0
    assert store.run(**IDLE).successful.jobs == 1


def test_the_rule_can_be_turned_off(store: JobStore) -> None:
    store.job("a")
    touch(store.results("a"), store.now)
    with open_elsewhere(sys.executable, "-c", HOLD, store.results("a") / "global/day_0.tif", "open"):
        assert store.run(safety__min_idle_minutes=0).successful.jobs == 1


_SUBVOLUME = """
set -e
truncate -s 200M image; mkfs.btrfs -q image; mount -o loop image store
mkdir store/uploads store/temp; btrfs -q subvolume create store/results >/dev/null
"""


@pytest.mark.slow
@pytest.mark.root
@needs("mkfs.btrfs", "btrfs", "unshare")
def test_a_job_with_a_subvolume_inside_is_kept_as_a_whole(tmp_path: Path) -> None:
    code = """
import subprocess, sys
from pathlib import Path
from tests.cleanup.conftest import JobStore
from eemtcleanupd.events import JobSkipped
store = JobStore(Path(sys.argv[1]) / "store" / "jobs")
store.job("a")
subprocess.run(["btrfs", "-q", "subvolume", "create", store.results("a") / "global/nested"], check=True,
    stdout=subprocess.DEVNULL)
(store.results("a") / "global/nested/inside").touch()
print([event.reason for event in (store.run(), store)[1].of(JobSkipped)])
print(sorted(p.name for p in store.results("a").rglob("*")))
"""
    (tmp_path / "store").mkdir()
    script = f"cd '{tmp_path}'; {_SUBVOLUME} exec '{sys.executable}' - '{tmp_path}'"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        input=code,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    kept, files = done.stdout.splitlines()[-2:]
    assert "subvolume" in kept
    assert files == "['day_0.tif', 'day_1.tif', 'global', 'inside', 'nested']"


def test_a_job_whose_marker_cannot_be_checked_is_reported_every_time(store: JobStore) -> None:
    store.job("a", files=0)
    store.results("a").symlink_to("a")
    store.job("marked")
    (store.results("marked") / ".eemt-keep").touch()
    for is_dry in (True, False):
        report = store.run(dry_run=is_dry)
        notable = [event.job.id for event in store.events if isinstance(event, JobSkipped) and event.notable]
        assert (report.skipped, notable) == (1, ["a"])


def test_a_marker_is_still_found(store: JobStore) -> None:
    store.job("a")
    (store.results("a") / ".eemt-keep").touch()
    fd = os.open(store.path / "results", os.O_RDONLY)
    assert keep_marker_reason(fd, "a") is not None
    os.close(fd)
