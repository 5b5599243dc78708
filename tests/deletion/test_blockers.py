from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eemtcleanupd.deletion.blockers import Blockers
from eemtcleanupd.deletion.roots import Root
from tests.deletion.conftest import WithoutPrivileges, dig, open_descriptors

_HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, int(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""
_REASON = """
import sys
from pathlib import Path
from eemtcleanupd.deletion.blockers import Obstacles
from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.model import RootName
root = open_root(RootName.RESULTS, Path(sys.argv[1]))
obstacles = Obstacles.snapshot([root])
print(obstacles.locked is None)
for name in sys.argv[2:]:
    print(obstacles.reason(root, name))
"""


@contextmanager
def _locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Let another process hold an flock."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, path, str(kind)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        assert holder.stdin is not None
        holder.stdin.close()


@pytest.fixture
def jobs(root: Root) -> Root:
    """A root with a job, its neighbour, and an upload."""
    for name in ("job", "job2"):
        (root.path / name / "sub").mkdir(parents=True)
        (root.path / name / "sub" / "file").write_text("data")
    (root.path / "upload.tif").write_text("data")
    return root


@pytest.fixture(params=["the kernel's list", "trying each file"])
def way(request: pytest.FixtureRequest) -> str:
    """How locks are found: where the kernel lists all of them, and where it does not."""
    return str(request.param)


def _reason(root: Root, name: str, way: str) -> str | None:
    obstacles = Blockers.snapshot([root])
    if way != "the kernel's list":
        obstacles = Blockers(obstacles.mounts, None)
    return obstacles.reason(root, name)


@pytest.mark.parametrize(
    ("held", "name"),
    [("job/sub/file", "job"), ("job/sub", "job"), ("job", "job"), ("upload.tif", "upload.tif")],
)
def test_what_a_live_process_has_locked_is_kept_and_named(jobs: Root, held: str, name: str, way: str) -> None:
    before = open_descriptors()
    assert _reason(jobs, name, way) is None
    with _locked(jobs.path / held):
        assert _reason(jobs, name, way) == f"a process holds a lock on {held}"
        assert _reason(jobs, "job2", way) is None
    assert _reason(jobs, name, way) is None  # neither does our own look leave a lock
    assert open_descriptors() == before


def test_a_lock_three_hundred_levels_down_is_found(jobs: Root, way: str) -> None:
    dig(jobs.path / "job", 300)
    with _locked(jobs.path.joinpath("job", *["level"] * 300, "bottom.log")):
        assert (_reason(jobs, "job", way) or "").endswith("/bottom.log")


def test_a_lock_that_lets_others_share_it_keeps_nothing(jobs: Root, way: str) -> None:
    with _locked(jobs.path / "job/sub/file", fcntl.LOCK_SH):
        assert _reason(jobs, "job", way) is None


def test_looking_blocks_on_no_fifo_and_follows_no_link(jobs: Root, canary: Path, way: str) -> None:
    os.mkfifo(jobs.path / "job" / "fifo")
    (jobs.path / "job" / "link").symlink_to(canary / "alive")
    (jobs.path / "job" / "folder-link").symlink_to(canary)
    with _locked(canary / "alive"):
        assert _reason(jobs, "job", way) is None
    assert _reason(jobs, "missing", way) is None


def test_our_own_locks_do_not_make_us_read_every_job(jobs: Root, tmp_path: Path) -> None:
    with (tmp_path / "run.lock").open("w") as run_lock:
        fcntl.flock(run_lock, fcntl.LOCK_EX)
        status = os.fstat(run_lock.fileno())
        assert (status.st_dev, status.st_ino) not in (Blockers.snapshot([jobs]).locked or ())


def test_a_locked_file_that_we_may_not_open_is_kept(
    jobs: Root, without_privileges: WithoutPrivileges
) -> None:
    file = jobs.path / "job/sub/file"
    with _locked(file):
        file.chmod(0)
        unknown, reason, neighbour = without_privileges(_REASON, jobs.path, "job", "job2").splitlines()
    if unknown == "True":
        pytest.skip("the kernel does not list all locks here")
    assert reason == "a process holds a lock on job/sub/file"
    assert neighbour == "None"


def _in_mount_namespace(shell: str, root: Root, *names: str) -> list[str]:
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-ec", f'{shell}\nexec "$0" -c "$@"'),
            *(sys.executable, _REASON, str(root.path), *names),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=root.path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return done.stdout.splitlines()[1:]


@pytest.mark.root
def test_a_mount_in_an_artifact_or_on_it_keeps_it(jobs: Root) -> None:
    (jobs.path / "job" / "a b\n").mkdir()
    (jobs.path / "job-mounted").mkdir()
    shell = """
        mount --bind job2 'job/a b
'
        mount -t tmpfs none job-mounted
        mount --bind /etc/hostname upload.tif
    """
    names = ("job", "job2", "job-mounted", "upload.tif", "missing")
    assert _in_mount_namespace(shell, jobs, *names) == [
        f"a filesystem is mounted at {jobs.path}/job/a b\\x0a",
        "None",
        f"a filesystem is mounted at {jobs.path}/job-mounted",
        f"a filesystem is mounted at {jobs.path}/upload.tif",
        "None",
    ]


@pytest.mark.root
def test_in_a_pid_namespace_of_our_own_every_file_is_tried(jobs: Root) -> None:
    """There /proc/locks leaves out the locks of everybody outside."""
    with _locked(jobs.path / "job/sub/file"):
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", _REASON, jobs.path, "job"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    assert done.stdout.splitlines() == ["True", "a process holds a lock on job/sub/file"]
