"""Room set aside for a full disk; the full disks are real, mounted in a namespace of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eemtcleanupd.deletion import ballast
from eemtcleanupd.deletion.ballast import Ballast
from tests.cleanup.conftest import JobStore
from tests.requirements import needs

MB = 1 << 20
# Only there a folder takes a block, so that a full disk has no room for one in its trash.
needs_ext4 = pytest.mark.skipif(
    shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists(),
    reason="needs mkfs.ext4 and loop devices",
)


@pytest.fixture
def file(tmp_path: Path, free: list[int]) -> Iterator[Ballast]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield Ballast(tmp_path, fd, "ballast", MB)
    os.close(fd)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much is free, which a test changes."""
    said = [100 * MB]
    monkeypatch.setattr(ballast, "free_bytes", lambda _fd: said[0])
    return said


def path(file: Ballast) -> Path:
    return file.folder / file.name


def test_it_takes_up_what_it_says_and_is_readable_by_nobody_else(file: Ballast) -> None:
    file.allocate()
    assert path(file).stat().st_blocks * 512 >= file.allocated_bytes == MB
    assert path(file).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("there_is", "held"), [(4 * MB, MB), (4 * MB - 1, 0)])
def test_it_is_taken_where_four_times_its_size_is_free(
    file: Ballast, free: list[int], there_is: int, held: int
) -> None:
    free[0] = there_is
    file.allocate()
    assert file.allocated_bytes == held


@pytest.mark.parametrize(
    ("size", "there_is", "left"),
    [(MB, MB, MB), (MB, MB - 1, 0), (32 * MB, 16 * MB, 32 * MB), (32 * MB, 15 * MB, 0)],
)
def test_it_is_given_back_where_less_is_free_than_it_has_and_16_mb(
    file: Ballast, free: list[int], size: int, there_is: int, left: int
) -> None:
    file = replace(file, size=size)
    free[0] = 1000 * MB
    file.allocate()
    free[0] = there_is
    assert (file.release() is None) == bool(left)
    assert file.allocated_bytes == left
    assert path(file).exists() == bool(left)


