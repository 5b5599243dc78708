"""Mounts and locks keep an artifact in place, and the reason names the path."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from eemtcleanupd.deletion.blockers import Blockers
from eemtcleanupd.deletion.roots import open_root
from eemtcleanupd.model import RootName
root = open_root(RootName.RESULTS, Path(sys.argv[1]))
blockers = Blockers.snapshot([root])
print(blockers.locked is None)
for name in sys.argv[2:]:
    print(blockers.reason(root, name))
"""


_LISTER = """
import os, sys
from eemtcleanupd.deletion.tree import FOLDER_FLAGS
print("lists", flush=True)
while True:
    for fd in [os.open(sys.argv[1], FOLDER_FLAGS) for _ in range(30)]:
        os.close(fd)
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
def method(request: pytest.FixtureRequest) -> str:
    """How locks are detected: the kernel lists all of them, or it does not."""
    return str(request.param)


def _reason(root: Root, name: str, method: str) -> str | None:
    blockers = Blockers.snapshot([root])
    if method != "the kernel's list":
        blockers = replace(blockers, locked=None)
    return blockers.reason(root, name)


@pytest.mark.parametrize(
    ("held", "name"),
    [("job/sub/file", "job"), ("job/sub", "job"), ("job", "job"), ("upload.tif", "upload.tif")],
)
def test_a_path_that_another_process_has_locked_blocks_its_artifact_and_is_named(
    jobs: Root, held: str, name: str, method: str
) -> None:
    before = open_descriptors()
    assert _reason(jobs, name, method) is None
    with _locked(jobs.path / held):
        assert str(_reason(jobs, name, method)).endswith(f" {held}")
        assert _reason(jobs, "job2", method) is None
    assert _reason(jobs, name, method) is None  # the check itself leaves no lock
    assert open_descriptors() == before


def test_a_process_that_closes_its_listing_at_the_moment_of_the_look_uses_no_folder(jobs: Root) -> None:
    lister = subprocess.Popen([sys.executable, "-c", _LISTER, jobs.path / "job"], stdout=subprocess.PIPE)
    with lister:
        assert lister.stdout is not None
        assert lister.stdout.readline() == b"lists\n"
        seen = [Blockers.snapshot([jobs], quiet_since=0).opened for _ in range(200)]
        lister.kill()
    assert seen == [{}] * 200


def test_a_lock_three_hundred_levels_deep_is_found(jobs: Root, method: str) -> None:
    dig(jobs.path / "job", 300)
    with _locked(jobs.path.joinpath("job", *["level"] * 300, "bottom.log")):
        assert (_reason(jobs, "job", method) or "").endswith("/bottom.log")


def test_a_shared_lock_does_not_block(jobs: Root, method: str) -> None:
    with _locked(jobs.path / "job/sub/file", fcntl.LOCK_SH):
        assert _reason(jobs, "job", method) is None


def test_the_check_does_not_block_on_a_fifo_or_follow_a_link(jobs: Root, canary: Path, method: str) -> None:
    os.mkfifo(jobs.path / "job" / "fifo")
    (jobs.path / "job" / "link").symlink_to(canary / "alive")
    (jobs.path / "job" / "folder-link").symlink_to(canary)
    with _locked(canary / "alive"):
        assert _reason(jobs, "job", method) is None
    assert _reason(jobs, "missing", method) is None


def test_locks_of_this_process_are_not_listed(jobs: Root, tmp_path: Path) -> None:
    with (tmp_path / "run.lock").open("w") as run_lock:
        fcntl.flock(run_lock, fcntl.LOCK_EX)
        status = os.fstat(run_lock.fileno())
        locked = Blockers.snapshot([jobs]).locked or {}
        assert status.st_ino not in locked.get(status.st_dev, ())


def test_a_locked_file_that_cannot_be_opened_blocks(
    jobs: Root, without_privileges: WithoutPrivileges
) -> None:
    file = jobs.path / "job/sub/file"
    with _locked(file):
        file.chmod(0)
        unknown, reason, neighbour = without_privileges(_REASON, jobs.path, "job", "job2").splitlines()
    if unknown == "True":
        pytest.skip("the kernel does not list all locks here")
    assert reason.endswith("job/sub/file")
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
def test_a_mount_in_or_on_an_artifact_blocks(jobs: Root) -> None:
    (jobs.path / "job" / "a b\n").mkdir()
    (jobs.path / "job-mounted").mkdir()
    shell = """
        mount --bind job2 'job/a b
'
        mount -t tmpfs none job-mounted
        mount --bind /etc/hostname upload.tif
    """
    names = ("job", "job2", "job-mounted", "upload.tif", "missing")
    expected = ["/job/a b\\x0a", None, "/job-mounted", "/upload.tif", None]
    for reason, path in zip(_in_mount_namespace(shell, jobs, *names), expected, strict=True):
        assert reason == "None" if path is None else reason.endswith(f"{jobs.path}{path}")


@pytest.mark.root
def test_in_another_pid_namespace_every_file_is_tried(jobs: Root) -> None:
    """/proc/locks does not list the locks of processes outside the namespace."""
    with _locked(jobs.path / "job/sub/file"):
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", _REASON, jobs.path, "job"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    unknown, reason = done.stdout.splitlines()
    assert unknown == "True"
    assert reason.endswith("job/sub/file")
