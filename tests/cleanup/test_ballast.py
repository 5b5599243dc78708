"""Room set aside for a full disk; the full disks are real, mounted in a namespace of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from eemtcleanupd.cleanup import ballast
from eemtcleanupd.cleanup.ballast import Ballast
from tests.cleanup.conftest import JobStore

MB = 1 << 20


@pytest.fixture
def file(tmp_path: Path, free: list[int]) -> Ballast:
    return Ballast(tmp_path / "ballast", MB)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much is free, which a test changes."""
    said = [100 * MB]
    monkeypatch.setattr(ballast, "_free_bytes", lambda _folder: said[0])
    return said


def blocks(file: Ballast) -> int:
    return file.path.stat().st_blocks * 512


def test_it_takes_up_what_it_says_and_is_readable_by_nobody_else(file: Ballast) -> None:
    file.take()
    assert blocks(file) >= file.held_bytes == MB
    assert file.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("there_is", "held"), [(4 * MB, MB), (4 * MB - 1, 0)])
def test_it_is_taken_where_four_times_its_size_is_free(
    file: Ballast, free: list[int], there_is: int, held: int
) -> None:
    free[0] = there_is
    file.take()
    assert file.held_bytes == held


@pytest.mark.parametrize(
    ("there_is", "most", "left"),
    [(MB, None, MB), (MB - 1, None, 0), (MB // 4, MB // 4, MB), (0, MB // 4, MB - MB // 4), (0, 2 * MB, 0)],
)
def test_it_is_given_back_where_less_is_free_than_that_would_free(
    file: Ballast, free: list[int], there_is: int, most: int | None, left: int
) -> None:
    file.take()
    free[0] = there_is
    told = file.give_back(most)
    assert file.held_bytes == left
    assert (told is None) == (left == MB)
    assert blocks(file) >= left if left else not file.path.exists()


@pytest.mark.parametrize("size", [0, MB // 2, 2 * MB])
def test_with_another_size_it_is_made_anew_and_with_none_it_goes(file: Ballast, size: int) -> None:
    file.take()
    Ballast(file.path, size).take()
    assert file.held_bytes == size
    assert file.path.exists() == bool(size)


def test_what_is_left_of_it_stays_while_there_is_no_room_for_all(file: Ballast, free: list[int]) -> None:
    file.take()
    free[0] = 0
    file.give_back(MB // 4)
    file.take()
    assert file.held_bytes == MB - MB // 4
    free[0] = 100 * MB
    file.take()
    assert file.held_bytes == MB


def test_a_folder_in_its_place_and_none_to_lie_in_are_left_alone(tmp_path: Path, file: Ballast) -> None:
    file.path.mkdir()
    lost = Ballast(tmp_path / "missing" / "ballast", MB)
    for each in (file, lost):
        assert each.give_back() is None
        each.take()
        assert each.held_bytes == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["ballast"]


@pytest.mark.parametrize("how", ["symlink_to", "hardlink_to"])
def test_nothing_that_somebody_put_in_its_place_is_cut(
    tmp_path: Path, file: Ballast, free: list[int], how: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * MB)
    getattr(file.path, how)(precious)
    free[0] = 0
    assert file.give_back(MB // 4) is None
    assert precious.stat().st_size == MB


def test_a_run_sets_it_aside_and_a_dry_run_does_not(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    place = store.path / "jobs.db.eemtcleanupd.ballast"
    store.run(dry_run=True)
    assert not place.exists()
    store.run(safety__ballast="1M")
    assert place.stat().st_size == MB


def shell(store: JobStore, script: str) -> str:
    """Run a script in a mount namespace of its own, in the store's folder; returns what it printed."""
    cli = f"'{sys.executable}' -m eemtcleanupd"
    fill = "dd if=/dev/zero of=$1/fill bs=4k 2>/dev/null || true"
    whole = f"set -e; cd '{store.path}'; fill() {{ {fill}; }}; cli() {{ {cli} \"$@\"; }}\n{script}"
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", whole], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def due(store: JobStore) -> None:
    for number in range(3):
        store.job(f"due{number}")
    (store.path / "cleanup_config.yaml").write_text("safety: {ballast: 1M}\n")


@pytest.mark.root
def test_a_run_on_a_disk_that_is_wholly_full_cleans_and_sets_room_aside_again(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir all; mount -t tmpfs -o size=24M none all
        mkdir all/results all/uploads all/temp; cp jobs.db cleanup_config.yaml all
        cd all; sqlite3 jobs.db 'DELETE FROM jobs'; cli clean >/dev/null
        sqlite3 jobs.db "ATTACH '../jobs.db' AS o; INSERT INTO jobs SELECT *, NULL, NULL, NULL FROM o.jobs"
        cp -r ../results/. results
        fill .; cli clean 2>&1
        ls results; rm fill; cli clean >/dev/null; stat -c %s jobs.db.eemtcleanupd.ballast
        sqlite3 jobs.db 'SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL'
        """,
    )
    assert "is full (0 B free): 1 MB that were set aside (safety.ballast) are given back" in said
    assert "Cleaned 3 successful jobs" in said
    assert said.split()[-2:] == [str(MB), "3"]


@pytest.mark.root
def test_where_the_results_are_on_a_disk_of_their_own_that_one_has_it_too(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir aside; mv results/* aside; mount -t tmpfs -o size=24M none results
        cli clean --json > first.json; stat -c %s results/.eemtcleanupd-trash/.ballast
        sqlite3 jobs.db 'UPDATE jobs SET data_cleaned_at = NULL'
        mv aside/* results; fill results; cli clean 2>&1; rm results/fill; ls results
        stat -c %s jobs.db.eemtcleanupd.ballast
        """,
    )
    assert said.split()[0] == said.split()[-1] == str(MB)
    assert "results/.eemtcleanupd-trash is full" in said
    assert json.loads((store.path / "first.json").read_text())["success"]


@pytest.mark.root
def test_a_daemon_starts_on_a_full_disk_and_leaves_the_rest_to_its_runs(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir all; mount -t tmpfs -o size=24M none all
        cp -r results uploads temp jobs.db all; cd all
        echo 'safety: {ballast: 3M}' > cleanup_config.yaml
        cli clean >/dev/null; fill .
        cli run 2>log.txt &
        until cli status --healthy >/dev/null 2>&1; do :; done
        stat -c %s jobs.db.eemtcleanupd.ballast
        cli stop >/dev/null; wait
        """,
    )
    assert said.split() == [str(2 * MB)]


@pytest.mark.root
def test_a_disk_that_is_full_from_the_first_is_said_with_what_to_do(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "store")
    due(store)
    said = shell(
        store,
        """
        mkdir all; mount -t tmpfs -o size=24M none all
        cp -r results uploads temp jobs.db all; cd all; fill .
        code=0; cli clean 2>&1 || code=$?; echo $code; ls results
        """,
    )
    assert "cannot be written (No space left on device); free a few MB there first" in said
    assert said.split()[-4:] == ["3", "due0", "due1", "due2"]