@pytest.mark.parametrize("size", [0, MB // 2, 2 * MB])
def test_with_another_size_it_is_made_anew_and_with_none_it_goes(file: Ballast, size: int) -> None:
    file.allocate()
    replace(file, size=size).allocate()
    assert file.allocated_bytes == size
    assert path(file).exists() == bool(size)


def test_what_there_is_stays_while_there_is_no_room_for_more(file: Ballast, free: list[int]) -> None:
    file.allocate()
    free[0] = MB
    replace(file, size=2 * MB).allocate()
    assert file.allocated_bytes == MB


def sparse(place: Path, _other: Path) -> None:
    with place.open("wb") as made:
        made.truncate(4 << 40)


@pytest.mark.parametrize(
    "put",
    [
        sparse,
        lambda place, other: place.symlink_to(other),
        lambda place, other: place.hardlink_to(other),
        lambda place, _other: place.mkdir(),
    ],
    ids=["sparse", "symlink", "hard link", "folder"],
)
def test_what_somebody_put_in_its_place_gives_no_room_and_is_not_said_to(
    tmp_path: Path, file: Ballast, free: list[int], put: Callable[[Path, Path], None]
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x" * MB)
    put(path(file), other)
    free[0] = 0
    assert file.allocated_bytes == 0
    assert file.release() is None
    file.allocate()
    assert other.read_bytes() == b"x" * MB


def test_a_folder_that_cannot_be_looked_at_takes_nothing_from_a_run(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    config = store.config(paths__database=str(tmp_path / "missing" / "jobs.db"))
    assert ballast.release_initial_ballast(config) is None
    assert ballast.release_ballast(config, []) == []
    ballast.allocate_ballast(config, [])
    assert ballast.ballast_bytes(config, []) == 0


def test_beside_a_database_behind_a_symlink_it_lies_where_the_file_is(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    (tmp_path / "other").mkdir()
    (store.path / "jobs.db").rename(tmp_path / "other" / "real.db")
    (store.path / "jobs.db").symlink_to(tmp_path / "other" / "real.db")
    store.run(safety__ballast="16M")
    assert (tmp_path / "other" / "real.db.eemtcleanupd.ballast").stat().st_size == 16 * MB


@needs("sqlite3")
def test_a_run_sets_it_aside_and_a_dry_run_does_not(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    place = store.path / "jobs.db.eemtcleanupd.ballast"
    store.run(dry_run=True)
    assert not place.exists()
    store.run(safety__ballast="2M")
    assert place.stat().st_size == 2 * MB
    assert place.with_name(f"{place.name}.first").stat().st_size == MB
    store.run(safety__ballast=0)
    assert not [each for each in store.path.iterdir() if "ballast" in each.name]


def shell(store: JobStore, script: str) -> str:
    """Run a script in a mount namespace of its own, in the store's folder; returns what it printed."""
    functions = f"""
        cli() {{ '{sys.executable}' -m eemtcleanupd "$@"; }}
        fill() {{ cat /dev/zero > $1/fill 2>/dev/null || true; }}
        # A run of an empty store sets room aside; the jobs of the store above come after it.
        run_once() {{
            mkdir results uploads temp; cp ../jobs.db .
            sqlite3 jobs.db 'DELETE FROM jobs'; cli clean >/dev/null
        }}
        come_due() {{
            sqlite3 jobs.db \\
                "ATTACH '../jobs.db' AS o; INSERT INTO jobs SELECT *, NULL, NULL, NULL FROM o.jobs"
            cp -rp ../results/. results
        }}
        # What ext4 kept back for what was not on the disk yet.
        fill_blocks() {{ sync -f "$1"; at=0; while mkdir $1/full$at 2>/dev/null; do at=$((at + 1)); done; }}
    """
    whole = f"set -e; cd '{store.path}'; {functions} {script}"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", whole], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def due(store: JobStore) -> None:
    for number in range(3):
        store.job(f"due{number}")
    (store.path / "cleanup_config.yaml").write_text("safety: {ballast: 2M}\n")


@pytest.mark.slow
@needs("sqlite3")
@pytest.mark.root
def test_a_run_on_a_disk_that_is_wholly_full_cleans_and_sets_room_aside_again(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir all; mount -t tmpfs -o size=24M,mode=755 none all
        cp cleanup_config.yaml all; cd all; run_once
        come_due
        fill .; cli clean 2>&1
        ls results; rm fill; cli clean >/dev/null; stat -c %s jobs.db.eemtcleanupd.ballast
        sqlite3 jobs.db 'SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL'
        """,
    )
    assert said.count("0 B free") == 1
    assert said.count("safety.ballast") == 2
    assert "Cleaned 3 successful jobs" in said
    assert said.split()[-2:] == [str(2 * MB), "3"]


@pytest.mark.slow
@needs("sqlite3")
@pytest.mark.root
def test_where_the_results_are_on_a_disk_of_their_own_that_one_has_it_too(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir aside; mv results/* aside; mount -t tmpfs -o size=24M,mode=755 none results
        cli clean --json > first.json; stat -c %s results/.eemtcleanupd-trash/.ballast
        sqlite3 jobs.db 'UPDATE jobs SET data_cleaned_at = NULL'
        mv aside/* results; fill results; cli clean 2>&1; rm results/fill; ls results
        stat -c %s jobs.db.eemtcleanupd.ballast
        """,
    )
    assert said.split()[0] == said.split()[-1] == str(2 * MB)
    assert "0 B free" in said
    assert "results/.eemtcleanupd-trash" in said
    assert json.loads((store.path / "first.json").read_text())["success"]


@pytest.mark.slow
@pytest.mark.root
def test_a_daemon_starts_on_a_full_disk_and_leaves_the_rest_to_its_runs(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir all; mount -t tmpfs -o size=24M,mode=755 none all
        cp -r results uploads temp jobs.db all; cd all
        echo 'safety: {ballast: 3M}' > cleanup_config.yaml
        cli clean >/dev/null; fill .
        cli run 2>log.txt &
        until cli status --healthy >/dev/null 2>&1; do :; done
        stat -c %s jobs.db.eemtcleanupd.ballast*
        cli stop >/dev/null; wait
        """,
    )
    assert said.split() == [str(3 * MB)]


@pytest.mark.root
def test_a_disk_that_is_full_from_the_first_is_said_with_what_to_do(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir all; mount -t tmpfs -o size=24M,mode=755 none all
        cp -r results uploads temp jobs.db all; cd all; fill .
        code=0; cli clean 2>&1 || code=$?; echo $code; ls results
        """,
    )
    assert "No space left on device" in said
    assert said.split()[-4:] == ["3", "due0", "due1", "due2"]


@needs_ext4
@pytest.mark.root
def test_a_run_goes_on_where_a_full_disk_has_no_log_yet(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    image = "dd if=/dev/zero of=image bs=1M count=24 2>/dev/null; mkfs.ext4 -q -m 0 image; mkdir all"
    said = shell(
        store,
        f"""
        {image}; mount -o loop image all
        cp cleanup_config.yaml all; cd all; run_once; rm -r logs
        come_due
        fill .; fill_blocks .; cli clean 2>&1; ls results logs
        """,
    )
    assert "Cleaned 3 successful jobs" in said
    assert "cleanup.log" in said


@pytest.mark.slow
@needs("sqlite3")
@needs_ext4
@pytest.mark.root
def test_a_folder_of_temp_on_a_full_disk_of_its_own_can_be_emptied(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    image = "dd if=/dev/zero of=image bs=1M count=24 2>/dev/null; mkfs.ext4 -q -m 0 image; rm -r temp/*"
    (store.path / "temp" / "due0").mkdir()
    said = shell(
        store,
        f"""
        mkdir aside; mv results/* aside; {image}; mount -o loop image temp; rmdir temp/lost+found
        cli clean >/dev/null; sqlite3 jobs.db 'UPDATE jobs SET data_cleaned_at = NULL'
        mv aside/* results; mkdir temp/due0; fill temp; fill_blocks temp; touch -d yesterday temp/due0
        cli clean 2>&1; ls temp results
        """,
    )
    assert "Cleaned 3 successful jobs" in said
    assert "due0" not in said.split("Cleanup completed")[1]


ASK = """
import socket
asked = socket.socket(socket.AF_UNIX)
asked.connect("/mnt/api.sock")
head = "POST /api/cleanup HTTP/1.1", "Host: localhost", "Content-Length: 0", "Connection: close", "", ""
asked.sendall("\\r\\n".join(head).encode())
print(asked.makefile().read())
"""


@pytest.mark.slow
@pytest.mark.root
def test_a_run_asked_for_over_http_cleans_a_full_disk_too(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    (store.path / "ask.py").write_text(ASK)
    said = shell(
        store,
        f"""
        mount -t tmpfs none /mnt  # the path of a socket must be short
        mkdir all; mount -t tmpfs -o size=24M,mode=755 none all
        cd all
        echo 'safety: {{ballast: 3M}}' > cleanup_config.yaml
        echo 'api: {{enabled: true, listen: "unix:/mnt/api.sock"}}' >> cleanup_config.yaml
        run_once; come_due
        cli run 2>log.txt &
        until cli status --healthy >/dev/null 2>&1; do :; done
        fill .; '{sys.executable}' ../ask.py; cli stop >/dev/null; wait
        """,
    )
    assert "HTTP/1.1 200" in said
    assert '"successful": 3' in said
