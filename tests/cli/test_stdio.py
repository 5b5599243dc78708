"""What cannot be printed ends nothing: the run goes on to its record, and the user is told once."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Protocol

import pytest

from eemtcleanupd.cli.stdio import SafeStdout
from tests.cli.test_clean import options, rows
from tests.conftest import Aged

FULL = "eemtcleanupd: error: not all of the output could be written: No space left on device\n"
GONE = (
    "eemtcleanupd: error: the folder that this was started in cannot be found "
    "(No such file or directory): change into another\n"
)


class RunInto(Protocol):
    """Runs a command that prints into something."""

    def __call__(self, stdout: IO[bytes], *args: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_into(tmp_path: Path) -> RunInto:
    def run(stdout: IO[bytes], *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "eemtcleanupd", *args],
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
            timeout=100,
            check=False,
        )

    return run


def full() -> IO[bytes]:
    return open("/dev/full", "wb")


def closed_pipe() -> IO[bytes]:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


LOST = pytest.mark.parametrize(
    ("lost", "code", "words"), [(full, 1, FULL), (closed_pipe, 141, "")], ids=["full", "closed"]
)


@LOST
@pytest.mark.parametrize("option", ["--verbose", "--json"])
def test_a_run_that_cannot_print_deletes_and_records_all_the_same(
    sample_store: Path, aged: Aged, run_into: RunInto, lost: Callable[[], IO[bytes]], code: int, words: str,
    option: str,
) -> None:  # fmt: skip
    store = aged(sample_store, 10)
    with closing(lost()) as stdout:
        done = run_into(stdout, "clean", *options(store), option)
    assert (done.returncode, done.stderr) == (code, words)
    assert rows(store, "SELECT outcome, successful, failed, errors FROM cleanup_runs") == [
        ("success", 3, 3, 0)
    ]
    assert rows(store, "SELECT count(*) FROM jobs WHERE data_cleaned_at IS NOT NULL") == [(6,)]
    assert rows(store, "SELECT count(*) FROM cleanup_log WHERE action = 'cleaned'") == [(6,)]
    assert rows(store, "SELECT count(*) FROM cleanup_intents") == [(0,)]


@LOST
@pytest.mark.parametrize("command", ["status", "history", "report", "check", "trash list", "--help"])
def test_a_command_that_cannot_print_says_so_once_or_is_silent_where_nobody_listens(
    run_into: RunInto, tmp_path: Path, sample_store: Path, lost: Callable[[], IO[bytes]], code: int,
    words: str, command: str,
) -> None:  # fmt: skip
    names = {"database": "jobs.db", "results": "results", "uploads": "uploads", "temp": "temp"}
    paths = {name: f"{sample_store}/{place}" for name, place in names.items()}
    (tmp_path / "cleanup_config.yaml").write_text(json.dumps({"paths": paths}))
    with closing(lost()) as stdout:
        done = run_into(stdout, *command.split())
    assert (done.returncode, done.stderr) == (code, words)


def test_a_run_whose_answer_has_no_room_while_it_lasts_goes_on_to_its_record(
    sample_store: Path, aged: Aged
) -> None:
    store = aged(sample_store, 10)
    code = (
        "import sys, tempfile; from eemtcleanupd import answer; from eemtcleanupd.cli.main import main;"
        "answer._IN_MEMORY_BYTES = 1; tempfile.tempdir = '/proc/nowhere'; main()"
    )
    command = [sys.executable, "-c", code, "clean", "--json", *options(store)]
    done = subprocess.run(command, cwd=store, capture_output=True, text=True, timeout=100, check=False)
    words = (
        "the run is over and recorded, but its answer was not kept: No such file or directory; "
        "see eemtcleanupd history"
    )
    assert (done.returncode, done.stderr) == (1, f"eemtcleanupd: error: {words}\n")
    assert json.loads(done.stdout) == {"success": False, "error": words, "exit_code": 1}
    assert rows(store, "SELECT outcome, successful, failed FROM cleanup_runs") == [("success", 3, 3)]


def test_an_error_of_the_command_counts_more_than_its_output(run_into: RunInto) -> None:
    with closing(closed_pipe()) as stdout:
        done = run_into(stdout, "clean", "--json", "--db-path", "nowhere.db")
    assert done.returncode == 3
    assert done.stderr.startswith("eemtcleanupd: error: ")
    assert done.stderr.count("\n") == 1


def test_a_dry_run_that_nobody_reads_ends_early(sample_store: Path, aged: Aged, run_into: RunInto) -> None:
    command = ["clean", *options(aged(sample_store, 10)), "--dry-run", "--debug", "--batch-size", "1"]
    with closing(closed_pipe()) as stdout:
        unread = run_into(stdout, *command)
    with Path(os.devnull).open("wb") as stdout:
        read = run_into(stdout, *command)
    assert (unread.returncode, read.returncode) == (141, 0)
    assert unread.stderr.count("SELECT") < read.stderr.count("SELECT")
    assert "Traceback" not in unread.stderr


def test_a_run_whose_output_and_errors_are_closed_is_recorded(sample_store: Path, aged: Aged) -> None:
    store = aged(sample_store, 10)
    command = [sys.executable, "-m", "eemtcleanupd", "clean", "--json", *options(store)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=store, timeout=100, check=False
    )
    assert done.returncode == 0
    assert rows(store, "SELECT outcome FROM cleanup_runs") == [("success",)]


def test_a_pipe_that_does_not_block_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb", buffering=0) as pipe, os.fdopen(writing, "wb", buffering=0) as full_pipe:
        while full_pipe.write(bytes(4096)):
            pass
        wait = select.select

        def read_once_it_waits(*files: Any) -> Any:
            pipe.read(1 << 20)
            return wait(*files)

        monkeypatch.setattr(select, "select", read_once_it_waits)
        stdout = SafeStdout(writing)
        assert stdout.write(b"last") == 4
        assert (pipe.read(4), stdout.error) == (b"last", None)


@pytest.mark.parametrize(
    "command",
    ["clean", "check", "run", "run --detach", "reload --db-path jobs.db", "audit verify"],
)
def test_a_working_folder_that_was_deleted_is_one_clear_error(tmp_path: Path, command: str) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    program = f"import os, sys; os.rmdir({str(place)!r}); os.execv(sys.executable, sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, sys.executable, "-m", "eemtcleanupd", *command.split()],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", GONE)
